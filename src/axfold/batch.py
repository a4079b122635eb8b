"""Many proteins, models and seeds into a folder of results.

Everything that can be known to be wrong is found before a model is loaded. Then one protein follows another; one
that fails stops no other.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from axfold import __version__, options
from axfold.config import Config
from axfold.data import inputs
from axfold.data import templates as template_files
from axfold.data.query import Query
from axfold.data.templates import TemplateFeatures
from axfold.errors import AxfoldError, InputError
from axfold.output import files
from axfold.output.layouts import LAYOUTS
from axfold.output.prediction import WARNING
from axfold.output.records import Result
from axfold.output.results import Results, job_names
from axfold.progress import Event, FeaturesMade, PassDone, Step

if TYPE_CHECKING:
    from axfold.predictor import Predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `axfold predict` was asked for; see its --help. None is the preset's."""

    inputs: tuple[Path, ...]
    out: Path
    models: tuple[str, ...] = ()
    num_models: int | None = None
    params: str | None = None
    msa: Path | None = None
    templates: tuple[Path, ...] = ()
    template_mmcifs: Path | None = None
    max_template_date: date | None = None
    single_sequence: bool = False
    recycles: int | None = None
    tolerance: float | None = None
    max_msa: str | None = None
    ensembles: int | None = None
    seed: int = 0
    num_seeds: int = 1
    device: str = "auto"
    precision: str = "auto"
    layout: str = "colabfold"
    overwrite: bool = False
    save_recycles: bool = False
    save_representations: bool = False


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A protein that has not been finished: why, and during what."""

    name: str
    error: str
    stage: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A prediction that is on disk; `path` is its structure."""

    name: str
    result: Result
    path: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of all proteins."""

    finished: tuple[Finished, ...]
    failures: tuple[Failure, ...]


class Display(Protocol):
    """What the user sees while the batch runs."""

    def line(self, text: str) -> None:
        """Something happened."""

    def warning(self, text: str) -> None:
        """Something the user should know of."""

    def begin(self, title: str) -> None:
        """Another prediction begins."""

    def step(self, step: Step) -> None:
        """It goes on."""

    def end(self) -> None:
        """It has ended."""


def run(request: Options, display: Display) -> Outcome:
    """Fold all proteins, but what is finished already.

    Raises InputError and WeightsError where anything asked for can't be done; nothing has been computed then.
    """
    with ExitStack() as stack:
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        batch = _check(request)
        stack.enter_context(_logged(request.out / "log.txt", display))
        log.info("Running axfold %s", __version__)
        for warning in (*dict.fromkeys(str(item.message) for item in warned), *batch.warnings):
            log.warning("%s", warning)
        return batch.run(display)


@dataclass(frozen=True, kw_only=True)
class _Protein:
    query: Query
    results: Results


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """What has been checked."""

    request: Options
    configs: dict[str, Config]
    proteins: tuple[_Protein, ...]
    warnings: tuple[str, ...]

    def run(self, display: Display) -> Outcome:
        predictors: dict[str, Predictor] = {}
        finished: list[Finished] = []
        failures: list[Failure] = []
        count = sum(len(protein.results.missing) for protein in self.proteins)
        run = _Run(self.request, self.configs, predictors, display, count)
        for number, protein in enumerate(self.proteins, start=1):
            query, results = protein.query, protein.results
            log.info(
                "Query %d/%d: %s (length %d)", number, len(self.proteins), query.name, len(query.sequence)
            )
            try:
                run.protein(query, results)
            except AxfoldError as error:
                failures.append(Failure(name=query.name, error=str(error), stage=run.stage))
            except Exception as error:
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                failures.append(
                    Failure(
                        name=query.name, error=f"An unexpected error, see log.txt: {what}", stage=run.stage
                    )
                )
                log.debug("%s", traceback.format_exc())
            else:
                finished += [
                    Finished(name=query.name, result=result, path=results.structure(result))
                    for result in results.results
                ]
                continue
            finally:
                display.end()
            log.warning("%s failed (%s): %s", query.name, run.stage, failures[-1].error)
            _write_failures(self.request.out, failures)
        if not failures:
            _write_failures(self.request.out, failures)
        log.info("Done")
        return Outcome(finished=tuple(finished), failures=tuple(failures))


class _Run:
    """Where a batch is: `stage` says what is under way, for failures."""

    def __init__(
        self,
        request: Options,
        configs: dict[str, Config],
        predictors: dict[str, Predictor],
        display: Display,
        count: int,
    ):
        self.request, self.configs, self.predictors = request, configs, predictors
        self.display, self.count = display, count
        self.stage = ""
        self._number = 0

    def protein(self, query: Query, results: Results) -> None:
        """Fold what is missing of one protein."""
        missing = results.missing
        if results.finished:
            log.info("%s is finished already", query.name)
            return
        self.stage = "writing"
        results.start()
        missing = results.missing
        templates = self._templates(query, results, [model for model, _ in missing])
        for model, seed in missing:
            self._number += 1
            tag = results.tag(model, seed)
            self.display.begin(f"{query.name} {tag} ({self._number} of {self.count})")
            predictor = self._predictor(model)
            self.stage = "features"
            prediction = predictor.predict(
                query,
                seed=seed,
                recycles=self.request.recycles,
                tolerance=self.request.tolerance,
                max_msa=self.request.max_msa,
                ensembles=self.request.ensembles,
                templates=templates,
                keep_recycles=self.request.save_recycles,
                keep_representations=self.request.save_representations,
                report=lambda event, tag=tag: self._reported(tag, event),  # type: ignore[misc]
            )
            self.stage = "writing"
            results.write(prediction)
            log.info("%s took %.1fs (%d recycles)", tag, prediction.seconds, len(prediction.change))
            self.display.end()
        log.info("reranking models by 'plddt' metric")
        self.stage = "writing"
        for rank, result in enumerate(results.finish(), start=1):
            ptm = "" if result.ptm is None else f" pTM={result.ptm:.3g}"
            log.info("rank_%03d_%s pLDDT=%.3g%s", rank, result.tag, result.plddt, ptm)

    def _predictor(self, model: str) -> Predictor:
        """Loaded once and kept: a model takes longer to load than a small protein to fold."""
        if model not in self.predictors:
            from axfold.predictor import Predictor

            self.stage = "loading the model"
            self.predictors[model] = Predictor(
                model,
                params=self.request.params,
                device=self.request.device,
                precision=self.request.precision,
            )
        return self.predictors[model]

    def _templates(self, query: Query, results: Results, models: Sequence[str]) -> TemplateFeatures | None:
        """The templates that the query names, with a report on each."""
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
        own_folder = results.folder != self.request.out
        name = "templates.json" if own_folder else f"{results.job}_templates.json"
        files.write_json(results.folder / name, [asdict(report) for report in reports])
        log.info("%s: %d templates: %s", query.name, len(found.names), ", ".join(found.names) or "none")
        return found

    def _reported(self, tag: str, event: Event) -> None:
        match event:
            case FeaturesMade():
                self.stage = "network"
            case Step():
                self.display.step(event)
            case PassDone():
                change = "" if event.change is None else f" tol={event.change:.3g}"
                log.info("%s recycle=%d pLDDT=%.3g%s", tag, event.recycle, event.plddt, change)


def _check(request: Options) -> _Batch:
    """Read and check everything that does not need a model. Raises InputError and WeightsError."""
    from axfold.weights import source

    models = options.models(request.models, request.num_models)
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
    options.one_of("--layout", request.layout, tuple(LAYOUTS))
    queries, told = _queries(request, configs)
    files.make_folder(request.out)
    parameters = {model: source.find(model, request.params) for model in models}
    for model, found in parameters.items():
        with source.opened(found, configs[model]):
            pass  # names and shapes are checked
    if any(found.is_synthetic for found in parameters.values()):
        told.append(WARNING)
    precision, slow = _precision(request)
    told += slow
    first = configs[models[0]]
    settings = {
        "parameters": _parameters(request.params),
        "precision": precision,
        "recycles": first.recycles,
        "tolerance": first.tolerance,
        "ensembles": first.ensembles,
        "max_msa": request.max_msa,
        "max_template_date": request.max_template_date and request.max_template_date.isoformat(),
        "save_recycles": request.save_recycles,
        "save_representations": request.save_representations,
    }
    requests = [(model, seed) for seed in seeds for model in models]
    jobs = job_names([query.name for query in queries])
    layout = LAYOUTS[request.layout]
    proteins = [
        _Protein(
            query=query,
            results=layout(request.out, job, query, settings, requests, overwrite=request.overwrite),
        )
        for query, job in zip(queries, jobs, strict=True)
    ]
    return _Batch(request=request, configs=configs, proteins=tuple(proteins), warnings=tuple(told))


def _queries(request: Options, configs: dict[str, Config]) -> tuple[list[Query], list[str]]:
    """The proteins with what is to be used of their alignments and templates, and warnings."""
    if request.single_sequence and request.msa is not None:
        raise InputError("--single-sequence and --msa exclude each other: leave one out.")
    mmcifs = request.template_mmcifs
    if mmcifs is not None and not mmcifs.is_dir():
        raise InputError(f"--template-mmcifs {mmcifs}: there is no such folder.")
    told = []
    named = (*request.templates, *((mmcifs,) if mmcifs else ()))
    queries = inputs.read(request.inputs, msa=request.msa, templates=named)
    if request.single_sequence:
        queries = [replace(query, alignments=()) for query in queries]
    if mmcifs is not None:
        for i, query in enumerate(queries):
            if not any(path.suffix == ".hhr" for path in query.templates):
                told.append(f"{query.name}: no hhr says which structures of {mmcifs} to use as templates.")
                queries[i] = replace(query, templates=request.templates)
    without = [model for model, config in configs.items() if not config.data.templates]
    if named and without:
        told.append(f"{', '.join(without)}: takes no templates; models 1 and 2 do.")
    return queries, told


def _precision(request: Options) -> tuple[str, list[str]]:
    """The precision that "auto" means on the device, which is tried; and warnings."""
    from axfold import predictor

    device = predictor.find_device(request.device)
    name = str(predictor.find_dtype(request.precision, device)).removeprefix("torch.")
    slow = name == "bfloat16" and device.type == "cpu"
    return name, ["bf16 is slow on a CPU; fp32 is faster there."] if slow else []


def _parameters(params: str | None) -> str:
    """--params for the record."""
    if params is None:
        return "cache"
    word, _, seed = params.partition(":")
    return f"synthetic:{seed or 0}" if word == "synthetic" else str(Path(params).expanduser().resolve())


def _write_failures(out: Path, failures: Sequence[Failure]) -> None:
    path = out / "failures.json"
    if failures:
        files.write_json(path, [asdict(failure) for failure in failures])
    else:
        files.remove(path)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A disk that is full is told of where results are written."""


class _Console(logging.Handler):
    def __init__(self, display: Display):
        super().__init__(logging.INFO)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        show = self._display.warning if record.levelno >= logging.WARNING else self._display.line
        show(record.getMessage())


@contextmanager
def _logged(path: Path, display: Display) -> Iterator[None]:
    """axfold's log lines go to `path`, after those of earlier runs, and to the user."""
    try:
        handlers: tuple[logging.Handler, ...] = (_File(path, encoding="utf-8"), _Console(display))
    except OSError as error:
        raise files.failure(path, error) from error
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger("axfold")
    before = root.level
    root.setLevel(logging.DEBUG)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(before)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def table(outcome: Outcome) -> str:
    """The predictions, a line each, the columns aligned."""
    rows = [("protein", "model", "seed", "pLDDT", "pTM", "seconds", "file")]
    rows += [
        (
            item.name,
            item.result.model,
            str(item.result.seed),
            f"{item.result.plddt:.1f}",
            "-" if item.result.ptm is None else f"{item.result.ptm:.2f}",
            f"{item.result.seconds:.1f}",
            str(item.path),
        )
        for item in outcome.finished
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
