"""A training from its options to a folder: `axfold train run`, `evaluate` and `export`."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from axfold import config, console, network, options
from axfold.errors import InputError
from axfold.model.alphafold import AlphaFold
from axfold.output import files
from axfold.train import checkpoint, validate
from axfold.train.examples import Example, Examples, HeldOut, stack
from axfold.train.feed import Feed, order, pack, together, unpack
from axfold.train.initial import initialise
from axfold.train.log import Log
from axfold.train.loop import DivergedError, Trainer
from axfold.train.ranks import Ranks, joined
from axfold.train.recompute import recompute
from axfold.train.step import recorded
from axfold.train.store import Store
from axfold.weights import files as weight_files
from axfold.weights.load import load
from axfold.weights.source import find

SCORE = "lddt_ca"
"""By the mean of which the best checkpoint is chosen."""
CROPS = (64, 128, 256, 512)
"""Residues to which held-out chains are padded, each to as few as hold it; longer ones are left out, and named."""
_DEEP = (
    16  # blocks from which on a network is large: what it keeps for the gradient, and several chains at once
)
_PRECISIONS = ("auto", "fp32", "tf32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user may set about a training; None is the default of the stage or of the model.

    steps: in all, those of earlier runs included; minutes: of this run
    start: parameters to begin with, as `--params` has them; None begins at random
    validate_every: steps; 0 never validates. save_every: minutes
    """

    store: Path
    out: Path
    model: str
    stage: str | None = None
    changes: dict[str, Any]  # of config.Training
    steps: int | None = None
    minutes: float | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    start: str | None = None
    recompute: bool | None = None
    workers: int | None = None
    validate_every: int = 1000
    validation_chains: int | None = None
    save_every: float = 5.0
    keep: int = 2
    compact: bool = False
    deterministic: bool = True


def configured(
    model: str, stage: str | None, changes: dict[str, Any]
) -> tuple[config.Config, config.Training]:
    """A model's configuration and how it is trained. Raises InputError."""
    wanted = options.configured(model)
    stage = stage or ("demo" if model == "demo" else "initial")
    options.one_of("--stage", stage, tuple(config.TRAININGS))
    training = config.TRAININGS[stage]
    training = replace(
        training,  # a small model is made for few rows
        msa_clusters=min(training.msa_clusters, wanted.data.msa_clusters),
        extra_msa=min(training.extra_msa, wanted.data.extra_msa),
        at_once=min(training.at_once, changes.get("at_once") or changes.get("batch") or training.at_once),
    )
    training = replace(training, **{name: value for name, value in changes.items() if value is not None})
    for field in fields(training):
        value = getattr(training, field.name)
        least = 0 if field.name in ("recycles", "warm_up", "average", "decay_after") else None
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, int | float) and not (value >= 0 if least == 0 else value > 0):
            raise InputError(f"{flag} {value}: give {'0 or more' if least == 0 else 'more than 0'}.")
    return wanted, training


def run(wanted: Options, display: console.Plain) -> Path:
    """Train until the steps or the minutes are over, or the process is asked to end; the last checkpoint's path.

    Where the folder has a checkpoint of the same configuration the run goes on from there. Raises InputError,
    WeightsError, AxfoldError; DivergedError where a number is not finite.
    """
    begun = time.monotonic()
    if wanted.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins
    model, training = configured(wanted.model, wanted.stage, wanted.changes)
    with joined(wanted.device) as ranks:
        share = training.at_once * ranks.size
        if training.batch % share:
            raise InputError(
                f"--batch {training.batch} is no multiple of {share}: {training.at_once} samples at once (--at-once) "
                f"in {ranks.size} process{'es' * (ranks.size > 1)}."
            )
        options.one_of("--precision", wanted.precision, _PRECISIONS)
        precision = network.find_precision(wanted.precision, ranks.device)
        store = Store(wanted.store)
        sizes = data_of(model, training)
        examples = Examples(
            store,
            data=sizes,
            crop=training.crop,
            recycles=training.recycles,
            batch=training.batch,
            seed=wanted.seed,
        )
        if ranks.first:
            files.make_folder(wanted.out)
        ranks.wait()
        configuration = checkpoint.configuration(
            model,
            training,
            sampling=asdict(examples.sampling),
            precision=precision,
            seed=wanted.seed,
            data=identity(wanted.store),
        )
        trainer = _trainer(wanted, model, training, precision, ranks)
        resumed = _resume(wanted.out, trainer, configuration, display if ranks.first else None)
        session = _Session(wanted, model, trainer, configuration, precision, store, begun, display)
        session.best = resumed
        with _arithmetic(precision, wanted.deterministic):
            return session.train(examples)


