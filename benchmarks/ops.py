"""Times every backend of the operations at the shapes of the network, with its memory and its error.

python benchmarks/ops.py                               # on the GPU, bf16; writes benchmarks/results/ops/
python benchmarks/ops.py --precision fp32 tf32 --only "N = 1200" --dry-run
python benchmarks/ops.py --precision fp32 --products tf32x3 --backends triton --only "N = 1200" --dry-run
python benchmarks/ops.py --device cpu --precision fp32 --only "N = 256" --backends reference sdpa
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import axfold
import floors
from axfold.ops import cases
from machine import commit, device_name, file_name, write

RESULTS = Path(__file__).parent / "results" / "ops"
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def seconds(run: Callable[[], Any], device: torch.device, budget: float) -> float:
    """The median of as many runs as `budget` seconds allow (3 to 50), after one that is not counted."""

    def once() -> float:
        if device.type != "cuda":
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        run()
        events[1].record()
        torch.cuda.synchronize(device)
        return events[0].elapsed_time(events[1]) / 1000

    once()
    first = once()
    return statistics.median(once() for _ in range(min(max(int(budget / first), 3), 50)))


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Most memory in use beside the arguments, the result included; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def measure(
    case: Any, backend: str, dtype: torch.dtype, device: torch.device, budget: float
) -> dict[str, Any]:
    """One row of the results; one with `failed` says why there are no numbers."""
    row: dict[str, Any] = {"op": case.op.name, "case": case.name, "backend": backend}
    arguments = case.inputs(dtype, device)
    if reason := case.op.backends[backend][1](*arguments):
        return {**row, "failed": reason}
    rows = sorted({0, case.rows // 2, case.rows - 1})
    some = case.some(arguments, rows)  # before an op writes into its arguments
    every = range(len(rows))
    exact = case.taken(case.op(*(x if x is None else x.double() for x in some), backend="reference"), every)

    def run() -> Any:
        return case.op(*arguments, backend=backend)

    def error_of(found: torch.Tensor) -> float:
        return ((found.double() - exact).norm() / exact.norm()).item()

    try:
        result = run()
        need = floors.work(case.op.name, arguments, result)
        error = error_of(case.taken(result, rows))
        peak = peak_bytes(run, device)
        taken = seconds(run, device, budget)
    except torch.OutOfMemoryError:
        return {**row, "failed": "out of memory"}
    except Exception as failure:  # of a kernel that doesn't build, say: the other rows are worth having
        return {**row, "failed": f"{type(failure).__name__}: {str(failure).splitlines()[0][:80]}"}
    return {
        **row,
        "seconds": taken,
        "teraflops": case.operations / taken / 1e12,
        "needs": {"operations": case.operations, **need},
        "peak_bytes": peak,
        "error": error,
        "reference_error": error_of(case.taken(case.op(*some, backend="reference"), every)),
    }


def line(row: dict[str, Any]) -> str:
    start = f"{row['case']:44}{row['backend']:12}{row['precision']:6}"
    if "failed" in row:
        return start + row["failed"]
    peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"
    return (
        f"{start}{1000 * row['seconds']:10.3f}{row['teraflops']:10.1f}{peak:>10}{row['error']:10.1e}"
        f"{row['error'] / (row['reference_error'] or 1):8.2f}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=["bf16"])
    parser.add_argument("--products", help="how the kernels multiply float32, instead of tiles.PRODUCTS")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--backends", nargs="+", help="these alone")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds a backend and case")
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    name = device_name(device)
    versions = {
        "axfold": f"{axfold.__version__} ({commit()})",
        "torch": torch.__version__,
        "triton": installed("triton"),
    }
    if args.products:
        from axfold.ops.triton import tiles

        tiles.PRODUCTS.update(dict.fromkeys(tiles.PRODUCTS, args.products))
    print(f"{name}; " + ", ".join(f"{key} {value}" for key, value in versions.items()))
    print(f"{'case':44}{'backend':12}{'':6}{'ms':>10}{'TFLOP/s':>10}{'MiB':>10}{'error':>10}{'/ ref.':>8}")
    for precision in args.precision:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        measured = []
        for case in (*cases.REAL, *cases.LAYERS):
            for backend in case.op.backends:
                if args.only in case.name and backend in (args.backends or [backend]):
                    row = measure(case, backend, PRECISIONS[precision], device, args.budget)
                    measured.append({**row, "precision": precision})
                    print(line(measured[-1]), flush=True)
        if args.dry_run:
            continue
        date = f"{datetime.now(UTC):%Y-%m-%d}"
        result = {
            "date": date,
            "device": name,
            "precision": precision,
            "versions": versions,
            "ceilings": floors.measure(PRECISIONS[precision], device) if device.type == "cuda" else None,
            "measured": measured,
        }
        path = RESULTS / file_name(date, device, precision)
        write(path, result)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
