"""Many proteins, models and seeds into a folder of results.

Everything that can be known to be wrong is found before a model is loaded. Then one protein follows another; one
that fails stops no other, and what is on disk is not done again.
"""

from __future__ import annotations

import logging
import operator
import os
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from axfold import __version__, options
from axfold.ahead import Ahead
from axfold.config import Config
from axfold.console import Plain, columns, logged
from axfold.data import inputs, pipelines
from axfold.data import templates as template_files
from axfold.data.features import Features
from axfold.data.query import Query
from axfold.data.templates import TemplateFeatures
from axfold.errors import AxfoldError, InputError
from axfold.output import files
from axfold.output.layouts import LAYOUTS
from axfold.output.prediction import WARNING
from axfold.output.records import Result
from axfold.output.results import Results, job_names
from axfold.progress import Event, FeaturesMade, PassDone, Planned, Step
from axfold.weights import registry
from axfold.writing import Writers, Writing

if TYPE_CHECKING:
    from axfold.predictor import Predictor

log = logging.getLogger(__name__)

AHEAD = 2  # predictions whose features are made while another one runs
WRITERS = max(1, min(8, (os.cpu_count() or 1) // 2))  # processes
MOST_RESIDUES = 768  # of a protein whose features are made ahead: all samples of them lie in memory


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `axfold predict` was asked for; its --help explains each. None is what the preset has."""

    inputs: tuple[Path, ...]
    out: Path
    models: tuple[str, ...] = ()
    num_models: int | None = None
    params: str | None = None
    msa: Path | None = None
    single_sequence: bool = False
    templates: tuple[Path, ...] = ()
    template_mmcifs: Path | None = None
    max_template_date: date | None = None
    recycles: int | None = None
    tolerance: float | None = None
    max_msa: str | None = None
    ensembles: int | None = None
    seed: int = 0
    num_seeds: int = 1
    device: str = "auto"
    precision: str = "auto"
    memory_budget: str | None = None
    profile: Path | None = None
    layout: str = "colabfold"
    overwrite: bool = False
    save_recycles: bool = False
    save_representations: bool = False


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A protein that is not finished: why, and during what."""

    name: str
    error: str
    stage: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A prediction on disk; `path` is its structure."""

    name: str
    result: Result
    path: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of all proteins."""

    finished: tuple[Finished, ...]
    failures: tuple[Failure, ...]


def table(outcome: Outcome) -> str:
    """The predictions, a line each, and the proteins that failed."""
    rows = [("protein", "model", "seed", "pLDDT", "pTM", "seconds", "file")]
    for item in outcome.finished:
        result = item.result
        ptm = "" if result.ptm is None else f"{result.ptm:.2f}"
        scores = f"{result.plddt:.1f}", ptm, f"{result.seconds:.1f}"
        rows.append((item.name, result.model, str(result.seed), *scores, str(item.path)))
    failed = [f"failed: {failure.name} ({failure.stage}): {failure.error}" for failure in outcome.failures]
    return "\n".join(([columns(rows)] if outcome.finished else []) + failed)


def run(request: Options, display: Plain) -> Outcome:
    """Fold what is not on disk yet. `failures.json` in the folder of results lists what could not be.

    Raises InputError and WeightsError where what is asked for can't be done; then nothing has been computed.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        batch, told = _check(request, display)
    told = [*(str(warning.message) for warning in warned), *told]
    with logged(request.out / "log.txt", display):
        log.info("Running axfold %s", __version__)
        for text in dict.fromkeys(told):
            log.warning("%s", text)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _log  # of a kernel that does not work here
                return batch.run()
        except KeyboardInterrupt:
            log.info("Interrupted")
            raise
        finally:
            display.end()


def _log(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line of the log."""
    log.warning("%s", message)


class _Batch:
    """Proteins that have been checked, and how far they are; `stage` says what is under way."""

    def __init__(
        self,
        request: Options,
        configs: dict[str, Config],
        proteins: Sequence[tuple[Query, Results]],
        display: Plain,
    ):
        self.request, self.configs, self.proteins, self.display = request, configs, proteins, display
        self.stage = "start"
        self._predictors: dict[str, Predictor] = {}
        self._profiles: dict[str, object] = {}
        self._fitting: dict[str, list[tuple[int, int, int]]] = {}  # residues, rows and templates that fit
        self._finished: list[Finished] = []
        self._failures: list[Failure] = []
        self._writers: Writers | None = None  # None: this process writes
        self._unwritten: deque[tuple[Query, Writing]] = deque()
        self._ahead: dict[tuple[str, str, int], Ahead[Features]] = {}
        self._upcoming: deque[tuple[Query, str, str, int]] = deque()

    def run(self) -> Outcome:
        """Protein by protein. Beside a device of its own, the CPU makes features ahead and writes behind it."""
        report = self.request.out / "failures.json"
        files.remove(report)  # an earlier run's
        with self._beside_the_device():
            for number, (query, results) in enumerate(self.proteins, start=1):
                length = len(query.sequence)
                log.info("Query %d/%d: %s (length %d)", number, len(self.proteins), query.name, length)
                with self._failing(query):
                    self._protein(query, results)
                self._forget(results.job)
                while self._writers and len(self._unwritten) > self._writers.processes:
                    self._written()
            while self._unwritten:
                self._written()
        log.info("Done")
        place = {query.name: number for number, (query, _) in enumerate(self.proteins)}
        return Outcome(
            finished=tuple(sorted(self._finished, key=lambda item: place[item.name])),
            failures=tuple(sorted(self._failures, key=lambda item: place[item.name])),
        )

    @contextmanager
    def _failing(self, query: Query) -> Iterator[None]:
        """A protein that fails stops no other."""
        try:
            yield
            return
        except AxfoldError as error:
            reason = str(error)
        except Exception as error:  # a defect, or a device that fails: the next protein may do well
            reason = f"An unexpected error, see log.txt: {type(error).__name__}: {error}".splitlines()[0]
            log.debug("%s", traceback.format_exc())
        self.display.end()
        log.error("%s failed (%s): %s", query.name, self.stage, reason)
        self._failures.append(Failure(name=query.name, error=reason, stage=self.stage))
        report = self.request.out / "failures.json"
        files.write_json(report, [asdict(failure) for failure in self._failures])

    @contextmanager
    def _beside_the_device(self) -> Iterator[None]:
        """Where the network runs on a GPU: threads that make features, and processes that write."""
        todo = [
            (query, results.job, model, seed)
            for query, results in self.proteins
            if not results.finished
            for model, seed in results.missing
        ]
        if len(todo) > 1 and self._overlaps():
            self._writers = Writers(WRITERS)
            self._upcoming.extend(todo)
        try:
            yield
        finally:
            for ahead in self._ahead.values():
                ahead.close()
            for _, writing in self._unwritten:  # an interruption: what is folded is written
                writing.stop()
            for _, writing in self._unwritten:
                with suppress(Exception):
                    writing.wait()
            if self._writers is not None:
                self._writers.close()

    def _overlaps(self) -> bool:
        """Whether the CPU has nothing else to do than to serve a device."""
        from axfold import network

        return network.find_device(self.request.device).type == "cuda"

    def _written(self) -> None:
        """Wait for the protein that has waited longest to be on disk."""
        query, writing = self._unwritten.popleft()
        with self._failing(query):
            try:
                results = writing.wait()
            finally:
                self.stage = writing.stage
                self.display.end()
                for level, text in writing.messages:
                    log.log(level, "%s", text)
            log.info("%s: reranking models by 'plddt' metric", query.name)
            self._ranked(query, results)

    def _ranked(self, query: Query, results: Results) -> None:
        for rank, result in enumerate(results.results, start=1):
            ptm = "" if result.ptm is None else f" pTM={result.ptm:.3g}"
            log.info("rank_%03d_%s pLDDT=%.3g%s", rank, result.tag, result.plddt, ptm)
        self._finish(query, results)

    def _finish(self, query: Query, results: Results) -> None:
        self._finished += [
            Finished(name=query.name, result=result, path=results.structure(result))
            for result in results.results
        ]

    def _features(self, job: str, model: str, seed: int) -> Ahead[Features] | None:
        """The features of a prediction where they are made ahead; those of the next ones are begun."""
        while self._upcoming and len(self._ahead) <= AHEAD:
            query, next_job, next_model, next_seed = self._upcoming.popleft()
            # templates are read when it is their turn, and the features of a long protein take much memory
            if query.templates or len(query.sequence) > MOST_RESIDUES:
                continue
            config = self.configs[next_model]
            passes = (config.recycles + 1) * config.ensembles
            make = partial(_samples, query, config, next_seed, passes)
            self._ahead[next_job, next_model, next_seed] = Ahead(make, depth=passes)
        return self._ahead.pop((job, model, seed), None)

    def _forget(self, job: str) -> None:
        """A protein is done with, perhaps by a failure: nothing is to be made for it any more."""
        for key in [key for key in self._ahead if key[0] == job]:
            self._ahead.pop(key).close()
        while self._upcoming and self._upcoming[0][1] == job:
            self._upcoming.popleft()

    def _protein(self, query: Query, results: Results) -> None:
        """Fold what is missing of one protein, then rank."""
        if results.finished:
            log.info("%s is finished already", query.name)
            self._finish(query, results)
            return
        missing = results.missing
        self.stage = "planning"
        for model in dict.fromkeys(model for model, _ in missing):
            self._plan(query, self.configs[model])
        self.stage = "writing"
        # the device would wait for the disk; a report on templates needs the folder at once
        later = self._writers is not None and not query.templates
        if not later:
            results.start()
        start = time.perf_counter()
        templates = self._templates(query, results, [model for model, _ in missing])
        features_seconds = time.perf_counter() - start
        writing = None
        if self._writers is not None:
            writing = Writing(results, self._writers, begin=later)
            self._unwritten.append((query, writing))
        try:
            self._fold(query, results, missing, templates, writing)
        except BaseException:  # an interruption too: what is half done is let go, and it goes on
            if writing is not None and self._unwritten and self._unwritten[-1][1] is writing:
                self._unwritten.pop()
                writing.stop()
                with suppress(Exception):
                    writing.wait()
            raise
        if writing is not None:
            writing.finish(features_seconds)
            return
        log.info("reranking models by 'plddt' metric")
        self.stage = "ranking"
        results.finish(features_seconds=features_seconds)
        self._ranked(query, results)

    def _fold(
        self,
        query: Query,
        results: Results,
        missing: Sequence[tuple[str, int]],
        templates: TemplateFeatures | None,
        writing: Writing | None,
    ) -> None:
        """The predictions that are missing, each written once it is there."""
        for number, (model, seed) in enumerate(missing, start=1):
            tag = results.tag(model, seed)
            self.display.begin(f"{query.name} {model} seed {seed} ({number}/{len(missing)})")
            predictor = self._predictor(model, query)
            self.stage = "features"
            samples = self._features(results.job, model, seed)
            with self._profiled(predictor, f"{query.name} {tag}"), samples or nullcontext():
                prediction = predictor.predict(
                    query,
                    seed=seed,
                    recycles=self.request.recycles,
                    tolerance=self.request.tolerance,
                    max_msa=self.request.max_msa,
                    ensembles=self.request.ensembles,
                    templates=templates,
                    samples=samples,
                    keep_recycles=self.request.save_recycles,
                    keep_representations=self.request.save_representations,
                    report=lambda event, tag=tag: self._reported(tag, event),  # type: ignore[misc]
                )
            self.stage = "writing"
            if writing is None:
                results.write(prediction)
            else:
                writing.put(prediction)
            self.display.end()
            log.info("%s took %.1fs (%d recycles)", tag, prediction.seconds, len(prediction.change))

    def _plan(self, query: Query, config: Config) -> None:
        """Refuse a protein for which no plan has the memory before its model is loaded. Raises DoesNotFit."""
        from axfold import network, planning

        rows = sum(len(alignment.sequences) for alignment in query.alignments)
        size = len(query.sequence), rows, len(query.templates)
        if any(all(map(operator.le, size, other)) for other in self._fitting.get(config.name, ())):
            return  # it is nowhere larger than one that fits, and planning takes longer than a block of the network
        device = network.find_device(self.request.device)
        precision = network.find_precision(self.request.precision, device)
        memory = planning.find_memory(device, self.request.memory_budget)
        planning.choose(planning.sizes_before(query, config, precision, device), memory)
        self._fitting.setdefault(config.name, []).append(size)

    @contextmanager
    def _profiled(self, predictor: Predictor, name: str) -> Iterator[None]:
        """Measure a prediction and write it beside those before, if that is asked for."""
        if self.request.profile is None:
            yield
            return
        from axfold.memory.meter import Meter

        with Meter(predictor.network, predictor.device, bus=predictor.bus) as meter:
            yield
        self._profiles[name] = meter.as_dict()
        files.write_json(self.request.profile, self._profiles)

    def _predictor(self, model: str, query: Query) -> Predictor:
        """Kept, since a model takes longer to load than a small protein to fold. query: what it folds first"""
        if model not in self._predictors:
            from axfold.predictor import Predictor

            self.stage = "loading the model"
            self._predictors[model] = Predictor(
                model,
                params=self.request.params,
                device=self.request.device,
                precision=self.request.precision,
                memory_budget=self.request.memory_budget,
                graphs=next((one.graphs for one in self._predictors.values()), None),
                first=None if self._predictors else query,
            )
        return self._predictors[model]

    def _templates(self, query: Query, results: Results, models: Sequence[str]) -> TemplateFeatures | None:
        """The templates that the query names, for models that take them, with a report on each."""
        limit = max((self.configs[model].data.templates for model in models), default=0)
        if not query.templates or not limit:
            return None
        self.stage = "templates"
        found, reports = template_files.read(
            query.sequence, query.templates, limit=limit, max_date=self.request.max_template_date
        )
        for report in reports:
            if not report.used:
                log.warning("%s: template %s is not used: %s", query.name, report.name, report.reason)
        shared = results.folder == self.request.out
        name = f"{results.job}_templates.json" if shared else "templates.json"
        files.write_json(results.folder / name, [asdict(report) for report in reports])
        log.info("%s: templates used: %s", query.name, ", ".join(found.names) or "none")
        return found

    def _reported(self, tag: str, event: Event) -> None:
        match event:
            case FeaturesMade():
                self.stage = "network"
            case Planned():
                self.display.end()
                log.info("%s plan: %s", tag, event.text)
            case Step():
                self.display.step(event)
            case PassDone():
                change = "" if event.change is None else f" tol={event.change:.3g}"
                log.info("%s recycle=%d pLDDT=%.3g%s", tag, event.recycle, event.plddt, change)


def _samples(query: Query, config: Config, seed: int, passes: int) -> Iterator[Features]:
    return islice(pipelines.monomer_samples(query, config, seed), passes)


def _check(request: Options, display: Plain) -> tuple[_Batch, list[str]]:
    """Everything that can be checked without a model, and what to warn of. Raises InputError and WeightsError."""
    stand_in = registry.stand_in() if request.params is None else None
    models = options.models(request.models, request.num_models, stand_in or options.DEFAULT_MODEL)
    seeds = options.seeds(request.seed, request.num_seeds)
    configs = {
        model: options.configured(
            model,
            recycles=request.recycles,
            tolerance=request.tolerance,
            max_msa=request.max_msa,
            ensembles=request.ensembles,
        )
        for model in models
    }
    options.one_of("--precision", request.precision, options.PRECISIONS)
    layout = LAYOUTS[options.one_of("--layout", request.layout, tuple(LAYOUTS))]
    queries, told = _queries(request, configs)
    told += _check_parameters(request, configs)
    if stand_in and not request.models and request.num_models is None:
        told.append(registry.SMALL)
    precision, slow = _precision(request)
    told += slow
    settings = _settings(request, configs[models[0]], precision)
    requests = [(model, seed) for seed in seeds for model in models]
    proteins = [
        (query, layout(request.out, job, query, settings, requests, overwrite=request.overwrite))
        for query, job in zip(queries, job_names([query.name for query in queries]), strict=True)
    ]
    return _Batch(request, configs, proteins, display), told


def _queries(request: Options, configs: dict[str, Config]) -> tuple[list[Query], list[str]]:
    """The proteins, with what is to be used of their alignments and templates; and warnings."""
    if request.single_sequence and request.msa is not None:
        raise InputError("--single-sequence and --msa exclude each other: leave one out.")
    folder = request.template_mmcifs
    if folder is not None and not folder.is_dir():
        raise InputError(f"--template-mmcifs {folder}: there is no such folder.")
    named = request.templates if folder is None else (*request.templates, folder)
    queries = inputs.read(request.inputs, msa=request.msa, templates=named)
    told = []
    if request.single_sequence:
        queries = [replace(query, alignments=()) for query in queries]
    if folder is not None:
        for i, query in enumerate(queries):
            if not any(path.suffix == ".hhr" for path in query.templates):
                told.append(f"{query.name}: there is no hhr that says which structures of {folder} to use.")
                queries[i] = replace(query, templates=request.templates)
    without = [model for model, config in configs.items() if not config.data.templates]
    if named and without:
        told.append(f"Templates are not used by {', '.join(without)}; models 1 and 2 use them.")
    return queries, told


def _check_parameters(request: Options, configs: dict[str, Config]) -> list[str]:
    """Whether there are parameters of every model, by their names and shapes; warnings."""
    from axfold.weights import source

    found = {model: source.find(model, request.params) for model in configs}
    for model, parameters in found.items():
        with source.opened(parameters, configs[model]):
            pass  # opening checks them
    return [WARNING] if any(parameters.is_synthetic for parameters in found.values()) else []


def _precision(request: Options) -> tuple[str, list[str]]:
    """The precision on the device, which is tried; warnings."""
    from axfold import network, planning

    device = network.find_device(request.device)
    planning.find_memory(device, request.memory_budget)  # raises what is wrong with the budget
    precision = network.find_precision(request.precision, device)
    slow = precision in ("bf16", "fp16") and device.type == "cpu"
    if precision != request.precision == "tf32":
        return precision, ["This device has no TF32: precision fp32 is used."]
    return precision, [f"On a CPU {precision} saves memory, but is mostly slower than fp32."] if slow else []


def _settings(request: Options, config: Config, precision: str) -> dict[str, object]:
    """What decides the results beside model, seed and input; equal where an interrupted run may be continued."""
    day = request.max_template_date
    return {
        "parameters": _parameters(request.params),
        "precision": precision,
        "recycles": config.recycles,
        "tolerance": config.tolerance,
        "ensembles": config.ensembles,
        "max_msa": request.max_msa or "of the model",
        "max_template_date": day and day.isoformat(),
        "save_recycles": request.save_recycles,
        "save_representations": request.save_representations,
    }


def _parameters(params: str | None) -> str:
    """What --params says, wherever the command is run."""
    if params is None:
        return "cache"
    word, _, seed = params.partition(":")
    return f"synthetic:{int(seed or 0)}" if word == "synthetic" else str(Path(params).expanduser().resolve())
