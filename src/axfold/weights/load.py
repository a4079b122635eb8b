"""From a source of parameters into a model."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from axfold.config import Config
from axfold.weights.names import Parameters, assemble, parameters
from axfold.weights.source import Source, opened
from axfold.weights.tensors import Shape

THREADS = max(1, min(4, os.cpu_count() or 1))
"""NumPy reads, makes and copies numbers without holding other threads up."""


def load(model: nn.Module, config: Config, source: Source) -> None:
    """Give `model`, a `model.alphafold.AlphaFold(config.model)`, the parameters of `source` in float32.

    The model may be on PyTorch's "meta" device, so that nothing is allocated twice. Raises WeightsError where the
    source is not of `config`.
    """
    with opened(source, config) as tensors:
        if tensors.naming == "axfold":
            state = {name: torch.tensor(tensors[name]) for name in model.state_dict()}
        else:
            state = _assembled(parameters(config.model), tensors)
    model.load_state_dict(state, assign=True)


def _assembled(wanted: Parameters, tensors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The parameters; those of all blocks of a stack are made of the same tensors, which are read once."""
    alike: dict[frozenset[str], Parameters] = {}
    for name, pieces in wanted.items():
        alike.setdefault(frozenset(piece.key for piece in pieces), {})[name] = pieces

    def make(some: Parameters) -> dict[str, Tensor]:
        keys = dict.fromkeys(piece.key for pieces in some.values() for piece in pieces)
        stored = {key: tensors[key] for key in keys}
        return {name: torch.from_numpy(assemble(pieces, stored, _empty)) for name, pieces in some.items()}

    with ThreadPoolExecutor(THREADS) as pool:
        return {name: made for some in pool.map(make, alike.values()) for name, made in some.items()}


def _empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """Memory as PyTorch aligns it: in which order a library for CPUs sums may depend on that."""
    return torch.from_numpy(np.empty(0, dtype)).new_empty(shape).numpy()
