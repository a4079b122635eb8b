"""Times the kernels around the large products with one tile after the other, and says how far each is from its floor.

python benchmarks/tiles.py                              # on the GPU, bf16; writes benchmarks/results/tiles/
python benchmarks/tiles.py --lengths 1024 --only normed --dry-run

The floor is the time in which this device moves the bytes, or computes the products, that the operation can't do
without; both rates are measured first. Each tile's result is compared with the reference in float64 on a few rows.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import axfold
from axfold import ops
from axfold.ops.triton import tiles
from axfold.ops.triton.linear_residual import linear_residual_triton
from axfold.ops.triton.normed_linear import normed_linear_triton
from axfold.ops.triton.tiles import Tile
from axfold.ops.triton.transition import transition_triton
from axfold.ops.triton.triangle import triangle_operand_triton, triangle_update_triton
from machine import commit, device_name, file_name, write

RESULTS = Path(__file__).parent / "results" / "tiles"
DTYPE = torch.bfloat16
SIZE = DTYPE.itemsize
BLOCK_ROWS = 256  # of the triangle product: what a plan takes at 2,048 residues
PAIR, CLUSTERS, EXTRA = None, 512, 5120  # rows of a representation; a pair's are as many as its positions


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=DTYPE)


def norm(c: int) -> tuple[Tensor, Tensor]:
    return 1 + 0.1 * normal(c), 0.1 * normal(c)


def linear(out: int, c: int) -> tuple[Tensor, Tensor]:
    return normal(out, c) / c**0.5, 0.1 * normal(out)


@dataclass(frozen=True, kw_only=True)
class Case:
    """An operation at a shape of the network.

    inputs: of so many rows and positions; some: the inputs that give these rows of the result, as `result` finds them
    moved, products: bytes and floating-point operations for so many rows and positions, at the same time if `together`
    """

    name: str
    op: ops.Op
    run: Callable[..., Tensor]
    inputs: Callable[[int, int], tuple[Tensor | None, ...]]
    moved: Callable[[int, int], float]
    products: Callable[[int, int], float]
    tiles: tuple[Tile, ...]
    together: bool = True
    rows: int | None = PAIR
    row_axis: tuple[int, ...] = (0,)  # of the leading inputs that have rows
    out_axis: int = 0

    def tiles_for(self) -> list[Tile]:
        """Today's tile first."""
        x = self.inputs(2, 64)[0]
        assert x is not None
        return list(dict.fromkeys([tiles.tile(self.op.name, x), *self.tiles]))


def ending(x: Tensor) -> Tensor:
    """Rows of zᵀ."""
    return x.transpose(0, 1)


def projection(c: int, out: int, rows: int | None, name: str, *some: Tile, columns: bool = False) -> Case:
    def inputs(rows: int, n: int) -> tuple[Tensor | None, ...]:
        x = ending(normal(n, rows, c)) if columns else normal(rows, n, c)
        weight, bias = linear(out, c)
        return x, *norm(c), weight, None if out < 16 else bias

    return Case(
        name=f"normed_linear {c} to {out}, {name}",
        op=ops.normed_linear,
        run=normed_linear_triton,
        inputs=inputs,
        moved=lambda rows, n: SIZE * rows * n * (c + out),
        products=lambda rows, n: 2.0 * rows * n * c * out,
        tiles=some,
        rows=rows,
    )


def output(c: int, rows: int | None, name: str, *some: Tile, columns: bool = False) -> Case:
    return Case(
        name=f"linear_residual {c}, {name}",
        op=ops.linear_residual,
        run=lambda *given, tile: linear_residual_triton(*given, None, tile=tile),
        inputs=lambda rows, n: (
            ending(normal(n, rows, c)) if columns else normal(rows, n, c),
            normal(rows, n, c),
            *linear(c, c),
        ),
        moved=lambda rows, n: SIZE * rows * n * 3 * c,
        products=lambda rows, n: 2.0 * rows * n * c * c,
        tiles=some,
        rows=rows,
        row_axis=(0, 0),
    )


def transition(c: int, rows: int | None, name: str, *some: Tile) -> Case:
    return Case(
        name=f"transition {c}, {name}",
        op=ops.transition,
        run=lambda *given, tile: transition_triton(*given, None, tile=tile),
        inputs=lambda rows, n: (normal(rows, n, c), *norm(c), *linear(4 * c, c), *linear(c, 4 * c)),
        moved=lambda rows, n: SIZE * rows * n * 2 * c,
        products=lambda rows, n: 2.0 * rows * n * 8 * c * c,
        tiles=some,
        rows=rows,
    )


