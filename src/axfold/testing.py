"""Checks that anyone who adds a backend or a port can use."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """One tensor beside the one it should equal; `error` is relative to the norm of the expected tensor."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected||, or the norm of the difference where all that is expected is zero."""
    expected = np.asarray(expected, np.float64)
    difference = float(np.linalg.norm(np.asarray(found, np.float64) - expected))
    return difference / (float(np.linalg.norm(expected)) or 1.0)


def compare(
    found: Mapping[str, np.ndarray], golden: Mapping[str, np.ndarray], tolerances: Mapping[str, float]
) -> Iterator[Comparison]:
    """Each golden tensor against the one of the same name; a missing or misshapen one is an error of infinity.

    A golden name may end in a slice of the first axis, such as "[::4]": it is taken of the tensor found.
    `tolerances` are relative errors by regular expression, the first that matches a name counts.
    """
    for name, expected in golden.items():
        bare, _, step = name.partition("[::")
        tensor = found.get(bare)
        if tensor is not None and step:
            tensor = tensor[:: int(step.rstrip("]"))]
        error = float("inf")
        if tensor is not None and tensor.shape == expected.shape:
            error = relative_error(tensor, expected)
        tolerance = next(limit for pattern, limit in tolerances.items() if re.search(pattern, name))
        yield Comparison(name, error, tolerance)
