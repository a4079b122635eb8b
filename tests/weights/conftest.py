"""A model whose parameter files are small, in the place of a preset."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from axfold import config
from axfold.config import Config, Heads, Model, MsaStack, StructureModule, Templates, TriangleStack
from axfold.weights import openfold, synthetic
from axfold.weights.names import released_shapes

_PAIR = TriangleStack(heads=2, c_attention=3, c_multiplication=5, transition_factor=2)
_STACK = MsaStack(blocks=3, heads=2, c_attention=3, c_outer_product=3, transition_factor=2, pair=_PAIR)
_SIZES = Model(
    c_m=6,
    c_z=4,
    c_e=5,
    c_s=7,
    templates=Templates(c_t=4, heads=2, c_attention=3, pair=_PAIR),
    extra_stack=replace(_STACK, blocks=2, global_column_attention=True),
    evoformer=_STACK,
    structure=StructureModule(heads=2, c_hidden=3, c_angles=8),
    heads=Heads(plddt_bins=5, c_plddt=6, aligned_error=True),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Stands for model_1_ptm while a test runs."""
    small = Config(name="model_1_ptm", model=_SIZES)
    monkeypatch.setitem(config.PRESETS, small.name, small)
    return small


@pytest.fixture
def released(tiny: Config) -> dict[str, np.ndarray]:
    """The arrays of its released file."""
    return dict(synthetic.parameters(released_shapes(tiny.model), seed=3))


@pytest.fixture(scope="session")
def to_openfold():
    """Released tensors -> the state dict that OpenFold's importer makes of them."""

    def convert(tensors: Mapping[str, np.ndarray], model: Model) -> dict[str, torch.Tensor]:
        shapes = openfold.shapes(model)
        state = {}
        for key, array in tensors.items():
            names = openfold.names(key, array.shape)
            for name, block in zip(names, array if len(names) > 1 else [array], strict=True):
                shape = shapes[name]
                flat = block.reshape(shape[::-1]).T if len(shape) == 2 else block.reshape(shape)
                state[name] = torch.from_numpy(np.ascontiguousarray(flat))
        return state

    return convert