def operand(*some: Tile, columns: bool = False) -> Case:
    return Case(
        name="triangle_operand 128, " + ("incoming" if columns else "outgoing"),
        op=ops.triangle_operand,
        run=triangle_operand_triton,
        inputs=lambda rows, n: (
            ending(normal(n, rows, 128)) if columns else normal(rows, n, 128),
            normal(1).squeeze().fill_(1).expand(rows, n),
            *norm(128),
            *linear(256, 128),
        ),
        moved=lambda rows, n: SIZE * rows * n * 256,
        products=lambda rows, n: 2.0 * rows * n * 128 * 256,
        tiles=some,
        row_axis=(0, 0),
        out_axis=1,
    )


def update(*some: Tile) -> Case:
    return Case(
        name=f"triangle_update 128, {BLOCK_ROWS} rows, with its product",
        op=ops.triangle_update,
        run=lambda *given, tile: triangle_update_triton(*given, None, tile=tile),
        inputs=lambda rows, n: (
            normal(rows, n, 128),
            normal(128, rows, n),
            normal(128, n, n),
            *norm(128),
            *norm(128),
            *linear(128, 128),
            *linear(128, 128),
        ),
        moved=lambda rows, n: SIZE * 128 * rows * n * 3,  # after the product of both operands
        products=lambda rows, n: 2.0 * rows * n * (128 * n + 2 * 128 * 128),
        tiles=some,
        together=False,
        rows=BLOCK_ROWS,
        row_axis=(0, 1),
    )


PROJECTIONS = (
    Tile(128, 64, 4, 3),
    Tile(128, 128, 8, 2),
    Tile(256, 64, 8, 2),
    Tile(64, 64, 4, 3),
    Tile(64, 128, 4, 2),
)
OUTPUTS = (
    Tile(64, 128, 4, 1, resident=3),
    Tile(128, 128, 8, 2, resident=1),
    Tile(64, 128, 8, 2, resident=2, registers=128),
    Tile(64, 128, 4, 1),
    Tile(128, 128, 8, 1),
)
OPERANDS = (
    Tile(64, 128, 8, 1, resident=2, registers=128),
    Tile(64, 128, 8, 3, resident=2, registers=128),
    Tile(64, 128, 8, 2, resident=2, registers=128),
    Tile(128, 128, 8, 2, resident=1),
    Tile(64, 64, 4, 2),
)
UPDATES = (
    Tile(64, 128, 8, 1, resident=2, registers=128),
    Tile(32, 128, 8, 3, resident=2, registers=128),
    Tile(64, 128, 8, 3, resident=1),
    Tile(64, 128, 8, 2, resident=1),
    Tile(64, 64, 8, 2, registers=128),
)
CASES = (
    projection(128, 512, PAIR, "starting", *PROJECTIONS),
    projection(128, 512, PAIR, "ending", *PROJECTIONS, columns=True),
    projection(256, 1024, CLUSTERS, "MSA", Tile(128, 64, 4, 2), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3)),
    projection(64, 256, EXTRA, "extra MSA", Tile(128, 64, 4, 3), Tile(128, 128, 8, 2), Tile(64, 64, 4, 3)),
    projection(128, 4, PAIR, "bias", Tile(64, 16, 4, 1), Tile(128, 16, 4, 1), Tile(32, 16, 4, 1)),
    projection(128, 8, PAIR, "bias", Tile(64, 16, 4, 1), Tile(128, 16, 4, 1)),
    output(128, PAIR, "starting", *OUTPUTS),
    output(128, PAIR, "ending", *OUTPUTS, columns=True),
    output(256, CLUSTERS, "MSA", Tile(64, 64, 4, 2), Tile(128, 128, 8, 1), Tile(64, 256, 8, 1, resident=1)),
    output(64, EXTRA, "extra MSA", Tile(128, 64, 4, 2, resident=2), Tile(128, 64, 4, 1), Tile(64, 64, 4, 1)),
    operand(*OPERANDS),
    operand(*OPERANDS, columns=True),
    update(*UPDATES),
    transition(128, PAIR, "pair", Tile(128, 64, 8, 2), Tile(128, 32, 8, 3)),
    transition(256, CLUSTERS, "MSA", Tile(128, 64, 8, 2)),
    transition(64, EXTRA, "extra MSA", Tile(128, 64, 8, 2), Tile(128, 64, 4, 2)),
)


def seconds(run: Callable[[], Any], budget: float = 0.06) -> float:
    """The median of as many runs as the budget allows (5 to 20), after one that is not counted."""

    def once() -> float:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        run()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / 1000

    once()
    first = once()
    return statistics.median(once() for _ in range(min(max(int(budget / first), 5), 20)))


