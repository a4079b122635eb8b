"""The results of one protein on disk: what is there, what is missing, and how it is written so that nothing is lost.

The names of the files are a layout's, see `layouts`.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from axfold.data.query import Query
from axfold.errors import AxfoldError, InputError
from axfold.output import alignment, files, pdb, records
from axfold.output.prediction import Prediction
from axfold.output.records import Record, Result

log = logging.getLogger(__name__)

Request = tuple[str, int]
"""A model's name and a seed."""

Content = str | bytes | np.ndarray | Mapping[str, np.ndarray]
"""What a file holds: text, a picture, an array (.npy) or arrays by name (.npz)."""

_PIECE = 1 << 24  # letters that are encoded at once: errors of a long protein are a large text
_LONGEST_JOB = 120  # letters; file systems stop at 255, and the longest ending has about 70


def job_names(names: Sequence[str]) -> list[str]:
    """A name for the files of each protein: what isn't a letter of ASCII, a digit or one of _.- becomes _.

    Names that would be equal, on file systems that ignore case too, are numbered from the second on.
    """
    jobs: list[str] = []
    taken: set[str] = set()
    for name in names:
        # neither hidden, nor an option, nor the folder itself or its parent
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:_LONGEST_JOB]
        stem = re.sub(r"^[.-]+", lambda start: "_" * len(start[0]), stem) or "_"
        job, count = stem, 1
        while job.casefold() in taken:
            count += 1
            job = f"{stem}_{count}"
        taken.add(job.casefold())
        jobs.append(job)
    return jobs