def data_of(model: config.Config, training: config.Training) -> config.Data:
    """How features are sampled in training."""
    return replace(model.data, msa_clusters=training.msa_clusters, extra_msa=training.extra_msa)


def identity(store: Path) -> dict[str, Any]:
    """What tells a store from another, wherever it lies."""
    head = json.loads((store / "store.json").read_bytes())
    return {name: head[name] for name in ("chains", "checksum")}


def _trainer(
    wanted: Options, model: config.Config, training: config.Training, precision: str, ranks: Ranks
) -> Trainer:
    made = AlphaFold(model.model)
    if wanted.start is None:
        initialise(made, wanted.seed)
    else:
        load(made, model, find(model.name, wanted.start))
    made.to(ranks.device)
    again = wanted.recompute or (wanted.recompute is None and model.model.evoformer.blocks >= _DEEP)
    trainer = Trainer(
        made,
        training,
        precision=torch.bfloat16 if precision == "bf16" else torch.float32,
        seed=wanted.seed,
        ranks=ranks,
        find=recorded if ranks.device.type == "cuda" and not again else None,
    )
    if again:
        recompute(made)
    return trainer


def _resume(
    folder: Path, trainer: Trainer, configuration: dict[str, Any], display: console.Plain | None
) -> float:
    """Go on from the last checkpoint of the folder, if there is one; the best score so far."""
    best = -math.inf
    if (folder / checkpoint.BEST).exists():
        found = checkpoint.about(folder / checkpoint.BEST)
        best = -math.inf if found.score is None else found.score
    if there := checkpoint.saved(folder):
        checkpoint.restore(there[-1], trainer, configuration)
        if display is not None:
            display.line(f"going on from {there[-1]}, step {trainer.steps:,}")
    return best


