"""Times one pass of the network (Algorithm 2, all heads) and the share of each of its parts.

    python benchmarks/model.py                      # on the CPU; writes benchmarks/results/DATE-DEVICE.json
    python benchmarks/model.py --peers              # ColabFold, OpenFold and FastFold beside it, where installed
    python benchmarks/model.py --peers ColabFold cuEquivariance    # those whose name and setting have such a word
    python benchmarks/model.py --device cuda --precision bf16 --lengths 256 512 1024
    python benchmarks/model.py --blocks 4 --lengths 256 --dry-run    # a quick look: 4 Evoformer blocks for 48

`benchmarks/report.py` makes docs/benchmarks.md of the results.
"""

import argparse
import gc
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import axfold
from axfold import network, planning
from axfold.config import PRESETS, Config
from axfold.memory.host import Bus
from axfold.model.alphafold import AlphaFold
from machine import commit, device_name, file_name, write
from passes import configuration, random_features
from peers import PEERS, load, process

RESULTS = Path(__file__).parent / "results"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

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

    def watch(self, model: nn.Module) -> None:
        """Measure every module that PARTS names, in each call."""
        for path, module in model.named_modules():
            for pattern, name in PARTS:
                if match := re.fullmatch(pattern, path):
                    self._watch(module, match.expand(name).replace("_", " "))
                    break

    def _watch(self, module: nn.Module, part: str) -> None:
        starts: list[Any] = []
        module.register_forward_pre_hook(lambda *_: starts.append(self.now()))
        module.register_forward_hook(lambda *_: self.stretches.append((part, starts.pop(), self.now())))

    def take_parts(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        self.wait()
        parts: dict[str, float] = {}
        for part, start, end in self.stretches:
            parts[part] = parts.get(part, 0.0) + self.seconds(start, end)
        self.stretches.clear()
        return parts


def build(config: Config, device: torch.device, dtype: torch.dtype, clock: Clock) -> Callable[[Any], Any]:
    """A function that runs one pass of axfold with all heads, by the plan that a prediction would take."""
    torch.manual_seed(0)
    model = AlphaFold(config.model).to_precision(dtype).to(device).eval()
    clock.watch(model)
    bus = Bus(device)

    def one_pass(features: Mapping[str, np.ndarray]) -> Any:
        memory = planning.find_memory(device)
        planning.Ladder(model, planning.sizes_of(features, config, model), memory, bus, print)
        (samples,) = network.on_device([features], 1, device)
        with torch.inference_mode():
            result = model(samples)
            heads = model.heads
            logits = [
                heads.confidence(result.structure.single),
                heads.distogram(result.pair),
                heads.masked_msa(result.msa),
                heads.resolved(result.single),
            ]
            if heads.aligned_error is not None:
                logits.append(heads.aligned_error(result.pair))
            return result, logits

    return one_pass


def measure(run: Callable[[Any], Any], features: Any, repeats: int, clock: Clock) -> dict[str, Any]:
    """The fastest of `repeats` passes; on a GPU after one that is not counted."""
    on_gpu = clock.device.type == "cuda"
    best: dict[str, Any] = {}
    everything = []
    for i in range(repeats + on_gpu):
        gc.collect()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        clock.take_parts()
        start = time.perf_counter()
        run(features)
        clock.wait()
        seconds = time.perf_counter() - start
        if i < on_gpu:
            continue
        everything.append(round(seconds, 4))
        if not best or seconds < best["seconds"]:
            best = {"seconds": round(seconds, 4), "parts": clock.take_parts()}
            if on_gpu:
                best["peak_bytes"] = torch.cuda.max_memory_allocated()
    if best["parts"]:
        best["parts"]["other"] = best["seconds"] - sum(best["parts"].values())
        best["parts"] = {part: round(seconds, 4) for part, seconds in best["parts"].items()}
    return {**best, "all_seconds": everything}


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
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--repeats", type=int, default=2, help="passes of which the fastest counts")
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
    print(f"{start} {row['seconds']:9.3f} s{cold}", flush=True)
    for part, seconds in sorted(row.get("parts", {}).items(), key=lambda item: -item[1]):
        print(f"{part:>40} {seconds:9.3f} s {seconds / row['seconds']:6.1%}")


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), PRECISIONS[args.precision]
    config = configuration(args.model, args.clusters, args.extra, args.blocks)
    version = f"{axfold.__version__} ({commit()})"
    print(f"{device_name(device)}; torch {torch.__version__}, axfold {version}")

    result: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "note": args.note,
        "device": device_name(device),
        "versions": {
            "axfold": version,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": {
            "model": args.model,
            "precision": args.precision,
            "clusters": args.clusters,
            "extra": args.extra,
            "blocks": config.model.evoformer.blocks,
            "repeats": args.repeats,
        },
        "measured": [],
    }
    path = args.results / file_name(result["date"], device, args.precision)

    def keep(row: dict[str, Any]) -> None:
        result["versions"] |= row.pop("versions", {})
        result["measured"].append(row)
        show(row)
        if not args.dry_run:  # each time: what is measured outlives an interruption
            write(path, result)

    lengths = sorted(args.lengths)
    asked = peers_asked(args.peers)
    with tempfile.TemporaryDirectory() as folder:
        files = {residues: Path(folder, f"{residues}.npz") for residues in lengths}
        clock = Clock(device)
        run = None if args.peers_alone else build(config, device, dtype, clock)
        for residues, file in files.items():
            features = random_features(residues, config)
            if asked:
                np.savez(file, **features)
            if run is not None:
                row = measure(run, features, args.repeats, clock)
                keep({"engine": "axfold", "setting": "", "residues": residues, **row})
        del run  # its memory is for the peers
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model = {"model": args.model, "clusters": args.clusters, "extra": args.extra, "blocks": args.blocks}
        for peer, setting in asked:
            rows = process.measure(
                peer,
                setting,
                files,
                model=model,
                device=args.device,
                precision=args.precision,
                repeats=args.repeats,
                seconds=args.peer_seconds,
                environment={"OMP_NUM_THREADS": str(args.threads)},
            )
            for row in rows:
                keep(row)
    if not args.dry_run:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
