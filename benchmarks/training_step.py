"""Times a step of training as `axfold train run` does it, on made-up samples; writes benchmarks/results/training_step.

    python benchmarks/training_step.py --device cuda                            # model_1, both stages of the supplement
    python benchmarks/training_step.py --device cuda --models demo --stages demo
    python benchmarks/training_step.py --device cpu --models model_3 --crop 16 --rows 8:8 --blocks 1 --repeats 1

One micro-batch of the stage's `at_once` samples, none of them padded, in bfloat16 with float32 masters: `gradient` is
the pass that is trained on, forward and backward with the losses; `recycle` a pass before it; `update` clipping, Adam,
moving average and rounding, once a step. `sample` is what a sample takes on the average of 0 to 3 recycles, without the
update. Seconds are medians of the device's time; `peak` is the most memory that PyTorch has allocated at once.
"""

import argparse
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axfold.config import PRESETS, TRAININGS, Config, Data, Training
from axfold.data.features import FEATURES
from axfold.model.alphafold import AlphaFold
from axfold.train.initial import initialise
from axfold.train.labels import Labels, label
from axfold.train.loop import Trainer
from axfold.train.recompute import recompute
from machine import commit, device_name, file_name, write

RESULTS = Path(__file__).parent / "results" / "training_step"


def sample(data: Data, crop: int, at_once: int, device: torch.device) -> tuple[dict[str, Tensor], Labels]:
    """Features of a pass and labels, without padding: random types and rows, a random walk for a structure."""
    rng = np.random.default_rng(0)
    templates = data.templates
    sizes = {"N": crop, "S": data.msa_clusters - templates, "E": data.extra_msa, "T": templates}
    batch = (at_once,) if at_once > 1 else ()
    features = {}
    for name, feature in FEATURES.items():
        if not feature.read or (name.startswith("template_") and not templates):
            continue
        shape = (*batch, *(axis if isinstance(axis, int) else sizes[axis] for axis in feature.shape))
        if name.endswith("mask") or name.endswith("masks"):
            value = torch.ones((), device=device).expand(shape)
        elif name == "residue_index":
            value = torch.arange(crop, device=device).expand(shape)
        elif feature.classes:
            value = torch.as_tensor(rng.integers(0, min(feature.classes, 20), shape), device=device)
        else:
            value = torch.as_tensor(rng.random(shape, dtype=np.float32), device=device)
        features[name] = value
    steps = rng.standard_normal((*batch, crop, 1, 3)).astype(np.float32)
    positions = np.cumsum(2.2 * steps, axis=-3) + rng.standard_normal((*batch, crop, 37, 3)).astype(
        np.float32
    )
    rows = (*batch, sizes["S"], crop)
    known = label(
        features["aatype"],
        features["residue_index"],
        torch.ones((*batch, crop), device=device),
        torch.as_tensor(positions, device=device),
        torch.ones((*batch, crop, 37), device=device),
        torch.full(batch, 2.0, device=device),
        torch.ones(batch, device=device),
        torch.as_tensor(rng.integers(0, 20, rows), device=device),
        torch.as_tensor((rng.random(rows) < 0.15).astype(np.float32), device=device),
    )
    return features, known


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median of several, after two that don't count."""
    taken = []
    for i in range(repeats + min(repeats, 2)):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= min(repeats, 2):
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(
    model: Config, training: Training, again: bool, device: torch.device, repeats: int
) -> dict[str, Any]:
    """One row: seconds and memory of a micro-batch and of an update."""
    network = AlphaFold(model.model)
    initialise(network, 0)
    network.to(device)
    trainer = Trainer(network, training, precision=torch.bfloat16 if device.type == "cuda" else torch.float32)
    if again:
        recompute(network)
    data = replace(model.data, msa_clusters=training.msa_clusters, extra_msa=training.extra_msa)
    features, labels = sample(data, training.crop, training.at_once, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = {}
    for name, passes in (("gradient", 1), ("with_recycle", 2)):

        def work(passes: int = passes) -> None:
            trainer.masters.clear()
            trainer.find((features,) * passes, labels)

        found[name] = seconds(work, device, repeats)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    total = torch.zeros_like(trainer.masters.values)

    def update() -> None:
        factor = (training.clip / trainer.masters.norm()).clamp(max=1)
        trainer.masters.add_gradient(total, factor)
        trainer.optimizer.step(total, total.new_zeros(()))

    recycle = found.pop("with_recycle") - found["gradient"]
    micro_batch = found["gradient"] + recycle * training.recycles / 2
    return {
        **found,
        "recycle": recycle,
        "update": seconds(update, device, repeats),
        "sample": micro_batch / training.at_once,
        "peak": peak,
        "parameters": trainer.masters.parameters,
    }


def main() -> None:
    """Every model, stage and way of keeping what gradients need; one that fails leaves the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["model_1"])
    parser.add_argument("--stages", nargs="+", default=["initial", "fine_tuning"])
    parser.add_argument("--ways", nargs="+", default=["recomputed", "kept"])
    parser.add_argument("--crop", type=int)
    parser.add_argument("--rows", help="CLUSTERS:EXTRA")
    parser.add_argument("--blocks", type=int, help="of the Evoformer, instead of the model's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240, help="begin nothing more after so many")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, begun, rows = torch.device(args.device), time.monotonic(), []
    settings = [(m, s, w) for s in args.stages for m in args.models for w in args.ways]
    print(f"{device_name(device)}, torch {torch.__version__}", flush=True)
    print(
        f"{'model':12}{'stage':13}{'way':12}{'s/sample':>10}{'gradient':>10}{'recycle':>9}{'update':>9}{'GiB':>7}"
    )
    for name, stage, way in settings:
        model, training = PRESETS[name], TRAININGS[stage]
        training = replace(training, crop=args.crop or training.crop)
        if args.rows:
            clusters, extra = map(int, args.rows.split(":"))
            training = replace(training, msa_clusters=clusters, extra_msa=extra)
        if args.blocks:
            stack = replace(model.model.evoformer, blocks=args.blocks)
            model = replace(model, model=replace(model.model, evoformer=stack))
        row: dict[str, Any] = {
            "model": name,
            "stage": stage,
            "way": way,
            "crop": training.crop,
            "rows": [training.msa_clusters, training.extra_msa],
            "at_once": training.at_once,
        }
        if time.monotonic() - begun > args.seconds:
            row["failed"] = "not begun: the time was over"
        else:
            try:
                row |= measure(model, training, way == "recomputed", device, args.repeats)
            except Exception as error:  # its row says so, and the others are measured
                row["failed"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                traceback.print_exc(limit=3)
        rows.append(row)
        if "failed" in row:
            print(f"{name:12}{stage:13}{way:12}{row['failed']}", flush=True)
        else:
            memory = "" if row["peak"] is None else f"{row['peak'] / 2**30:7.1f}"
            times = f"{row['sample']:10.4f}{row['gradient']:10.4f}{row['recycle']:9.4f}{row['update']:9.4f}"
            print(f"{name:12}{stage:13}{way:12}{times}{memory}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    date = datetime.now().strftime("%Y-%m-%d")
    out = args.out or RESULTS / file_name(date, device, "step")
    result = {"device": device_name(device), "torch": torch.__version__, "commit": commit(), "rows": rows}
    write(out, result)
    print(out)


if __name__ == "__main__":
    main()
