"""Times layer_norm and softmax by themselves, forward and backward, each backend: seconds, bytes a second, error.

python benchmarks/rows.py                               # on the GPU, bf16; writes benchmarks/results/rows/
python benchmarks/rows.py --device cpu --precision fp32 --small --dry-run
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import axfold
from axfold import ops
from machine import commit, device_name, file_name, write

RESULTS = Path(__file__).parent / "results" / "rows"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NORMS = [(1024, 1024, 128), (1024, 1024, 64), (512, 1024, 256), (1, 2048, 384), (512, 512, 1024)]
"""Of the pair, a template, the MSA, single residues, and a wide layer: rows, positions, channels."""
SOFTMAXES = [(256, 4, 256, 256), (384, 4, 384, 384), (128, 8, 512, 512), (32, 4, 1024, 1024)]
"""Rows, heads, queries, keys."""


def seconds(run: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """The median run after the first two, on the device's own clock where it has one."""
    taken = []
    for _ in range(repeats + 2):
        if device.type != "cuda":
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        taken.append(begin.elapsed_time(end) / 1000)
    return statistics.median(taken[2:])


def measure(
    op: ops.Op, backend: str, arguments: list[Tensor | None], leaves: list[Tensor], streams: tuple[int, int]
) -> dict[str, Any]:
    """`streams` are how often the numbers of the first argument cross the bus at least: forward, backward."""
    x = arguments[0]
    assert x is not None
    device, size = x.device, x.numel() * x.itemsize
    row: dict[str, Any] = {"op": op.name, "shape": list(x.shape), "backend": backend}
    try:
        if reason := op.backends[backend][1](*arguments):
            return {**row, "failed": reason}
        with torch.no_grad():
            row["forward_seconds"] = seconds(lambda: op(*arguments, backend=backend), device)
        out = op(*arguments, backend=backend)
        above = torch.randn_like(out)
        row["backward_seconds"] = seconds(
            lambda: torch.autograd.grad(out, leaves, above, retain_graph=True), device
        )
        for name, count in zip(("forward", "backward"), streams, strict=True):
            row[f"{name}_terabytes_a_second"] = count * size / row[f"{name}_seconds"] / 1e12
    except (RuntimeError, torch.OutOfMemoryError) as error:
        return {**row, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return row


def cases(
    device: torch.device, dtype: torch.dtype, small: bool
) -> list[tuple[ops.Op, list[Tensor | None], list[Tensor], tuple[int, int]]]:
    shrink = 16 if small else 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    found: list[Any] = []
    for rows, positions, c in NORMS:
        given = [normal(max(rows // shrink, 1), positions // shrink, c), normal(c), normal(c)]
        found.append((ops.layer_norm, given, [x.requires_grad_() for x in given], (2, 3)))
    for rows, heads, queries, keys in SOFTMAXES:
        x, bias = (
            normal(rows // shrink, heads, queries // shrink, keys),
            normal(heads, queries // shrink, keys),
        )
        mask = torch.ones(len(x), keys, device=device, dtype=dtype)
        mask[:, -3:] = 0
        found.append((ops.softmax, [x, mask, bias], [x.requires_grad_(), bias.requires_grad_()], (2, 3)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--small", action="store_true", help="a sixteenth of each axis but the last")
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), PRECISIONS[args.precision]
    measured = []
    print(f"{device_name(device)}, {args.precision}, torch {torch.__version__}")
    for op, given, leaves, streams in cases(device, dtype, args.small):
        for backend in op.backends:
            row = measure(op, backend, given, leaves, streams)
            measured.append(row)
            times = [
                f"{1000 * row[f'{n}_seconds']:8.3f} ms"
                for n in ("forward", "backward")
                if "failed" not in row
            ]
            print(f"{row['op']:12}{row['shape']!s:26}{backend:12}", *times, row.get("failed", ""), flush=True)
    if args.dry_run:
        return
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    versions = {"axfold": f"{axfold.__version__} ({commit()})", "torch": torch.__version__}
    result = {"date": date, "device": device_name(device), "precision": args.precision, "versions": versions}
    path = RESULTS / file_name(date, device, args.precision)
    write(path, result | {"measured": measured})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
