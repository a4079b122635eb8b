"""Where a pass of a small protein spends the GPU's time: every call of an operation, timed alone, against its floor.

    python benchmarks/calls.py                              # at 256 and 512; writes benchmarks/results/calls/
    python benchmarks/calls.py --lengths 128 256 --tiles           # other tiles of the kernels too
    python benchmarks/calls.py --lengths 200 --host                # where the CPU's time goes in a first pass

The calls of one pass are noted with their arguments; calls of the same shapes are timed once, many in a row in one CUDA
graph, and counted as often as the pass makes them. What repeats finds its arguments in the cache as a pass does that
has little else. "Rest" is the fastest whole pass by CUDA graphs, less all these: other kernels, listed by name.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import floors
from axfold import network, planning
from axfold.graphs import Graphs
from axfold.memory.host import Bus
from axfold.model.alphafold import AlphaFold
from axfold.ops import op as op_module
from axfold.ops.op import Op
from graphs import passes
from machine import commit, device_name, file_name, write
from model import PRECISIONS
from passes import configuration, random_features

RESULTS = Path(__file__).parent / "results" / "calls"
MOST = 64  # calls in a graph
TIME = 0.004  # seconds that a graph of them is to take


@dataclass
class Made:
    """Calls of an operation with the same shapes."""

    op: Op
    arguments: tuple[Any, ...]
    backend: str
    times: int = 0
    need: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The op, the shapes of its largest arguments, and whether rows are columns."""
        given = [x for x in self.arguments if isinstance(x, Tensor)]
        large = [x for x in given if x.dim() > 2][:3] + [
            x for x in given if x.dim() == 2 and all(x.stride())
        ][:1]
        turned = " columns" if given[0].dim() > 2 and given[0].stride(0) < given[0].stride(1) else ""
        return f"{self.op.name}{turned} " + " ".join("x".join(map(str, x.shape)) for x in large)


def noted(run: Callable[[], Any]) -> list[Made]:
    """The calls that run() makes."""
    found: dict[Any, Made] = {}
    call = Op.__call__

    def note(op: Op, *args: Any, backend: str | None = None) -> Any:
        key = op.name, *((x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in args)
        result = call(op, *args, backend=backend)
        if key not in found:
            found[key] = Made(op, args, backend or op.backend_for(*args))
            with suppress(Exception):  # an op of which floors.py knows nothing
                found[key].need = floors.work(op.name, args, result)
        found[key].times += 1
        return result

    with mock.patch.object(op_module.Op, "__call__", note):
        run()
    return list(found.values())


def seconds(run: Callable[[], Any]) -> float:
    """GPU seconds of one run: the median of some graphs of many."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    number = min(max(int(TIME / (time.perf_counter() - start)), 2), MOST)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(number):
            run()
    taken = []
    for _ in range(5):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        graph.replay()
        events[1].record()
        torch.cuda.synchronize()
        taken.append(events[0].elapsed_time(events[1]) / 1000 / number)
    return statistics.median(taken[1:])


def alternatives(made: Made) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Other tiles, and for attention the other backend: what they are called, and how they are run."""
    from axfold.ops.triton import attention
    from axfold.ops.triton.tiles import Tile

    run, _ = made.op.backends["triton"]
    if made.op.name == "gated_attention":
        for tile in (
            attention.Tile(128, 64, 8, 3, registers=128),
            attention.Tile(64, 64, 4, 3, registers=128),
            attention.Tile(64, 64, 4, 2),
            attention.Tile(64, 128, 4, 2),
            attention.Tile(128, 128, 8, 2),
            attention.Tile(128, 64, 4, 3),
            attention.Tile(128, 64, 8, 3, rows=128, registers=128),
        ):
            yield " ".join(map(str, astuple(tile))), _with(run, made, tile)
        if "hopper" in made.op.backends:
            from axfold.ops.triton import attention_hopper

            hopper, why_not = made.op.backends["hopper"]
            with mock.patch.object(attention_hopper, "LEAST_QUERIES", 1):
                if why_not(*made.arguments) is None:
                    yield "hopper", lambda: hopper(*made.arguments)
                    yield "hopper, behind", lambda: hopper(*made.arguments, behind=True)
        return
    x = made.arguments[0]
    c = x.shape[-1]
    width = len(made.arguments[3]) if made.op.name == "normed_linear" else c
    if made.op.name == "normed_linear" and width >= 2 * c:
        parts, _ = made.op.backends["parts"]
        yield "parts", lambda: parts(*made.arguments)
    shapes = {
        "normed_linear": [(128, 64, 8, 3), (64, 64, 4, 3), (64, 32, 4, 3), (128, 64, 4, 3), (64, 128, 4, 2)]
        if width > 32
        else [(128, 32, 8, 3), (64, 16, 4, 1), (32, 16, 4, 1), (128, 16, 4, 1), (64, 32, 4, 1)],
        "linear_residual": [
            (64, c, 4, 2, 2),
            (64, c, 8, 1, 1),
            (64, 64, 4, 1),
            (128, 64, 8, 2),
            (64, 64, 4, 2),
        ],
        "transition": [(64, 64, 4, 3), (64, 64, 8, 2), (128, 32, 8, 3), (128, 64, 8, 2), (64, 32, 4, 3)],
        "triangle_operand": [(64, 128, 4, 3, 2), (64, 64, 4, 2), (32, 128, 4, 3, 2), (64, 128, 8, 1, 2)],
        "triangle_update": [(32, 128, 4, 3, 2), (32, 64, 4, 2), (64, 64, 8, 2), (32, 128, 8, 3, 2)],
        "outer_product_update": [
            (128, 64, 4, 3),
            (64, 64, 4, 3),
            (64, 128, 4, 2),
            (128, 128, 8, 2),
            (32, 64, 4, 3),
        ],
        "global_column_attention": [
            (64, 0, 4, 3),
            (32, 0, 4, 3),
            (128, 0, 4, 2),
            (128, 0, 8, 3),
            (64, 0, 8, 2),
        ],
        "invariant_point_attention": [(64, 0, 4, 2), (32, 0, 4, 2), (16, 0, 4, 2)],
    }.get(made.op.name, [])
    for shape in shapes:
        yield " ".join(map(str, shape)), _with(run, made, Tile(*shape))


def _with(run: Callable[..., Any], made: Made, tile: Any) -> Callable[[], Any]:
    return lambda: run(*made.arguments, tile=tile)


def build(calls: list[Made]) -> None:
    """Compile the alternatives, by threads; one that fails is told where it is timed."""

    def once(run: Callable[[], Any]) -> None:
        with torch.inference_mode(), suppress(Exception):
            run()

    start = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(once, [run for made in calls if _has_tiles(made) for _, run in alternatives(made)]))
    torch.cuda.synchronize()
    print(f"alternatives built in {time.perf_counter() - start:.1f} s", flush=True)


