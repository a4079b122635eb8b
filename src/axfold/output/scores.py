"""The confidences as JSON, with the keys of ColabFold and of AlphaFold.

Every text of a meaningless prediction has the key "warning" too. Matrices are written row by row, so that the text
is the only large object.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from axfold.output.confidence import category
from axfold.output.prediction import WARNING, Prediction

_ROW = re.compile(r"\[[^\[\]]*\]")
_SPACED = (", ", ": ")
_COMPACT = (",", ":")


def colabfold_scores(prediction: Prediction) -> str:
    """ColabFold's scores: plddt, and of models with a PAE head max_pae, pae, ptm (and iptm of complexes).

    Two decimals; max_pae is the largest expected error in the matrix and not rounded.
    """
    pae = prediction.predicted_aligned_error
    items = {"plddt": _rounded(prediction.plddt, 2)}
    if pae is not None:
        items |= {"max_pae": json.dumps(float(pae.max())), "pae": _rounded(pae, 2)}
    for key, score in (("ptm", prediction.ptm), ("iptm", prediction.iptm)):
        if score is not None:
            items[key] = json.dumps(round(score, 2))
    return _object(items, prediction.meaningless)


def colabfold_pae(pae: np.ndarray, maximum: float, *, meaningless: bool = False) -> str:
    """ColabFold's predicted aligned error of the best model, as its scores have it; an object.

    pae: (N, N) Å; maximum: the scores' max_pae.
    """
    items = {
        "predicted_aligned_error": _rounded(pae, 2),
        "max_predicted_aligned_error": json.dumps(maximum),
    }
    return _object(items, meaningless)


def alphafold_confidence(prediction: Prediction) -> str:
    """AlphaFold's pLDDT for each residue: residueNumber, confidenceScore (two decimals), confidenceCategory."""
    items = {
        "residueNumber": json.dumps(list(range(1, len(prediction.plddt) + 1)), separators=_COMPACT),
        "confidenceScore": _rounded(prediction.plddt, 2, _COMPACT),
        "confidenceCategory": json.dumps(
            [category(score) for score in prediction.plddt], separators=_COMPACT
        ),
    }
    return _object(items, prediction.meaningless, _COMPACT)


def alphafold_pae(prediction: Prediction) -> str:
    """AlphaFold's predicted aligned error, one decimal, as its database has it: an object in a list.

    The prediction must have one; max_predicted_aligned_error is the largest value that the head can express.
    """
    assert prediction.predicted_aligned_error is not None
    items = {
        "predicted_aligned_error": _rounded(prediction.predicted_aligned_error, 1, _COMPACT),
        "max_predicted_aligned_error": json.dumps(prediction.max_predicted_aligned_error),
    }
    return f"[{_object(items, prediction.meaningless, _COMPACT)}]"


def alphafold_ranking(
    confidences: Mapping[str, float], *, complexes: bool = False, meaningless: bool = False
) -> str:
    """AlphaFold's ranking_debug: the ranking confidence of each model, and the models from best to worst.

    `confidences` stand in the order in which the models ran; equals keep it.
    """
    order = sorted(confidences, key=lambda name: -confidences[name])
    content: dict[str, object] = {"iptm+ptm" if complexes else "plddts": dict(confidences), "order": order}
    if meaningless:
        content["warning"] = WARNING
    return json.dumps(content, indent=4)


def read(text: str, matrix: str) -> tuple[Any, np.ndarray | None]:
    """What such a text says, and its matrix of that name apart, in float32; None where it has none.

    It is read row by row: as lists of Python's numbers it would be eight times as large.
    """
    start = re.search(rf'"{matrix}":\s*\[\[', text)
    if start is None:
        return json.loads(text), None
    end = text.index("]]", start.end())
    found = _ROW.finditer(text, start.end() - 1, end + 1)
    number = _Numbers().__getitem__
    rows = [np.array([*map(number, row[0][1:-1].split(","))], np.float32) for row in found]
    return json.loads(f'{text[: start.start()]}"{matrix}": null{text[end + 2 :]}'), np.stack(rows)


class _Numbers(dict[str, float]):
    """The number that a word means: of rounded ones there are few, and each is read once."""

    def __missing__(self, word: str) -> float:
        return self.setdefault(word, float(word))


def _rounded(array: np.ndarray, decimals: int, separators: tuple[str, str] = _SPACED) -> str:
    """A vector or matrix as JSON, its numbers rounded."""
    if array.ndim == 1:
        return json.dumps(np.round(array.astype(np.float64), decimals).tolist(), separators=separators)
    comma, scale = separators[0], 10**decimals
    rows: Iterator[str]
    if array.min() > 0 and array.max() < 100:  # Å: few different numbers, and each is put into words once
        words = [json.dumps(number / scale) for number in range(100 * scale + 1)]
        numbers = (np.rint(row.astype(np.float64) * scale).astype(int).tolist() for row in array)
        rows = (f"[{comma.join(map(words.__getitem__, row))}]" for row in numbers)
    else:
        rows = (_rounded(row, decimals, separators) for row in array)
    return f"[{comma.join(rows)}]"


def _object(items: Mapping[str, str], meaningless: bool, separators: tuple[str, str] = _SPACED) -> str:
    """A JSON object of values that are JSON already."""
    if meaningless:
        items = {**items, "warning": json.dumps(WARNING)}
    comma, colon = separators
    return "{" + comma.join(f"{json.dumps(key)}{colon}{value}" for key, value in items.items()) + "}"
