"""Named tensors that are read one at a time: a model's parameters never lie in memory twice."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

import numpy as np

from axfold.errors import WeightsError

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Naming = Literal["released", "axfold"]


class Tensors(Mapping[str, np.ndarray]):
    """Name -> float32 array, read when it is asked for and refused if it is not finite.

    The last few are kept, since the blocks of a stack are taken one after another from one tensor; they are not
    to be written to. `naming` says whose names they are: those of DeepMind's released files (`scope//name`) or
    of axfold's state dict. `where` names the file in messages.
    """

    def __init__(
        self, where: str, shapes: Shapes, read: Callable[[str], np.ndarray], naming: Naming = "released"
    ):
        self.where, self.shapes, self.naming = where, shapes, naming
        self._read = read
        self._kept = lru_cache(maxsize=4)(self._checked)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._kept(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _checked(self, name: str) -> np.ndarray:
        shape = self.shapes[name]
        array = self._read(name)
        if array.shape != shape:
            raise WeightsError(f"{self.where}: tensor {name} has shape {array.shape}, and {shape} is wanted.")
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{self.where}: tensor {name} holds NaN or infinite values; use another copy of the file."
            )
        return array
