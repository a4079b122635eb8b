"""Times float32 with products as short as TF32's: tiles of the kernels at 1,200 residues, and the longer products.

python benchmarks/short.py                      # on the GPU, about 90 s; writes benchmarks/results/short/
python benchmarks/short.py --only attention --dry-run

For each operation come its tiles, today's first; "bf16x3" and "bf16x6" are the kernels with longer products. The floor
is the slower of moving what must be moved and of computing the products, at the rates that this device has in float16.
Errors are those against float64 on a few rows, as a share of the reference's with PyTorch's own TF32.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import axfold
import floors
from axfold import ops
from axfold.ops import cases
from axfold.ops.triton import attention, tiles
from axfold.ops.triton.tiles import Tile
from machine import commit, device_name, file_name, write
from ops import seconds

RESULTS = Path(__file__).parent / "results" / "short"
N = 1200
ATTENTION = (
    attention.Tile(128, 64, 8, 2),
    attention.Tile(128, 64, 8, 3, rows=8),
    attention.Tile(128, 128, 8, 2),
    attention.Tile(64, 64, 4, 3),
    attention.Tile(64, 128, 4, 2),
)


def residual(c: int, normal: cases.Normal, rows: int, n: int) -> tuple[Tensor | None, ...]:
    return normal(rows, n, c), normal(rows, n, c), normal(c, c) / c**0.5, normal(c), None


def after_attention(name: str, c: int, rows: int) -> cases.Layer:
    split = (0, 0), (1, 0)
    return cases.Layer(name, ops.linear_residual, rows, N, 2 * c * c, partial(residual, c), split)


def layer(start: str) -> cases.Layer:
    return next(
        case for case in cases.LAYERS if case.name.startswith(start) and case.name.endswith(f"N = {N}")
    )


CASES: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (cases.Attention("triangle attention", N, N, 4, 32), ATTENTION),
    (cases.Attention("triangle attention, ending node", N, N, 4, 32, columns=True), ()),
    (cases.Attention("MSA row attention", 512, N, 8, 32), ATTENTION[:3]),
    (cases.Attention("MSA column attention", N, 512, 8, 32, biased=False, columns=True), ATTENTION),
    (cases.Attention("extra MSA row attention", 5120, N, 8, 8), ATTENTION),
    (
        layer("triangle operand"),
        (Tile(64, 128, 8, 2, resident=1), Tile(64, 128, 4, 3, resident=1), Tile(64, 64, 4, 2)),
    ),
    (
        layer("triangle product"),
        (Tile(64, 128, 8, 2, resident=1), Tile(32, 128, 4, 3, resident=1), Tile(64, 64, 8, 2)),
    ),
    (layer("pair transition"), (Tile(64, 32, 4, 3), Tile(128, 32, 8, 2), Tile(128, 64, 8, 2))),
    (layer("MSA transition"), (Tile(64, 32, 8, 2), Tile(64, 64, 8, 2), Tile(128, 32, 8, 2))),
    (layer("pair projections"), (Tile(64, 64, 4, 3), Tile(128, 128, 8, 2), Tile(128, 64, 8, 2))),
    (layer("MSA projections"), (Tile(64, 64, 4, 3), Tile(64, 64, 8, 3), Tile(128, 64, 8, 2))),
    (
        after_attention("after attention, pair", 128, N),
        (Tile(64, 128, 8, 2, resident=1), Tile(128, 64, 8, 2), Tile(64, 128, 4, 1)),
    ),
    (after_attention("after attention, MSA", 256, 512), (Tile(128, 32, 8, 2), Tile(64, 64, 8, 3))),
    (after_attention("after attention, extra MSA", 64, 5120), (Tile(128, 64, 8, 2, resident=1),)),
    (layer("outer product mean"), (Tile(64, 64, 4, 3), Tile(128, 32, 8, 3), Tile(64, 128, 4, 3))),
    (layer("global column attention"), ()),
)


def variants(case: Any, candidates: tuple[Any, ...]) -> Iterator[tuple[str, Any, str]]:
    """(precision as PyTorch names it, tile or None for the device's own, products)."""
    yield "high", None, "fp16"
    for tile in candidates:
        yield "high", tile, "fp16"
    yield "high", None, "bf16x3"
    yield "highest", None, "bf16x6"


def set_products(precision: str, products: str) -> None:
    torch.set_float32_matmul_precision(precision)
    tiles.PRODUCTS.update({"tf32": products if precision == "high" else "fp16"})


def run(case: Any, arguments: Any, tile: Any) -> Tensor:
    call: Callable[..., Tensor] = case.op.backends["triton"][0]
    return call(*arguments, tile=tile) if tile else call(*arguments)


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def measure(case: Any, candidates: tuple[Any, ...], ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
    device = torch.device("cuda")
    arguments = case.inputs(torch.float32, device)
    rows = [0, case.rows // 2, case.rows - 1]
    some = case.some(arguments, rows)
    every = range(3)
    exact = case.taken(case.op(*(x if x is None else x.double() for x in some), backend="reference"), every)
    torch.set_float32_matmul_precision("high")
    few = [x if x is None else x.clone() for x in some]
    reference = error(case.taken(case.op(*few, backend="reference"), every), exact)
    floor = None
    for precision, tile, products in variants(case, candidates):
        set_products(precision, products)
        row = {"case": case.name, "products": products, "tile": asdict(tile) if tile else None}
        try:
            given = [x if x is None else x.clone() if i == 0 else x for i, x in enumerate(arguments)]
            found = run(case, given, tile)
            if floor is None:
                need = {**floors.work(case.op.name, arguments, found), "operations": case.operations}
                floor = floors.seconds(need, ceilings)
            deviation = error(case.taken(found, rows), exact)
            del found
            taken = seconds(lambda tile=tile: run(case, arguments, tile), device, 0.1)
        except Exception as failure:  # a tile that takes too much of the chip, say: the others still count
            yield {**row, "failed": f"{type(failure).__name__}: {failure}".splitlines()[0][:160]}
            continue
        yield {**row, "floor": floor, "seconds": taken, "error": deviation, "reference_error": reference}


def large_products() -> Iterator[dict[str, Any]]:
    """What cuBLAS makes of the triangle's product and of the outer products, in float32, TF32 and float16."""
    shapes = {
        "triangle product by cuBLAS": (128, 192, N, N),
        "outer products by cuBLAS": (1, 64 * 32, N * 32, 512),
    }
    for name, (batch, m, n, k) in shapes.items():
        for kind in ("highest", "high", "float16"):
            dtype = torch.float16 if kind == "float16" else torch.float32
            torch.set_float32_matmul_precision("highest" if kind == "float16" else kind)
            a, b = (torch.randn(batch, x, k, device="cuda", dtype=dtype) for x in (m, n))
            taken = seconds(lambda a=a, b=b: torch.bmm(a, b.mT), torch.device("cuda"), 0.1)
            teraflops = 2 * batch * m * n * k / taken / 1e12
            yield {"case": name, "products": kind, "seconds": taken, "teraflops": teraflops}


def compile_some(share: str) -> None:
    """Compiles a share of the kernels, on inputs that are small and aligned as the large ones are."""
    first, step = map(int, share.split("/"))
    kernels = [(case, *variant) for case, some in CASES for variant in variants(case, some)]
    for case, precision, tile, products in kernels[first::step]:
        set_products(precision, products)
        try:
            run(case, replace(case, rows=2, length=64).inputs(torch.float32, "cuda"), tile)
        except Exception as failure:  # it is told where it is timed
            print(f"{case.name}, {tile}: {failure}".splitlines()[0], file=sys.stderr)


def line(row: dict[str, Any]) -> str:
    tile = row.get("tile")
    shape = " ".join(f"{value or '-'}" for value in tile.values()) if tile else "today" * ("tile" in row)
    start = f"{row['case']:36} {row['products']:8} {shape:20} "
    if "failed" in row:
        return start + row["failed"]
    if "teraflops" in row:
        return f"{start}{'':8} {1000 * row['seconds']:8.3f} {row['teraflops']:6.0f} TFLOP/s"
    share = row["error"] / row["reference_error"]
    floor, taken = row["floor"], row["seconds"]
    return f"{start}{1000 * floor:8.3f} {1000 * taken:8.3f} {floor / taken:6.0%} {row['error']:9.1e} {share:6.2f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--processes", type=int, default=12, help="that compile at once")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    if args.compile:
        compile_some(args.compile)
        return
    command = [sys.executable, str(Path(__file__)), "--compile"]
    several = [subprocess.Popen([*command, f"{i}/{args.processes}"]) for i in range(args.processes)]
    for process in several:
        process.wait()
    device = torch.device("cuda")
    ceilings = floors.measure(torch.float16, device)
    print(f"{device_name(device)}; {ceilings}")
    print(f"{'case':36} {'products':8} {'tile':20} {'floor ms':>8} {'ms':>8} {'':6} {'error':>9} / TF32's")
    measured = []
    for case, candidates in CASES:
        if args.only in case.name:
            try:
                for row in measure(case, candidates, ceilings):
                    measured.append(row)
                    print(line(row), flush=True)
            except Exception as failure:  # the other cases are worth having
                print(f"{case.name}: {type(failure).__name__}: {failure}".splitlines()[0], flush=True)
            torch.cuda.empty_cache()
    for row in large_products():
        measured.append(row)
        print(line(row), flush=True)
    if args.dry_run:
        return
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    versions = {
        "axfold": f"{axfold.__version__} ({commit()})",
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    about = {"date": date, "device": device_name(device), "versions": versions, "ceilings": ceilings}
    path = RESULTS / file_name(date, device)
    write(path, {**about, "measured": measured})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
