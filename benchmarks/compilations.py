"""Which kernels Triton compiles while something is measured."""

import time
from typing import Any


def compilations() -> list[tuple[str, float, float]]:
    """What Triton compiles from now on, those that it finds compiled left out: name, when it was done, seconds."""
    found: list[tuple[str, float, float]] = []
    try:
        from triton import knobs
    except ImportError:
        return found

    def compiled(*, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            stages = sum(stage for _, stage in times.lowering_stages)
            seconds = (times.ir_initialization + stages + times.store_results) / 1e6
            found.append((str(getattr(src, "name", src)), time.perf_counter(), seconds))

    knobs.compilation.listener = compiled
    return found
