"""What a folder of results remembers of a protein: with which input and settings it was folded, and how far it got.

A record is a small JSON file beside the results. Written after each prediction, it is what makes a prediction
finished; moved to its final name, it is what makes the protein finished.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from axfold import __version__
from axfold.data.query import Query
from axfold.errors import InputError
from axfold.output import files
from axfold.output.prediction import WARNING, Prediction


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished prediction.

    tag: its name in file names; files: kind and extension of each of its files; change: Å, see `Prediction`
    """

    tag: str
    model: str
    seed: int
    ranking_confidence: float
    plddt: float
    ptm: float | None
    iptm: float | None
    change: tuple[float, ...]
    parameters: str
    meaningless: bool
    feature_seconds: float
    seconds: float
    files: tuple[tuple[str, str], ...]

    @staticmethod
    def of(prediction: Prediction, tag: str, written: tuple[tuple[str, str], ...]) -> "Result":
        """The record of a prediction whose files were written."""
        return Result(
            tag=tag,
            model=prediction.model,
            seed=prediction.seed,
            ranking_confidence=prediction.ranking_confidence,
            plddt=float(prediction.plddt.mean(dtype=np.float64)),
            ptm=prediction.ptm,
            iptm=prediction.iptm,
            change=prediction.change,
            parameters=prediction.parameters,
            meaningless=prediction.meaningless,
            feature_seconds=prediction.feature_seconds,
            seconds=prediction.seconds,
            files=written,
        )


@dataclass(frozen=True, kw_only=True)
class Record:
    """A protein's results so far, in ranked order once it is finished.

    input: digest of its sequence, alignments and templates; settings: the resolved configuration;
    a3m: digest of the alignment that was written, None where a file of that name was there before
    """

    input: str
    settings: dict[str, object]
    results: tuple[Result, ...] = ()
    a3m: str | None = None

    def write(self, path: Path) -> None:
        """Write the record; errors as in `files.writing`."""
        content: dict[str, object] = {"axfold": __version__}
        if any(result.meaningless for result in self.results):
            content["warning"] = WARNING
        files.write_json(path, content | asdict(self))


def read(path: Path) -> Record | None:
    """The record at `path`, None if there is none. Raises InputError if the file is another program's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = tuple(
            Result(
                **{
                    **result,
                    "change": tuple(result["change"]),
                    "files": tuple((kind, extension) for kind, extension in result["files"]),
                }
            )
            for result in content["results"]
        )
        return Record(
            input=content["input"], settings=content["settings"], results=results, a3m=content["a3m"]
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: this version of axfold did not write this file. Choose another folder with --out, or "
            "replace the results in it with --overwrite."
        ) from error


def input_digest(query: Query) -> str:
    """A digest of what is folded: equal for equal sequence, alignments and template paths."""
    whole = hashlib.sha256(query.sequence.encode())
    for alignment in query.alignments:
        whole.update("\n".join(("", *alignment.sequences)).encode())
        whole.update(np.ascontiguousarray(alignment.deletions, np.int32).data)
    for path in query.templates:
        whole.update(f"\n{path.resolve()}".encode())
    return whole.hexdigest()


def digest(content: bytes) -> str:
    """A digest of a file."""
    return hashlib.sha256(content).hexdigest()


def normal(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings as they come back from JSON: tuples are lists."""
    return json.loads(json.dumps(settings))


def differences(there: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """In what two settings differ: "recycles is 3 there and 20 now"; keys of inner tables are joined by dots."""
    old, new = dict(_flat(there)), dict(_flat(now))
    return [
        f"{key} is {json.dumps(old.get(key))} there and {json.dumps(new.get(key))} now"
        for key in old | new
        if old.get(key) != new.get(key)
    ]


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