@contextmanager
def _arithmetic(precision: str, deterministic: bool) -> Iterator[None]:
    """float32 is multiplied as TF32 where that was asked for alone; sums are added up in the same order every time."""
    products, before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills: Any = torch.utils.deterministic
    filled = fills.fill_uninitialized_memory
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        fills.fill_uninitialized_memory = False  # nothing reads what it hasn't written
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.use_deterministic_algorithms(before, warn_only=warns)
        fills.fill_uninitialized_memory = filled


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C has come: the step is finished and written first. A second Ctrl-C ends at once."""
    asked = threading.Event()

    def ask(number: int, _: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Session:
    """A run under way."""

    def __init__(
        self,
        wanted: Options,
        model: config.Config,
        trainer: Trainer,
        configuration: dict[str, Any],
        precision: str,
        store: Store,
        begun: float,
        display: console.Plain,
    ):
        self.wanted, self.model, self.trainer, self.configuration = wanted, model, trainer, configuration
        self.precision, self.store, self.begun, self.display = precision, store, begun, display
        self.ranks, self.best = trainer.ranks, -math.inf
        self.log = Log(wanted.out, trainer.steps) if self.ranks.first else None
        self.workers = workers(wanted.workers, self.ranks)
        self._held: HeldOutChains | None = None
        self._evaluator: AlphaFold | None = None
        self._saved: tuple[int, float] = (trainer.steps, time.monotonic())
        self._validated = trainer.steps
        self._started: tuple[float, int] | None = None  # when the first step had ended, and its number
        self._waited = 0.0

    def train(self, examples: Examples) -> Path:
        trainer, training, ranks = self.trainer, self.trainer.training, self.ranks
        if self.wanted.validate_every:
            self._held = HeldOutChains(
                self.store,
                self.model,
                seed=self.wanted.seed,
                chains=self.wanted.validation_chains,
                tell=self._tell,
            )
        self._tell(
            f"{self.model.name}: {trainer.masters.parameters:,} parameters, {self.precision} on "
            f"{ranks.size} x {ranks.device.type}; {len(examples):,} chains to train on; {training.batch} samples a step"
        )
        places = order(trainer.steps, training.batch, training.at_once, ranks.rank, ranks.size)
        if ranks.first:
            self.display.begin(f"training {self.wanted.out.name}")
        try:
            with (
                _asked_to_end() as asked,
                Feed(examples, places, stack, ranks.device, workers=self.workers) as feed,
            ):
                self._steps(feed, asked)
        except DivergedError as error:
            raise self._explained(error, examples) from error
        finally:
            self.display.end()
            if self.log is not None:
                self.log.close()
        ranks.wait()
        there = checkpoint.saved(self.wanted.out)
        if ranks.first and there:
            self.display.line(f"{there[-1]}: {self._summary()}")
        return there[-1] if there else self.wanted.out

    def _steps(self, feed: Feed, asked: Callable[[], bool]) -> None:
        trainer, wanted = self.trainer, self.wanted
        ended_early, last = False, time.monotonic()
        while wanted.steps is None or trainer.steps < wanted.steps:
            now = time.monotonic()
            told = {
                "seconds": now - last,
                "waited": feed.waited,
                "ask_end": float(asked()),
                "ask_time": float(wanted.minutes is not None and now - self.begun >= wanted.minutes * 60),
                "ask_save": float(now - self._saved[1] >= wanted.save_every * 60),
            }
            last, feed.waited = now, 0.0
            try:
                trainer.step(feed, told)
            except (
                RuntimeError,
                OSError,
                StopIteration,
            ):  # workers were ended too: the step has changed nothing
                if not asked() or self.ranks.size > 1:
                    raise
                ended_early = True
                break
            asks = self._record(behind=1)
            validates = self._held is not None and trainer.steps % wanted.validate_every == 0
            ended_early, over = asks["ask_end"] > 0, asks["ask_time"] > 0
            if validates and not ended_early:
                self._validate()
                last = time.monotonic()
            elif asks["ask_save"] > 0:
                self._save()
            if ended_early or over:
                break
        self._record(behind=0)
        if self._held is not None and not ended_early and self._validated != trainer.steps:
            self._validate()
        elif self._saved[0] != trainer.steps:
            self._save()

    def _record(self, behind: int) -> dict[str, float]:
        """Tell of the steps that are done; what the processes ask for by then."""
        asks = dict.fromkeys(("ask_end", "ask_time", "ask_save"), 0.0)
        for record in self.trainer.records(behind):
            values = dict(record.values)
            for name in asks:
                asks[name] = max(asks[name], values.pop(name))
            if self._started is None:  # the first step also starts workers and loads kernels
                self._started = time.monotonic(), record.step
            else:
                self._waited += values["waited"]
            if self.log is not None:
                self.log.step(record.step, values)
            total = self.wanted.steps
            share = self._share(record.step)
            state = f"step {record.step:,}{'' if total is None else f'/{total:,}'}, loss {values['loss']:.3f}"
            if self.ranks.first:
                self.display.progress(share, f"{state}, {self._speed()}")
        return asks

    def _share(self, step: int) -> float:
        by_steps = step / self.wanted.steps if self.wanted.steps else 0.0
        minutes = self.wanted.minutes
        by_time = (time.monotonic() - self.begun) / (60 * minutes) if minutes else 0.0
        return min(max(by_steps, by_time), 1.0)

    def _speed(self) -> str:
        start, step = self._started or (time.monotonic(), self.trainer.steps)
        elapsed, done = time.monotonic() - start, self.trainer.steps - step
        if not done or elapsed <= 0:
            return "no speed yet"
        samples = done * self.trainer.training.batch / elapsed
        return f"{samples:.1f} samples/s, {self._waited / elapsed:.1%} waiting for data"

    def _summary(self) -> str:
        best = f", best {SCORE} {self.best:.4f}" if math.isfinite(self.best) else ""
        return f"step {self.trainer.steps:,}, {self._speed()}{best}"

    def _validate(self) -> None:
        """Score the moving average on held-out chains, and save."""
        self._record(behind=0)  # a step that failed is not validated
        held, trainer = self._held, self.trainer
        assert held is not None
        start = time.monotonic()
        if self._evaluator is None:
            self._evaluator = evaluator(self.model, self.precision, self.ranks.device)
        with torch.no_grad():
            for name, parameter in self._evaluator.named_parameters():
                parameter.copy_(trainer.masters.view(trainer.optimizer.average, name))
        scores = held.scores(self._evaluator, self.ranks, self.workers)
        means = validate.mean(scores.values())
        seconds = time.monotonic() - start
        if self._started is not None:  # the speed is that of steps alone
            begun, step = self._started
            self._started = begun + seconds, step
        self._validated = trainer.steps
        samples = float(trainer.steps * trainer.training.batch)
        if self.log is not None:
            self.log.validated(trainer.steps, {"samples": samples, **means, "seconds": seconds})
        self._tell(
            f"step {trainer.steps:,}: lDDT of C-alpha {means['lddt_ca']:.4f}, GDT_TS {means['gdt_ts']:.4f}, "
            f"TM {means['tm']:.4f} of {len(scores)} held-out chains ({seconds:.0f} s); {self._speed()}"
        )
        better = means[SCORE] > self.best
        self.best = max(self.best, means[SCORE]) if not math.isnan(means[SCORE]) else self.best
        self._save(score=means[SCORE], best=better)

    def _save(self, score: float | None = None, best: bool = False) -> None:
        self._record(behind=0)  # raises where a number was not finite: what is on disk stays
        self._saved = self.trainer.steps, time.monotonic()
        if not self.ranks.first:
            return
        if self.log is not None:
            self.log.flush()
        checkpoint.save(
            self.wanted.out,
            self.trainer,
            self.configuration,
            score=score if score is None or math.isfinite(score) else None,
            keep=self.wanted.keep,
            best=best,
            compact=self.wanted.compact,
        )

    def _explained(self, error: DivergedError, examples: Examples) -> DivergedError:
        """Which tensor was the first, and what is left."""

        def example_at(indices: list[int]) -> Any:
            packed = pack(together([examples[i] for i in indices], stack))
            return unpack(replace(packed, buffer=packed.buffer.to(self.ranks.device)))

        found = [text for text in self.ranks.texts(self.trainer.diagnose(error.step, example_at)) if text]
        what = found[0] if found else "a number was not finite, but not again when the step was repeated"
        there = checkpoint.saved(self.wanted.out)
        left = f"The last good state is {there[-1]}" if there else "No checkpoint was written yet"
        return DivergedError(error.step, f"{what}. {left}; try a lower --learning-rate, or --precision fp32")

    def _tell(self, text: str) -> None:
        if self.ranks.first:
            self.display.line(text)


def workers(wanted: int | None, ranks: Ranks) -> int:
    """Processes that make samples: by default the cores that there are, shared by the ranks, but for one each."""
    if wanted is not None:
        return wanted
    return max((len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2) // ranks.size - 1, 0)


def evaluator(model: config.Config, precision: str, device: torch.device) -> AlphaFold:
    """A network for inference, whose parameters are to be filled in."""
    made = AlphaFold(model.model).to(device)
    return network.in_precision(made, precision).requires_grad_(False).eval()


class HeldOutChains(Dataset[Example]):
    """The chains of a split, each padded to as few residues of CROPS as hold it, and which are predicted together."""

    def __init__(
        self,
        store: Store,
        model: config.Config,
        *,
        split: str = "valid",
        seed: int = 0,
        chains: int | None = None,
        tell: Callable[[str], None],
    ):
        """chains: at most so many, evenly over the lengths; tell: is told of what is left out"""
        parts = [
            HeldOut(store, data=model.data, crop=crop, recycles=model.recycles, seed=seed, split=split)
            for crop in CROPS
        ]
        taken: set[int] = set()
        self.items: list[tuple[HeldOut, int]] = []
        for part in parts:
            new = [(i, place) for i, place in enumerate(part.places) if place not in taken]
            taken |= {place for _, place in new}
            self.items += [(part, i) for i, _ in new]
        if longer := parts[-1].longer:
            tell(
                f"{len(longer)} held-out chains of more than {CROPS[-1]} residues are left out: {longer[0]}, ..."
            )
        if not self.items:
            raise InputError(f"{store.path}: it has no chains of the split {split}.")
        if chains is not None and chains < len(self.items):
            self.items = [self.items[i * len(self.items) // chains] for i in range(chains)]
            tell(f"validation on {len(self.items)} of the held-out chains")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Example:
        part, i = self.items[place]
        return part[i]

    def name(self, place: int) -> str:
        """Of a chain."""
        part, i = self.items[place]
        return part.store.rows[part.places[i]].name

    def scores(
        self,
        evaluated: AlphaFold,
        ranks: Ranks,
        workers: int,
        report: Callable[[float], None] = lambda share: None,
    ) -> dict[str, validate.Score]:
        """By the chains' names."""
        pairs = validate.PAIRS if len(evaluated.trunk.evoformer.blocks) < _DEEP else 0
        order = validate.groups([part.crop for part, _ in self.items], pairs)
        found = validate.validate(evaluated, self, order, stack, ranks, workers=workers, report=report)
        return {self.name(place): score for place, score in found.items()}


