"""Times one pass of the network (Algorithm 2, all heads) and the share of each of its parts.

    python benchmarks/model.py                      # on the CPU; writes benchmarks/results/DATE-DEVICE.json
    python benchmarks/model.py --peers              # ColabFold, OpenFold and FastFold beside it, where installed
    python benchmarks/model.py --peers ColabFold cuEquivariance    # those whose name and setting have such a word
    python benchmarks/model.py --device cuda --precision bf16 tf32 --lengths 256 512 1024
    python benchmarks/model.py --blocks 4 --lengths 256 --dry-run    # a quick look: 4 Evoformer blocks for 48

Passes are timed as a prediction runs them, with CUDA graphs where those are used. A block whose parts are watched can't
be replayed: the parts are measured in a pass of its own, without graphs, which takes `hooked_seconds`.

`benchmarks/report.py` makes docs/benchmarks.md of the results.
"""

import argparse
import gc
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import axfold
from axfold import network, planning
from axfold.config import PRESETS, Config
from axfold.graphs import Graphs
from axfold.memory.allocator import without_gaps
from axfold.memory.host import Bus
from axfold.model.alphafold import AlphaFold
from axfold.options import PRECISIONS as NAMED
from machine import commit, device_name, file_name, write
from passes import configuration, random_features
from peers import PEERS, load, process

RESULTS = Path(__file__).parent / "results"
PRECISIONS = tuple(name for name in NAMED if name != "auto")

PARTS = (
    (r"trunk\.embed_\w+", "embedding"),
    (r"trunk\.extra_stack", "extra MSA stack"),
    (r"trunk\.evoformer\.blocks\.\d+\.pair\.transition", "Evoformer pair transition"),
    (r"trunk\.evoformer\.blocks\.\d+\.(?:pair\.)?(?!pair$)(\w+)", r"Evoformer \1"),
    (r"structure", "structure module"),
    (r"heads\.\w+", "heads"),
)
"""Modules that are timed, and the part of the report that each belongs to; the rest of a pass is "other"."""


