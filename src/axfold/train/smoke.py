"""The whole of training in minutes on a CPU: a store of four small proteins, which a tiny network learns by heart.

What it shows is that everything that training needs works on this machine: losses fall, and structures become those
that were given. `curve.csv` beside the structures is what is expected.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from axfold import config
from axfold.config import Data, Heads, Model, MsaStack, StructureModule, TriangleStack
from axfold.model.alphafold import AlphaFold
from axfold.model.layers import SharedDropout
from axfold.train import prepare, validate
from axfold.train.examples import Batch, Examples, HeldOut, stack
from axfold.train.initial import initialise
from axfold.train.loop import Trainer
from axfold.train.ranks import Ranks
from axfold.train.store import Store

STRUCTURES = Path(__file__).parent / "structures"
CURVE = STRUCTURES / "curve.csv"
STEPS = 400
EVERY = 50  # steps, after which the proteins are predicted and scored

_PAIR = TriangleStack(heads=2, c_attention=8, c_multiplication=16, transition_factor=2)
_STACK = MsaStack(blocks=1, heads=2, c_attention=8, c_outer_product=8, transition_factor=2, pair=_PAIR)
MODEL = Model(
    c_m=32,
    c_z=32,
    c_e=8,
    c_s=64,
    extra_stack=replace(_STACK, blocks=0, global_column_attention=True),
    evoformer=_STACK,
    structure=StructureModule(layers=4, heads=4, c_angles=32, dropout=0.0),
    heads=Heads(c_plddt=32),
)
TRAINING = config.Training(
    crop=48,
    msa_clusters=2,
    extra_msa=1,
    recycles=0,
    batch=4,
    at_once=4,
    learning_rate=3e-3,
    warm_up=200,
    clip=1.0,
    epsilon=1e-8,
    average=0.99,
    loss=config.Loss(masked_msa=0.5),
)


@dataclass(frozen=True)
class Point:
    """Of the curve: the mean loss of the step and, where they were predicted, the proteins' mean lDDT of C-alpha."""

    step: int
    loss: float
    lddt_ca: float | None


def run(steps: int = STEPS, seed: int = 0, every: int = EVERY) -> Iterator[Point]:
    """Train, and give a point for each step."""
    with tempfile.TemporaryDirectory(prefix="axfold-") as folder:
        place = Path(folder) / "store"
        prepare.prepare(prepare.Options(structures=(STRUCTURES,), out=place, workers=0))
        store = Store(place)
        data = Data(msa_clusters=TRAINING.msa_clusters, extra_msa=TRAINING.extra_msa)
        examples = Examples(
            store,
            data=data,
            crop=TRAINING.crop,
            recycles=TRAINING.recycles,
            batch=TRAINING.batch,
            seed=seed,
            sampling=config.Sampling(unclamped=1.0),  # at first everything is far from where it belongs
        )
        learned = HeldOut(store, data=data, crop=TRAINING.crop, recycles=0, seed=seed, split="train")
        network, scored = _network(), _network().eval().requires_grad_(False)
        initialise(network, seed)
        trainer = Trainer(network, TRAINING, seed=seed)
        batches = _batches(examples)
        for step in range(1, steps + 1):
            trainer.step(batches)
            (record,) = trainer.records()
            score = None
            if step % every == 0:
                for name, parameter in scored.named_parameters():
                    parameter.copy_(trainer.masters.view(trainer.optimizer.average, name))
                score = _score(scored, learned)
            yield Point(step, record.values["loss"], score)


def _network() -> AlphaFold:
    """Without dropout: what is learned by heart needs none."""
    network = AlphaFold(MODEL)
    for module in network.modules():
        if isinstance(module, SharedDropout):
            module.rate = 0.0
    return network


def _batches(examples: Examples) -> Iterator[Batch]:
    first = 0
    while True:
        yield stack([examples[i] for i in range(first, first + TRAINING.batch)])
        first += TRAINING.batch


def _score(network: AlphaFold, proteins: HeldOut) -> float:
    alone = [[i] for i in range(len(proteins))]
    scores = validate.validate(network, proteins, alone, stack, Ranks(torch.device("cpu")))
    return validate.mean(scores.values())["lddt_ca"]


def told(steps: int = STEPS) -> Iterator[str]:
    """The curve as text, line by line, beside the expected one."""
    start, know = time.monotonic(), {point.step: point for point in expected()}
    yield "  step      loss  expected   lDDT-CA  expected   seconds"
    for point in run(steps):
        if point.lddt_ca is None and point.step > 3:
            continue
        wanted = know.get(point.step, Point(point.step, float("nan"), None))
        scores = (f"{'' if x is None else format(x, '.3f'):>10}" for x in (point.lddt_ca, wanted.lddt_ca))
        yield f"{point.step:6}{point.loss:10.3f}{wanted.loss:10.3f}{''.join(scores)}{time.monotonic() - start:10.0f}"


def expected() -> list[Point]:
    """The curve that is kept with the structures."""
    with CURVE.open(newline="") as file:
        return [
            Point(int(row["step"]), float(row["loss"]), float(row["lddt_ca"]) if row["lddt_ca"] else None)
            for row in csv.DictReader(file)
        ]


def write(points: Iterator[Point], path: Path = CURVE) -> None:
    """Keep a curve: `python -m axfold.train.smoke`."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["step", "loss", "lddt_ca"])
        for point in points:
            score = "" if point.lddt_ca is None else f"{point.lddt_ca:.4f}"
            table.writerow([point.step, f"{point.loss:.5f}", score])
            file.flush()


if __name__ == "__main__":
    write(run())