class Results(ABC):
    """One protein's results in a folder, finished or under way."""

    def __init__(
        self,
        out: Path,
        job: str,
        query: Query,
        settings: Mapping[str, object],
        requests: Sequence[Request],
        *,
        overwrite: bool = False,
    ):
        """Look at what is there; nothing but the folder is made.

        job: the protein's name in file names, see `job_names`.
        settings: everything but model and seed that decides a prediction's files, for JSON: compared with those of
        results that are there.
        requests: the predictions asked for, in the order in which they run.
        overwrite: results that are there are replaced, whatever made them.

        Raises InputError if the folder can't be written to, or if it holds results of another input, of other
        settings, of predictions not asked for, or of another program.
        """
        self.job = job
        self.query = query
        self.requests = tuple(requests)
        self.folder = self._folder(out)
        self._final, self._progress = self._records()
        self._fresh = Record(input=records.input_digest(query), settings=records.normal(settings))
        self._record = self._fresh
        self._ranks = len(self.requests)  # as many as file names can have
        self._overwrite = overwrite
        files.make_folder(self.folder)
        if not overwrite:
            self._resume()

    @property
    def results(self) -> tuple[Result, ...]:
        """The predictions that are on disk; the best first, once the protein is finished."""
        return self._record.results

    @property
    def missing(self) -> tuple[Request, ...]:
        """What was asked for and isn't on disk yet."""
        done = {(result.model, result.seed) for result in self.results}
        return tuple(request for request in self.requests if request not in done)

    @property
    def finished(self) -> bool:
        """Whether all that was asked for is on disk, ranked and plotted."""
        return not self._overwrite and not self.missing and self._final.exists()

    def start(self) -> None:
        """Make ready for predictions: write the configuration and the alignment, remove what is in the way."""
        before = self._record
        if self._overwrite:
            before = self._last_record() or before
            self._overwrite = False
            files.remove(self._final)
        elif self._final.exists():  # finished before, and more is asked for now
            files.rename(self._final, self._progress)
        self._record = replace(self._record, a3m=before.a3m)
        self._record.write(self._progress)
        self._sweep()
        self._begin()

    def write(self, prediction: Prediction) -> Result:
        """Write one prediction's files. Raises AxfoldError if it holds values that aren't numbers."""
        _check(prediction)
        tag = self.tag(prediction.model, prediction.seed)
        written = []
        for kind, extension, content in self._contents(prediction):
            _put(self._path(kind, tag, extension), content)
            written.append((kind, extension))
        result = Result.of(prediction, tag, tuple(written))
        others = tuple(other for other in self.results if other.tag != tag)
        self._record = replace(self._record, results=(*others, result))
        self._record.write(self._progress)
        return result

    def finish(self, *, features_seconds: float = 0.0) -> tuple[Result, ...]:
        """Rank the predictions, of which there must be one, write what concerns them all, and mark the end.

        features_seconds: time taken to read and search the protein's alignments and templates.
        """
        place = {request: number for number, request in enumerate(self.requests)}
        ranked = sorted(
            self.results,
            key=lambda result: (
                -result.ranking_confidence,
                place.get((result.model, result.seed), len(place)),
            ),
        )
        self._record = replace(self._record, results=tuple(ranked))
        self._rank(features_seconds)
        self._plot()
        self._record.write(self._progress)
        files.rename(self._progress, self._final)
        return self.results

    def structure(self, result: Result) -> Path:
        """The file with a result's structure: PDB, or ModelCIF if the PDB format can't hold it."""
        extension = "pdb" if ("unrelaxed", "pdb") in result.files else "cif"
        return self._find("unrelaxed", result.tag, extension) or self._path(
            "unrelaxed", result.tag, extension
        )

    @abstractmethod
    def tag(self, model: str, seed: int) -> str:
        """A prediction's name in file names."""

    @abstractmethod
    def _folder(self, out: Path) -> Path:
        """Where the protein's files lie."""

    @abstractmethod
    def _records(self) -> tuple[Path, Path]:
        """Where the record of the finished protein lies, and that of one under way."""

    @abstractmethod
    def _path(self, kind: str, tag: str, extension: str) -> Path:
        """The name of a prediction's file while it isn't ranked."""

    @abstractmethod
    def _find(self, kind: str, tag: str, extension: str) -> Path | None:
        """A prediction's file, ranked or not, if it is there."""

    @abstractmethod
    def _owned(self) -> re.Pattern[str]:
        """The names of the protein's files, but its alignment and the records."""

    @abstractmethod
    def _foreign(self) -> Iterator[Path]:
        """Files that, without a record, another program has left."""

    @abstractmethod
    def _begin(self) -> None:
        """Write what is known before the first prediction."""

    @abstractmethod
    def _contents(self, prediction: Prediction) -> Iterator[tuple[str, str, Content]]:
        """Kind, extension and content of a prediction's files."""

    @abstractmethod
    def _rank(self, features_seconds: float) -> None:
        """Give the files their final names and write those that concern all predictions, which are in order."""

    @abstractmethod
    def _confidences(self, result: Result) -> tuple[np.ndarray, np.ndarray | None]:
        """pLDDT (N,) and PAE (N, N) of a prediction on disk."""

    @abstractmethod
    def _plot_path(self, plot: str) -> Path:
        """The file of a plot: "plddt", "pae" or "coverage"."""

    def _resume(self) -> None:
        record = records.read(self._final) or records.read(self._progress)
        if record is None:
            for path in self._foreign():
                if path.exists():
                    raise self._refusal(f"{path.name} in it was not made by this version of axfold")
            return
        self._ranks += len(record.results)
        # a file may have been deleted since
        present = tuple(
            result
            for result in record.results
            if all(self._find(kind, result.tag, extension) for kind, extension in result.files)
        )
        if present:
            self._compare(record, present)
        self._record = replace(self._fresh, results=present, a3m=record.a3m)

    def _compare(self, record: Record, present: tuple[Result, ...]) -> None:
        """Raises InputError unless `present` may stand beside what is asked for now."""
        if record.input != self._fresh.input:
            raise self._refusal("they are of another sequence, alignment or templates")
        if changes := records.differences(record.settings, self._fresh.settings):
            raise self._refusal("; ".join(changes[:3]) + (" and more" if len(changes) > 3 else ""))
        done = {(result.model, result.seed): result.tag for result in present}
        if set(self.requests) <= set(done):
            return
        for (model, seed), tag in done.items():
            if (model, seed) not in self.requests:
                raise self._refusal(f"they are of {model} with seed {seed}, which this run doesn't ask for")
            if tag != self.tag(model, seed):
                raise self._refusal(
                    f"{model} with seed {seed} is {tag} there and {self.tag(model, seed)} now"
                )

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"{self.folder} already has results named {self.job}: {reason}. "
            "Choose another folder with --out, or replace them with --overwrite."
        )

    def _last_record(self) -> Record | None:
        """The record that is about to be replaced, if axfold wrote it."""
        try:
            return records.read(self._final) or records.read(self._progress)
        except InputError:
            return None

    def _sweep(self) -> None:
        """Remove the protein's files that no finished prediction owns, whole or half-written."""
        kept = {
            self._find(kind, result.tag, extension)
            for result in self.results
            for kind, extension in result.files
        }
        always = (self._final.name, self._progress.name, f"{self.job}.a3m")
        for path in list(self.folder.iterdir()):
            half = files.TEMPORARY.fullmatch(path.name)
            name = half["name"] if half else path.name
            ours = self._owned().fullmatch(name) or (half and name in always)
            if ours and path not in kept:
                files.remove(path)

    def _plot(self) -> None:
        from axfold.output import plots  # Matplotlib is slow to load

        meaningless = any(result.meaningless for result in self.results)
        curves = []
        for rank, result in enumerate(self.results[: plots.BEST], start=1):
            plddt, pae = self._confidences(result)
            label = f"rank {rank}: {result.model}, seed {result.seed}"
            curves.append(plots.Curve(label=label, plddt=plddt, pae=pae))
        with_pae = [curve for curve in curves if curve.pae is not None]
        _put(self._plot_path("plddt"), plots.plddt(self.job, curves, meaningless=meaningless))
        if with_pae:
            _put(self._plot_path("pae"), plots.pae(self.job, with_pae, meaningless=meaningless))
        _put(self._plot_path("coverage"), plots.coverage(self.job, alignment.rows(self.query)))


