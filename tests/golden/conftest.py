"""Models with pseudo-random parameters, built once for all recorded cases."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from axfold.config import PRESETS
from axfold.model.alphafold import AlphaFold
from axfold.weights.load import load
from axfold.weights.source import Source


@pytest.fixture(scope="session")
def synthetic_model() -> Callable[[str], AlphaFold]:
    """The model of a preset's name with synthetic parameters of seed 0, in float32."""

    @cache
    def make(name: str) -> AlphaFold:
        with torch.device("meta"):
            model = AlphaFold(PRESETS[name].model)
        load(model, PRESETS[name], Source(seed=0))
        return model.eval()

    return make
