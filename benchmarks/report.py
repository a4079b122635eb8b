"""Writes docs/benchmarks.md from the measurements in benchmarks/results: the newest of each device and setting."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from throughput_page import many_proteins, small_proteins

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `python benchmarks/report.py` from the files in `benchmarks/results`; no number here is typed by hand.

A pass is Algorithm 2 once, from features to atoms with every head, without recycled inputs; a prediction with three
recycles is four of them. Sequence and alignment are random, and the weights are those that a model starts with.
Packages that stand side by side ran one after the other in one process, on the same features and threads; the fastest
pass of each counts.
"""


def newest(folder: Path) -> Iterator[dict[str, Any]]:
    """The last result of each device and setting, devices in alphabetical order."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        found[result["device"], json.dumps(result["settings"])] = result
    return (found[key] for key in sorted(found))


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def section(result: dict[str, Any]) -> Iterator[str]:
    settings, versions, measured = result["settings"], result["versions"], result["measured"]
    lengths = sorted({row["residues"] for row in measured})
    columns = list(dict.fromkeys((row["engine"], row["setting"]) for row in measured))
    by_cell = {(row["residues"], row["engine"], row["setting"]): row for row in measured}

    yield f"\n## {result['device']}: {settings['model']}, {settings['precision']}\n"
    yield (
        f"{result['date']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ". "
        f"{settings['clusters']} clusters, {settings['extra']:,} extra sequences, {settings['blocks']} Evoformer "
        f"blocks; seconds a pass, the best of {settings['repeats']}.\n"
    )
    if result["note"]:
        yield f"{result['note']}\n"
    rows = []
    for length in lengths:
        cells = [by_cell.get((length, *column)) for column in columns]
        rows.append([str(length), *(f"{cell['seconds']:.2f}" if cell else "" for cell in cells)])
    names = [f"{engine}, {setting}" if setting else engine for engine, setting in columns]
    yield from table(["residues", *names], rows)

    ours = {length: by_cell[length, "axfold", ""] for length in lengths if (length, "axfold", "") in by_cell}
    if not ours:
        return
    if all("peak_bytes" in row for row in ours.values()):
        peaks = [[str(length), f"{row['peak_bytes'] / 2**30:.2f}"] for length, row in ours.items()]
        yield "\nMost memory of the device in use by axfold:\n"
        yield from table(["residues", "GiB"], peaks)
    largest = ours[max(ours)]["parts"]
    parts = sorted(largest, key=largest.get, reverse=True)
    yield "\nShare of each part of axfold's pass:\n"
    yield from table(
        ["part", *map(str, ours)],
        [
            [part, *(f"{row['parts'].get(part, 0) / row['seconds']:.1%}" for row in ours.values())]
            for part in parts
        ],
    )


def page(folder: Path) -> str:
    """The whole page of the results in `folder`."""
    others = chain(small_proteins(folder / "graphs"), many_proteins(folder / "throughput"))
    lines = chain((line for result in newest(folder) for line in section(result)), others)
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    PAGE.write_text(page(RESULTS), "utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