def evaluate(
    path: str,
    store: Path,
    *,
    model: str | None,
    split: str,
    out: Path | None,
    device: str,
    precision: str,
    processes: int | None,
    chains: int | None,
    display: console.Plain,
) -> str:
    """Score a checkpoint's moving average, or any parameters of `model`, on a split; a table of means.

    path: a checkpoint, a run's folder (of which the best is taken), or what `--params` takes
    out: a file for all scores, as JSON
    """
    with joined(device) as ranks:
        precision = network.find_precision(precision, ranks.device)
        checked = _checkpoint(Path(path)) if model is None or Path(path).is_dir() else None
        if checked is None and model is None:
            raise InputError(
                f"{path}: this is no checkpoint; say with --model which model's parameters it holds."
            )
        if checked is not None:
            wanted = _model_of(checked, checkpoint.about(checked))
        else:
            assert model is not None
            wanted = options.configured(model)
        scored = evaluator(wanted, "fp32", torch.device("cpu"))
        if checked is not None:
            parameters = dict(scored.named_parameters())
            for name, value in checkpoint.averaged(checked, list(parameters)):
                parameters[name].copy_(value)
        else:
            load(scored, wanted, find(wanted.name, path))
        scored = network.in_precision(scored.requires_grad_(False).eval().to(ranks.device), precision)

        def tell(text: str) -> None:
            if ranks.first:
                display.line(text)

        held = HeldOutChains(Store(store), wanted, split=split, chains=chains, tell=tell)
        if ranks.first:
            display.begin(f"{wanted.name} on {split}")

        def report(share: float) -> None:
            if ranks.first:
                display.progress(share, f"{share:.0%} of the chains")

        scores = held.scores(scored, ranks, workers(processes, ranks), report)
        display.end()
        classes = validate.by_class(scores)
        if out is not None and ranks.first:
            content = {
                "parameters": str(checked or path),
                "model": wanted.name,
                "split": split,
                "precision": precision,
                "means": classes,
                "chains": {name: asdict(score) for name, score in scores.items()},
            }
            files.write_json(out, _without_nan(content))
        return table(classes)


