"""`openfold_model_1_ptm.json` was recorded from OpenFold 2.2: its AlphaFold("model_1_ptm") loaded the synthetic
parameters of seed 0 with its own importer. Each of its state dict's names, blocks joined: number of blocks,
shape of one, CRC-32 of the values of all. A model without templates and pTM lacks just their names."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from axfold.config import PRESETS
from axfold.errors import WeightsError
from axfold.weights import openfold, synthetic
from axfold.weights.names import released_shapes

RECORDED = json.loads((Path(__file__).parent / "openfold_model_1_ptm.json").read_text())


def test_names_and_shapes_are_openfolds():
    recorded = {
        name.replace("*", str(block)): tuple(shape)
        for name, (blocks, shape, _) in RECORDED.items()
        for block in range(blocks)
    }
    assert openfold.shapes(PRESETS["model_1_ptm"].model) == recorded
    without = {
        name: shape
        for name, shape in recorded.items()
        if not name.startswith(("template_embedder.", "aux_heads.tm."))
    }
    assert openfold.shapes(PRESETS["model_3"].model) == without


def test_every_value_is_where_openfold_puts_it(to_openfold):
    model = PRESETS["model_1_ptm"].model
    tensors = synthetic.parameters(released_shapes(model), 0)
    state = to_openfold(tensors, model)
    for name, (blocks, _, crc) in RECORDED.items():
        found = 0
        for block in range(blocks):
            found = zlib.crc32(state[name.replace("*", str(block))].numpy().tobytes(), found)
        assert found == crc, name
    back = openfold.parameters("file", state, model)
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)


def first_version(name):
    """The name that OpenFold 1 wrote."""
    name = name.replace("template_embedder.template_single_embedder", "template_angle_embedder")
    name = name.replace("template_embedder.template_", "template_")
    if ".blocks." in name and not name.startswith("template"):
        for part in ("tri_", "pair_transition"):
            name = name.replace(f".pair_stack.{part}", f".core.{part}")
        for part in ("msa_transition", "outer_product_mean"):
            name = name.replace(f".{part}.", f".core.{part}.")
    return name.replace("q_points.linear.", "q_points.").replace("kv_points.linear.", "kv_points.")


@pytest.mark.parametrize("wrap", [lambda n: n, first_version, lambda n: f"module.model.{n}"])
def test_older_and_wrapped_names_are_read(wrap, to_openfold, tiny, released):
    state = to_openfold(released, tiny.model)
    tensors = openfold.parameters("file", {wrap(name): tensor for name, tensor in state.items()}, tiny.model)
    assert tensors.keys() == released.keys()
    assert all(np.array_equal(tensors[key], released[key]) for key in released)


def test_a_wrong_tensor_is_named_as_openfold_names_it(to_openfold, tiny, released):
    state = to_openfold(released, tiny.model)
    state["evoformer.blocks.1.msa_transition.linear_1.weight"] = torch.zeros(2, 2)
    with pytest.raises(
        WeightsError, match=r"^a\.pt: tensor evoformer\.blocks\.1\.msa_transition\.linear_1\.weight"
    ):
        openfold.parameters("a.pt", state, tiny.model)


def test_half_precision_is_widened(to_openfold, tiny, released):
    state = to_openfold(released, tiny.model)
    tensors = openfold.parameters("a.pt", {n: t.bfloat16() for n, t in state.items()}, tiny.model)
    name = next(iter(tensors))
    assert tensors[name].dtype == np.float32
    np.testing.assert_allclose(tensors[name], released[name], rtol=2**-8)