class Clock:
    """Measures stretches of work on a device without making it wait."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stretches: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return end - start if self.device.type != "cuda" else start.elapsed_time(end) / 1000

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Measure every module that PARTS names, in each call."""
        with ExitStack() as hooks:
            for path, module in model.named_modules():
                for pattern, name in PARTS:
                    if match := re.fullmatch(pattern, path):
                        for hook in self._watch(module, match.expand(name).replace("_", " ")):
                            hooks.callback(hook.remove)
                        break
            yield

    def _watch(self, module: nn.Module, part: str) -> list[Any]:
        starts: list[Any] = []
        return [
            module.register_forward_pre_hook(lambda *_: starts.append(self.now())),
            module.register_forward_hook(lambda *_: self.stretches.append((part, starts.pop(), self.now()))),
        ]

    def take_parts(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        self.wait()
        parts: dict[str, float] = {}
        for part, start, end in self.stretches:
            parts[part] = parts.get(part, 0.0) + self.seconds(start, end)
        self.stretches.clear()
        return parts


class Engine:
    """axfold's network on a device, with what its predictions share there."""

    def __init__(self, config: Config, device: torch.device, precision: str):
        torch.manual_seed(0)
        model = network.in_precision(AlphaFold(config.model), precision)
        self.model = model.requires_grad_(False).to(device).eval()
        self._config = config
        self._device = device = self.model.trunk.single.weight.device  # with its number, as tensors have it
        self._bus, self._graphs = Bus(device), Graphs(device)

    def ladder(self, features: Mapping[str, np.ndarray], *, graphs: bool = True) -> planning.Ladder:
        """The plan that a prediction would take, applied; graphs: False takes it without any."""
        self._graphs.remove(self.model)
        if not graphs:
            self._graphs.clear()
        memory = planning.find_memory(self._device)
        sizes = planning.sizes_of(features, self._config, self.model)
        return planning.Ladder(self.model, sizes, memory, self._bus, print, self._graphs if graphs else None)

    def run(self, features: Mapping[str, np.ndarray], ladder: planning.Ladder) -> Any:
        """One pass, and all heads."""
        samples = network.on_device([features], 1, self._device)
        (result,) = network.passes(self.model, samples, ladder.leaner, spare=ladder.has_graphs)
        heads = self.model.heads
        with torch.inference_mode():
            logits = [
                heads.confidence(result.structure.single),
                heads.distogram(result.pair),
                heads.masked_msa(result.msa),
                heads.resolved(result.single),
            ]
            if heads.aligned_error is not None:
                logits.append(heads.aligned_error(result.pair))
        return result, logits


def measure(engine: Engine, features: Mapping[str, np.ndarray], repeats: int, clock: Clock) -> dict[str, Any]:
    """The first pass with its plan, the fastest of `repeats` more, and the parts of one more."""

    def timed(run: Callable[[], Any]) -> float:
        gc.collect()
        clock.wait()
        start = time.perf_counter()
        run()
        clock.wait()
        return time.perf_counter() - start

    def first_pass() -> planning.Ladder:
        ladder = engine.ladder(features)
        engine.run(features, ladder)
        return ladder

    on_gpu, ladders = clock.device.type == "cuda", []
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(clock.device)
    first = timed(lambda: ladders.append(first_pass()))
    everything = [timed(lambda: engine.run(features, ladders[0])) for _ in range(repeats)]
    row = {
        "seconds": round(min(everything), 4),
        "first_seconds": round(first, 4),
        "all_seconds": [round(seconds, 4) for seconds in everything],
        "graphs": ladders[0].has_graphs(),
    }
    if on_gpu:  # of the first pass too: a replay's memory is that of the recording
        row["peak_bytes"] = torch.cuda.max_memory_allocated(clock.device)
    ladder = engine.ladder(features, graphs=False)
    if row["graphs"]:
        engine.run(features, ladder)  # the memory of its tensors is taken anew
    with clock.watching(engine.model):
        hooked = timed(lambda: engine.run(features, ladder))
    parts = clock.take_parts()
    parts["other"] = hooked - sum(parts.values())
    row["hooked_seconds"] = round(hooked, 4)
    return row | {"parts": {part: round(seconds, 4) for part, seconds in parts.items()}}


def row_of(engine: Engine, features: Mapping[str, np.ndarray], repeats: int, clock: Clock) -> dict[str, Any]:
    """`measure`, or why there is nothing: the other lengths are measured all the same."""
    try:
        return measure(engine, features, repeats, clock)
    except Exception as error:  # its row says so, and the others are measured
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)
        clock.stretches.clear()
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(PRESETS), default="model_5", help="one without templates")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256], help="numbers of residues")
    parser.add_argument("--clusters", type=int, default=512)
    parser.add_argument("--extra", type=int, default=1024, help="extra sequences")
    parser.add_argument("--blocks", type=int, help="Evoformer blocks (default: the model's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    parser.add_argument("--repeats", type=int, default=2, help="passes after the first, whose fastest counts")
    parser.add_argument("--peers", nargs="*", metavar="WORD", help="time other packages too, where installed")
    parser.add_argument(
        "--peer-seconds", type=float, default=600, help="most that each peer and setting may take"
    )
    parser.add_argument("--peers-alone", action="store_true", help="don't time axfold")
    parser.add_argument("--note", default="", help="a remark for the report, such as what else was running")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--dry-run", action="store_true", help="print alone, write nothing")
    return parser.parse_args()


def peers_asked(words: list[str] | None) -> list[tuple[str, str]]:
    """(module, setting) of the peers to run: all, or those whose name and setting contain one of the words."""
    every = [(peer, setting) for peer in PEERS for setting in load(peer).SETTINGS]
    if not words:
        return [] if words is None else every
    titles = [f"{load(peer).NAME} {setting}".lower() for peer, setting in every]
    return [one for one, title in zip(every, titles, strict=True) if any(w.lower() in title for w in words)]


def show(row: Mapping[str, Any]) -> None:
    start = f"{row['residues']:5} residues  {row['engine']} {row['setting']:28}"
    if "failed" in row:
        print(f"{start} {row['failed']}", flush=True)
        return
    cold = f", first {row['first_seconds']:.3f} s" if "first_seconds" in row else ""
    graphs = ", with CUDA graphs" if row.get("graphs") else ""
    hooked = f", by parts {row['hooked_seconds']:.3f} s" if "hooked_seconds" in row else ""
    print(f"{start} {row['seconds']:9.3f} s{graphs}{cold}{hooked}", flush=True)
    for part, seconds in sorted(row.get("parts", {}).items(), key=lambda item: -item[1]):
        print(f"{part:>40} {seconds:9.3f} s {seconds / row['hooked_seconds']:6.1%}")


def measure_all(
    precision: str, features: Mapping[int, Any], files: Mapping[int, Path], args: argparse.Namespace
) -> None:
    """axfold and the peers asked for in one precision, written to a file of its own."""
    device = torch.device(args.device)
    config = configuration(args.model, args.clusters, args.extra, args.blocks)
    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "note": args.note,
        "device": device_name(device),
        "versions": {
            "axfold": f"{axfold.__version__} ({commit()})",
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": {
            "model": args.model,
            "precision": precision,
            "clusters": args.clusters,
            "extra": args.extra,
            "blocks": config.model.evoformer.blocks,
            "repeats": args.repeats,
        },
        "measured": [],
    }
    path = args.results / file_name(result["date"], device, precision)
    print(f"{result['device']}, {precision}; {result['versions']}")

    def keep(row: dict[str, Any]) -> None:
        result["versions"] |= row.pop("versions", {})
        result["measured"].append(row)
        show(row)
        if not args.dry_run:  # each time: what is measured outlives an interruption
            write(path, result)

    if not args.peers_alone:
        clock, engine = Clock(device), Engine(config, device, precision)
        for residues, one in features.items():
            row = row_of(engine, one, args.repeats, clock)
            keep({"engine": "axfold", "setting": "", "residues": residues, **row})
        del engine  # its memory is for others
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    model = {"model": args.model, "clusters": args.clusters, "extra": args.extra, "blocks": args.blocks}
    for peer, setting in peers_asked(args.peers):
        rows = process.measure(
            peer,
            setting,
            files,
            model=model,
            device=args.device,
            precision=precision,
            repeats=args.repeats,
            seconds=args.peer_seconds,
            environment={"OMP_NUM_THREADS": str(args.threads)},
        )
        for row in rows:
            keep(row)
    if not args.dry_run:
        print(f"written: {path}")


def main() -> None:
    args = arguments()
    before = set(os.environ)
    if args.device != "cpu":
        without_gaps()  # as the command does
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    for precision in args.precision:
        if network.find_precision(precision, device) != precision:
            sys.exit(f"--precision {precision}: {device_name(device)} has none.")
    torch.zeros(1, device=device)
    for name in set(os.environ) - before:  # this process has read it; the peers have their own ways
        del os.environ[name]
    config = configuration(args.model, args.clusters, args.extra, args.blocks)
    features = {residues: random_features(residues, config) for residues in sorted(args.lengths)}
    with tempfile.TemporaryDirectory() as folder:
        files = {residues: Path(folder, f"{residues}.npz") for residues in features}
        for residues, file in files.items() if args.peers is not None else ():
            np.savez(file, **features[residues])
        for precision in args.precision:
            measure_all(precision, features, files, args)


if __name__ == "__main__":
    main()