def table(classes: dict[str, dict[str, float]]) -> str:
    """Means of classes of chains, as text."""
    names = ("lddt_ca", "lddt", "gdt_ts", "gdt_ha", "tm", "rmsd", "plddt")
    rows: list[Sequence[str]] = [("", "chains", *names)]
    for name, means in classes.items():
        rows.append((name, f"{means['chains']:.0f}", *(f"{means[key]:.4f}" for key in names)))
    return console.columns([tuple(row) for row in rows])


def _without_nan(tree: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(tree, dict):
        return {key: _without_nan(value) for key, value in tree.items()}
    return None if isinstance(tree, float) and math.isnan(tree) else tree


def _checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path names: a file, or of a run's folder the best, else the last. None where it is none."""
    if path.is_dir():
        best = path / checkpoint.BEST
        there = [best] if best.exists() else checkpoint.saved(path)[-1:]
        return there[0] if there else None
    if path.suffix != ".safetensors":
        return None
    try:
        checkpoint.about(path)
    except InputError:
        if not path.exists():
            raise
        return None
    return path


def _model_of(path: Path, about: checkpoint.About) -> config.Config:
    name = about.configuration["model"]["name"]
    model = config.PRESETS.get(name)
    if (
        model is None
        or checkpoint.configuration(model, config.Training())["model"] != about.configuration["model"]
    ):
        raise InputError(f"{path}: its model, {name}, is not the one of that name in this axfold.")
    return model


def export(
    path: Path, out: Path, *, half: bool = False, licence: str = "that of whoever trained them"
) -> str:
    """Write the moving average of a checkpoint, or of a run's best, as parameters that `--params` reads.

    half: as float16, which takes half of the disk and rounds to 11 bits
    """
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the file to write must end in .safetensors.")
    found = _checkpoint(path)
    if found is None:
        raise InputError(f"{path}: there is no checkpoint of `axfold train run`.")
    about = checkpoint.about(found)
    model = _model_of(found, about)
    with torch.device("meta"):
        names = [name for name, _ in AlphaFold(model.model).named_parameters()]
    metadata = {
        "model": model.name,
        "source": f"axfold train, step {about.step}",
        "licence": licence,
    }
    tensors = checkpoint.as_numpy(found, names)
    if half:
        tensors = {name: value.astype(np.float16) for name, value in tensors.items()}
        if wide := [name for name, value in tensors.items() if not np.isfinite(value).all()]:
            raise InputError(f"{path}: {wide[0]} passes the range of float16: leave --half out.")
    weight_files.write(out, tensors, metadata)
    score = "" if about.score is None else f", validated lDDT of C-alpha {about.score:.4f}"
    return f"{out}: {model.name}, step {about.step:,}{score}"