def structures(prediction: Prediction) -> Iterator[tuple[str, str, Content]]:
    """The files of the structure, that of each recycle included."""
    from axfold.output import mmcif  # modelcif is slow to load

    if (reason := pdb.why_not(prediction)) is None:
        yield "unrelaxed", "pdb", pdb.write(prediction)
        passes = zip(prediction.atom_positions_by_pass, prediction.plddt_by_pass, strict=True)
        for number, (positions, plddt) in enumerate(passes):
            recycle = replace(prediction, atom_positions=positions, plddt=plddt)
            yield "unrelaxed", f"r{number}.pdb", pdb.write(recycle)
    else:
        log.warning("%s: no PDB file, which can't hold %s. Use the mmCIF file.", prediction.name, reason)
    yield "unrelaxed", "cif", mmcif.write(prediction)


def _check(prediction: Prediction) -> None:
    arrays = {
        "atom positions": prediction.atom_positions,
        "pLDDT": prediction.plddt,
        "predicted aligned errors": prediction.predicted_aligned_error,
    }
    for name, array in arrays.items():
        if array is not None and not np.isfinite(array).all():
            raise AxfoldError(
                f"{prediction.name}: {prediction.model} with seed {prediction.seed} gave {name} that aren't numbers. "
                "Check the parameter file, and try --precision fp32."
            )


def _put(path: Path, content: Content) -> None:
    with files.writing(path) as file:
        if isinstance(content, str):
            for start in range(0, len(content), _PIECE):
                file.write(content[start : start + _PIECE].encode())
        elif isinstance(content, bytes):
            file.write(content)
        elif isinstance(content, np.ndarray):
            np.save(file, content, allow_pickle=False)
        else:
            np.savez(file, allow_pickle=False, **content)