def rates() -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of a large product."""
    x, y = normal(1 << 29), normal(1 << 29)
    copied = 2 * x.nbytes / seconds(lambda: y.copy_(x))
    a, b = normal(8192, 8192), normal(8192, 8192)
    return {"copy": copied, "product": 2 * 8192**3 / seconds(lambda: a @ b)}


def error(case: Case, tile: Tile, arguments: tuple[Tensor | None, ...]) -> float:
    """Of a few rows, relative to the norm of what the reference gives in float64."""
    axis = case.row_axis
    total = arguments[0].shape[0]
    rows = torch.tensor(sorted({0, total // 2, total - 1}), device=arguments[0].device)
    leading = [x.index_select(a, rows) for x, a in zip(arguments, axis, strict=False)]
    given = [None if x is None else x.double() for x in (*leading, *arguments[len(axis) :])]
    exact = case.op(*given, backend="reference")
    found = case.run(*arguments, tile=tile).index_select(case.out_axis, rows).double()
    return ((found[..., : exact.shape[-1]] - exact).norm() / exact.norm()).item()


def measure(case: Case, n: int, speed: dict[str, float]) -> Iterator[dict[str, Any]]:
    rows = case.rows or n
    moved, products = case.moved(rows, n), case.products(rows, n)
    floor = (max if case.together else sum)([moved / speed["copy"], products / speed["product"]])
    start = {"case": case.name, "residues": n, "rows": rows, "floor": floor}
    arguments = case.inputs(rows, n)
    for index, tile in enumerate(case.tiles_for()):
        row = {**start, "tile": asdict(tile), "today": index == 0}

        def run(tile: Tile = tile) -> Tensor:
            return case.run(*arguments, tile=tile)

        try:
            deviation = error(case, tile, arguments)
            taken = seconds(run)
        except Exception as failure:  # a tile that takes too much of the chip, say: the others still count
            yield {**row, "failed": f"{type(failure).__name__}: {failure}".splitlines()[0][:200]}
            continue
        yield {
            **row,
            "seconds": taken,
            "bytes_per_second": moved / taken,
            "operations_per_second": products / taken,
            "error": deviation,
        }
    if case.op is ops.triangle_update:  # what of it is cuBLAS's
        own, others = arguments[1:3]
        product = torch.bmm(own, others.mT)
        taken = seconds(lambda: torch.bmm(own, others.mT, out=product))
        yield {**start, "case": f"{case.name}: the product alone", "tile": None, "seconds": taken}


def compile_some(share: str) -> None:
    """Compiles a share of the kernels, on inputs that are small and aligned as the large ones are."""
    first, step = map(int, share.split("/"))
    kernels = [(case, tile) for case in CASES for tile in case.tiles_for()]
    for case, tile in kernels[first::step]:
        try:
            case.run(*case.inputs(2, 64), tile=tile)
        except Exception as failure:  # it is told where it is timed
            print(f"{case.name}, {tile}: {failure}".splitlines()[0], file=sys.stderr)


def compile_all(processes: int) -> None:
    command = [sys.executable, str(Path(__file__)), "--compile"]
    for running in [subprocess.Popen([*command, f"{i}/{processes}"]) for i in range(processes)]:
        running.wait()


def line(row: dict[str, Any]) -> str:
    tile = row["tile"]
    shape = " ".join(f"{value or '-'}" for value in tile.values()) if tile else ""
    start = f"{row['case']:44} {row['residues']:5} {shape:20} {1000 * row['floor']:8.3f} "
    if "failed" in row:
        return start + row["failed"]
    taken = f"{1000 * row['seconds']:8.3f} {row['floor'] / row['seconds']:6.0%} "
    if "error" not in row:
        return start + taken
    rate = f"{row['bytes_per_second'] / 1e9:7.0f} {row['operations_per_second'] / 1e12:6.0f}"
    return f"{start}{taken}{rate} {row['error']:8.1e}{' today' * row['today']}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--processes", type=int, default=8, help="that compile at once")
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    args = arguments()
    if args.compile:
        compile_some(args.compile)
        return
    compile_all(args.processes)
    device = torch.device("cuda")
    speed = rates()
    print(f"{device_name(device)}; copy {speed['copy'] / 1e12:.2f} TB/s, ", end="")
    print(f"product {speed['product'] / 1e12:.0f} TFLOP/s")
    print(
        f"{'case':44} {'N':>5} {'tile':20} {'floor ms':>8} {'ms':>8} {'':6} {'GB/s':>7} {'TFLOP/s':>6} error"
    )
    measured = []
    for n in args.lengths:
        for case in CASES:
            if args.only not in case.name:
                continue
            try:
                for row in measure(case, n, speed):
                    measured.append(row)
                    print(line(row), flush=True)
            except Exception as failure:  # the other cases are worth having
                print(f"{case.name}: {type(failure).__name__}: {failure}".splitlines()[0], flush=True)
    if args.dry_run:
        return
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    versions = {
        "axfold": f"{axfold.__version__} ({commit()})",
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    about = {"date": date, "device": device_name(device), "versions": versions, "rates": speed}
    path = RESULTS / file_name(date, device)
    write(path, {**about, "measured": measured})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