def _has_tiles(made: Made) -> bool:
    return made.backend in ("triton", "parts", "hopper", "hopper_long")


def kernels(run: Callable[[], Any]) -> list[tuple[str, int, float]]:
    """(name, times, seconds) of the GPU's kernels in run(), the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        run()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for event in prof.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found.setdefault(event.name[:90], []).append(event.time_range.elapsed_us() / 1e6)
    rows = [(name, len(each), sum(each)) for name, each in found.items()]
    return sorted(rows, key=lambda row: -row[2])


def measure(
    model: AlphaFold, config: Any, residues: int, args: argparse.Namespace, ceilings: dict[str, float]
) -> dict[str, Any]:
    device = next(model.parameters()).device
    features = random_features(residues, config)
    memory, bus, graphs = planning.find_memory(device), Bus(device), Graphs(device)
    sizes = planning.sizes_of(features, config, model)
    row: dict[str, Any] = {"residues": residues}
    planning.Ladder(model, sizes, memory, bus, print, graphs)
    running = passes(model, features, 6)
    each = [next(running)[0] for _ in range(4)]
    row["passes"] = [round(x, 5) for x in each]
    row["kernels"] = []
    try:
        row["kernels"] = kernels(lambda: next(running))
    except Exception:  # the calls stand without it
        traceback.print_exc()
    running.close()
    graphs.remove(model)
    graphs.clear()
    torch.cuda.empty_cache()
    with torch.inference_mode():
        calls = noted(lambda: next(passes(model, features, 1)))
        if args.tiles:
            build(calls)
        row["calls"] = [of_call(made, args, ceilings) for made in calls]
    row["calls"].sort(key=lambda call: -call.get("seconds", 0) * call["times"])
    return row


def of_call(made: Made, args: argparse.Namespace, ceilings: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {"call": made.name, "backend": made.backend, "times": made.times}
    if made.need:
        found["floor"] = floors.seconds(made.need, ceilings)
    try:
        found["seconds"] = seconds(lambda: made.op.backends[made.backend][0](*made.arguments))
    except Exception as error:  # the other calls stand without it
        found["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        torch.cuda.synchronize()
    if args.tiles and _has_tiles(made):
        found["tiles"] = {}
        for name, run in alternatives(made):
            try:
                found["tiles"][name] = seconds(run)
            except Exception as error:  # a tile that does not fit, say
                found["tiles"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:60]
                torch.cuda.synchronize()
    return found


def show(row: dict[str, Any]) -> None:
    best = min(row["passes"])
    print(f"\n{row['residues']} residues: passes {row['passes']}, best {1000 * best:.1f} ms")
    print(f"{'call':78}{'backend':10}{'times':>6}{'us':>8}{'floor':>8}{'ms a pass':>10}{'share':>7}")
    total = 0.0
    for call in row["calls"]:
        taken = call.get("seconds", 0.0)
        total += taken * call["times"]
        floor = f"{1e6 * call['floor']:8.1f}" if "floor" in call else " " * 8
        print(
            f"{call['call'][:77]:78}{call['backend']:10}{call['times']:6}{1e6 * taken:8.1f}{floor}"
            f"{1000 * taken * call['times']:10.2f}{taken * call['times'] / best:7.1%} {call.get('failed', '')}"
        )
        for name, other in call.get("tiles", {}).items():
            better = isinstance(other, float) and other < 0.97 * taken
            shown = f"{1e6 * other:8.1f}" if isinstance(other, float) else f" {other}"
            print(f"{name:>94}{shown}{' <' * better}")
    floors_of = sum(call.get("floor", 0) * call["times"] for call in row["calls"])
    print(
        f"all calls {1000 * total:.1f} ms, their floors {1000 * floors_of:.1f} ms, rest {1000 * (best - total):.1f} ms"
    )
    for name, times, taken in row["kernels"][:40]:
        print(f"    {1000 * taken:8.3f} ms {times:5} {name}")


def host(model: AlphaFold, config: Any, residues: int) -> None:
    """Prints where the CPU's time goes in the passes of a protein whose length is new."""
    device = next(model.parameters()).device
    memory, bus, graphs = planning.find_memory(device), Bus(device), Graphs(device)
    for turn, length in enumerate((residues, residues + 1, residues + 2)):
        features = random_features(length, config)
        sizes = planning.sizes_of(features, config, model)
        profiler = cProfile.Profile()
        if turn == 2:  # without the profiler's own cost the one before
            profiler.enable()
        planning.Ladder(model, sizes, memory, bus, print, graphs)
        taken = [seconds for seconds, _ in passes(model, features, 4)]
        profiler.disable()
        print(f"\n{length} residues, a new length: passes {', '.join(f'{x:.4f}' for x in taken)}")
        if turn == 2:
            for order in ("tottime", "cumulative"):
                pstats.Stats(profiler).strip_dirs().sort_stats(order).print_stats(45)
    graphs.remove(model)
    graphs.clear()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="model_5", help="one without templates")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--clusters", type=int, default=512)
    parser.add_argument("--extra", type=int, default=5120)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--tiles", action="store_true", help="time other tiles of the kernels too")
    parser.add_argument("--host", type=int, help="profile the CPU in the passes of a protein of that length")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device("cuda", 0)
    config = configuration(args.model, args.clusters, args.extra)
    torch.manual_seed(0)
    model = network.in_precision(AlphaFold(config.model), args.precision)
    model = model.requires_grad_(False).eval().to(device)
    warmup = network.warmup(
        config, device, args.precision, residues=min(args.lengths), sequences=args.clusters
    )
    if warmup is not None:
        start = time.perf_counter()
        warmup.wait()
        print(f"kernels ready in {time.perf_counter() - start:.1f} s", flush=True)
    dtype = model.trunk.single.weight.dtype
    ceilings = floors.measure(dtype, device)
    print(device_name(device), {name: f"{value:.3g}" for name, value in ceilings.items()})
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "torch": torch.__version__,
        "axfold": commit(),
        "settings": {name: getattr(args, name) for name in ("model", "precision", "clusters", "extra")},
        "ceilings": ceilings,
        "measured": [],
    }
    path = args.results / file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device, args.precision)
    if args.host:
        try:
            host(model, config, args.host)
        except Exception:  # the calls are timed without the profile
            traceback.print_exc()
    for residues in args.lengths:
        try:
            row = measure(model, config, residues, args, ceilings)
        except Exception:  # the other lengths stand without it
            traceback.print_exc()
            continue
        result["measured"].append(row)
        write(path, result)
        show(row)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
