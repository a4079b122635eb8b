"""Times ways of the operations that take most of a long protein's pass beside each other, today's first.

python benchmarks/ways.py                              # on the GPU, bf16; writes benchmarks/results/ways/
python benchmarks/ways.py --lengths 2048 --only attention --dry-run

Each way's result is compared with the reference in float64 on a few rows; "error / ref." is its error by that of the
reference in bfloat16. Ways that only the plan of the memory chooses, such as rows at once, are timed as well.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

import axfold
from axfold import ops
from axfold.ops.triton.attention_hopper import gated_attention_hopper
from axfold.ops.triton.normed_linear import normed_linear_parts, normed_linear_triton
from axfold.ops.triton.tiles import Tile
from axfold.ops.triton.triangle import triangle_operand_triton
from machine import commit, device_name, file_name, write
from tiles import ending, linear, norm, normal, rates

RESULTS = Path(__file__).parent / "results" / "ways"
MIB = 1 << 20

BEHIND = {"plain": False, "behind": True}
"""Ways of attention: is the product with the values waited for before or after the weights of the next keys?"""


@dataclass(frozen=True)
class Measured:
    """An operation on given inputs: its ways by name, and what it can't do without.

    compared: a few rows of the result in float64, and of the reference's in bfloat16; None where nothing is compared
    taken: the same rows of a way's result
    """

    name: str
    ways: dict[str, Callable[[], Tensor]]
    operations: float
    moved: float
    compared: Callable[[], tuple[Tensor, Tensor]] | None = None
    taken: Callable[[Tensor], Tensor] | None = None


def described(way: Tile | int) -> str:
    if isinstance(way, Tile):
        return "tile " + " ".join(f"{value or '-'}" for value in astuple(way))
    return f"parts of {way} MiB"


def some_of(x: Tensor, axis: int = 0) -> Tensor:
    """A few rows."""
    total = x.shape[axis]
    return x.index_select(axis, torch.tensor(sorted({0, total // 2, total - 1}), device=x.device))


def on_rows(op: ops.Op, by_row: tuple[Tensor, ...], rest: tuple[Tensor | None, ...]) -> Any:
    """What `Measured.compared` is for an op that takes rows of its first arguments."""

    def compared() -> tuple[Tensor, Tensor]:
        given = [*(some_of(x) for x in by_row), *rest]
        exact = op(*(x if x is None else x.double() for x in given), backend="reference")
        return exact, op(*(x if x is None else x.clone() for x in given), backend="reference")

    return compared


def attention(name: str, rows: int, n: int, heads: int, c: int, biased: bool = True) -> Measured:
    q, k, v, gate = normal(rows, n, 4, heads, c).unbind(2)
    bias = normal(heads, n, n) if biased else None
    mask = torch.ones((), device="cuda").expand(rows, n)
    given = (q, k, v, gate, mask)

    def run(behind: bool) -> Tensor:
        return gated_attention_hopper(*given, bias, behind)

    today = ops.gated_attention.backend_for(*given, bias) == "hopper_long"
    ways = sorted(BEHIND, key=lambda way: BEHIND[way] != today)
    return Measured(
        name=f"attention, {name}, {rows} rows of {n}, {heads} x {c}",
        ways={way: lambda way=way: run(BEHIND[way]) for way in ways},
        operations=4.0 * rows * n * n * heads * c,
        moved=2.0 * rows * n * 5 * heads * c,
        compared=on_rows(ops.gated_attention, given, (bias,)),
        taken=some_of,
    )


def projection(
    name: str, rows: int, n: int, c: int, out: int, *some: Tile, columns: bool = False, parts: bool = True
) -> Measured:
    x = ending(normal(n, rows, c)) if columns else normal(rows, n, c)
    weight, bias = linear(out, c)
    layer = (*norm(c), weight, None if out <= 16 else bias)
    given = x, *layer
    ways: dict[str, Callable[[], Tensor]] = {
        "one kernel": lambda: normed_linear_triton(*given),
        **{described(tile): lambda tile=tile: normed_linear_triton(*given, tile=tile) for tile in some},
    }
    for size in PARTS if parts else ():
        ways[described(size)] = lambda size=size: normed_linear_parts(*given, part_bytes=size * MIB)
    if ops.normed_linear.backend_for(*given) == "parts":  # today's first
        ways = {"parts": lambda: normed_linear_parts(*given), **ways}
    return Measured(
        name=f"projection, {name}, {rows} rows of {n}, {c} to {out}",
        ways=ways,
        operations=2.0 * rows * n * c * out,
        moved=2.0 * rows * n * (c + out),
        compared=on_rows(ops.normed_linear, (x,), layer),
        taken=some_of,
    )


def triangle_product(n: int) -> Measured:
    """Of all rows, so many at once; the same rows each time, which no cache holds."""
    all_rows, others = normal(128, n, n), normal(128, n, n)

    def run(rows: int) -> Tensor:
        own = all_rows.view(-1)[: 128 * rows * n].view(128, rows, n)
        product = own.new_empty(128, rows, n)
        for _ in range(n // rows):
            torch.bmm(own, others.mT, out=product)
        return product

    today = min(max(round(n / 8 / 128) * 128, 256), 512)
    rows = dict.fromkeys(size for size in (today, 256, 512, 1024, 2048) if n % size == 0)
    return Measured(
        name=f"triangle product, {n}",
        ways={f"{size} rows at once": lambda size=size: run(size) for size in rows},
        operations=2.0 * n**3 * 128,
        moved=2.0 * 3 * 128 * n * n,
    )


def triangle_context(n: int) -> Measured:
    """The operand of all rows, as the rows are put together from blocks, and at once."""
    z, mask = normal(n, n, 128), normal(1).squeeze().fill_(1).expand(n, n)
    layer = (*norm(128), *linear(256, 128))

    def blocks() -> Tensor:
        whole = z.new_empty(128, n, n)
        for start in range(0, n, 256):
            some = slice(start, start + 256)
            whole[:, some] = triangle_operand_triton(z[some], mask[some], *layer)
        return whole

    return Measured(
        name=f"triangle context, {n}",
        ways={"blocks of 256 rows": blocks, "all at once": lambda: triangle_operand_triton(z, mask, *layer)},
        operations=2.0 * n * n * 128 * 256,
        moved=2.0 * n * n * 256,
    )


WIDE = (
    Tile(128, 32, 8, 2),
    Tile(128, 32, 8, 3),
    Tile(64, 64, 4, 2),
    Tile(64, 32, 4, 3),
    Tile(64, 32, 4, 2),
)
PARTS = (24, 64, 4096)
FEW = (Tile(64, 16, 4, 1), Tile(32, 16, 4, 1), Tile(16, 16, 4, 1), Tile(128, 64, 8, 3))


def block(n: int) -> int:
    """Rows of a pair that go at once."""
    return min(MIB // n, n)


def cases(n: int) -> Iterator[Callable[[], Measured]]:
    rows = block(n)
    yield lambda: attention("triangle", rows, n, 4, 32)
    yield lambda: attention("MSA rows", min(rows, 512), n, 8, 32)
    yield lambda: attention("extra MSA rows", rows, n, 8, 8)
    yield lambda: attention("MSA columns", min(n, 2048), 512, 8, 32, biased=False)
    yield lambda: projection("MSA", min(rows, 512), n, 256, 1024, *WIDE)
    yield lambda: projection("MSA columns", min(n, 2048), 512, 256, 1024, columns=True)
    yield lambda: projection("pair", rows, n, 128, 512, *WIDE)
    yield lambda: projection("pair, ending", rows, n, 128, 512, columns=True)
    yield lambda: projection("extra MSA", rows, n, 64, 256)
    yield lambda: projection("pair to bias", n, n, 128, 4, *FEW, parts=False)
    yield lambda: projection("pair to MSA's bias", n, n, 128, 8, *FEW, parts=False)
    yield lambda: triangle_product(n)
    yield lambda: triangle_context(n)


def seconds(run: Callable[[], Any], budget: float = 0.08) -> float:
    """The median of some runs, in pairs so that the second is prepared while the first one runs."""

    def twice() -> float:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        run()
        run()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / 2000

    run()
    first = twice()
    return statistics.median(twice() for _ in range(min(max(int(budget / first / 2), 3), 10)))


def measure(measured: Measured, speed: dict[str, float]) -> Iterator[dict[str, Any]]:
    floor = max(measured.operations / speed["product"], measured.moved / speed["copy"])
    exact = reference = None
    if measured.compared is not None:
        exact, rounded = measured.compared()
        reference = ((rounded.double() - exact).norm() / exact.norm()).item()
    for index, (name, run) in enumerate(measured.ways.items()):
        row = {"case": measured.name, "way": name, "today": index == 0, "floor": floor}
        try:
            if exact is not None and measured.taken is not None:
                found = measured.taken(run()).double()
                row["error"] = ((found - exact).norm() / exact.norm()).item()
                row["reference_error"] = reference
            taken = seconds(run)
        except Exception as failure:  # the other ways are worth having
            yield {**row, "failed": f"{type(failure).__name__}: {failure}".splitlines()[0][:200]}
            continue
        yield {**row, "seconds": taken, "operations_per_second": measured.operations / taken}


def line(row: dict[str, Any]) -> str:
    start = f"{row['case'][:66]:66} {row['way']:24} "
    if "failed" in row:
        return start + row["failed"]
    error = f"{row['error']:8.1e} {row['error'] / row['reference_error']:5.2f}" if "error" in row else ""
    rate = row["operations_per_second"] / 1e12
    return (
        f"{start}{1000 * row['seconds']:8.3f} {row['floor'] / row['seconds']:5.0%} {rate:5.0f} {error}"
        f"{' today' * row['today']}"
    )


def compile_some(share: str) -> None:
    """Compiles a share of attention's kernels, of which each takes seconds, on small inputs."""
    first, step = map(int, share.split("/"))
    shapes = ((4, 32, True), (8, 32, True), (8, 8, True), (8, 32, False))
    kernels = [(shape, behind) for shape in shapes for behind in (False, True)]
    for (heads, c, biased), behind in kernels[first::step]:
        try:
            q, k, v, gate = normal(2, 512, 4, heads, c).unbind(2)
            mask = torch.ones((), device="cuda").expand(2, 512)
            gated_attention_hopper(q, k, v, gate, mask, normal(heads, 512, 512) if biased else None, behind)
        except Exception as failure:  # it is told where it is timed
            print(f"{heads} x {c}: {failure}".splitlines()[0], file=sys.stderr)


def compile_all(processes: int) -> None:
    command = [sys.executable, str(Path(__file__)), "--compile"]
    for running in [subprocess.Popen([*command, f"{i}/{processes}"]) for i in range(processes)]:
        running.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 1024])
    parser.add_argument("--only", default="", help="cases whose name begins with this")
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
    print(f"{'case':66} {'way':24} {'ms':>8} floor TFLOP/s error / ref.")
    found = []
    for n in args.lengths:
        for make in cases(n):
            try:
                measured = make()
                if not measured.name.startswith(args.only):
                    continue
                for row in measure(measured, speed):
                    found.append({**row, "residues": n})
                    print(line(row), flush=True)
            except Exception as failure:  # the other cases are worth having
                print(f"{type(failure).__name__}: {failure}".splitlines()[0], flush=True)
            measured = None  # type: ignore[assignment] - before the next one is made
    if args.dry_run:
        return
    versions = {
        "axfold": f"{axfold.__version__} ({commit()})",
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    about = {"date": date, "device": device_name(device), "versions": versions, "rates": speed}
    path = RESULTS / file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device)
    write(path, {**about, "measured": found})
    print(f"written: {path}")


if __name__ == "__main__":
    main()
