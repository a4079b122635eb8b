"""Amounts of memory as people write them."""

import re

from axfold.errors import InputError

_UNITS = {"B": 1} | {
    f"{letter}{unit}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


def parse_bytes(text: str, option: str = "--memory-budget") -> int:
    """Bytes of "8GB" (10⁹), "80GiB" or "80G" (2³⁰), "500MB" and the like. Raises InputError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]+)\s*", text, re.ASCII)
    unit = match and next((unit for unit in _UNITS if unit.lower() == match[2].lower()), None)
    if match is None or unit is None:
        raise InputError(f"{option} {text}: give an amount of memory with its unit, as in 8GB or 500MiB.")
    if not (size := int(float(match[1]) * _UNITS[unit])):
        raise InputError(f"{option} {text}: give more than nothing, as in 8GB.")
    return size


def at_once(total: int, each_bytes: int, limit: int | None) -> int:
    """How many of `total` parts, of so many bytes each, go into `limit`: some multiple of 64, or all of them."""
    if limit is None or total * each_bytes <= limit:
        return total
    return min(max(limit // each_bytes // 64 * 64, 64), total)


def written(size: float) -> str:
    """Bytes as people read them: GiB or MiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
