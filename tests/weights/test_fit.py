import json

import pytest

from axfold.config import DEMO, PRESETS
from axfold.errors import WeightsError
from axfold.weights import fit
from axfold.weights.names import released_shapes

AATYPE = "alphafold/alphafold_iteration/evoformer/left_single//weights"


@pytest.mark.parametrize("model", [name for name in PRESETS if name != DEMO])
def test_released_shapes_are_deepminds(model, parity):
    manifest = json.loads((parity / "param_manifest" / f"{model}.json").read_text())
    theirs = {name: tuple(tensor["shape"]) for name, tensor in manifest["params"].items()}
    assert released_shapes(PRESETS[model].model) == theirs


def test_the_right_file_fits():
    for config in PRESETS.values():
        fit.check("file", released_shapes(config.model), config.model, released_shapes)


def refuse(found, model="model_1"):
    with pytest.raises(WeightsError) as caught:
        fit.check("params.npz", found, PRESETS[model].model, released_shapes)
    return str(caught.value)


def test_a_missing_tensor_is_named_with_its_shape():
    found = released_shapes(PRESETS["model_1"].model)
    del found[AATYPE]
    assert refuse(found).startswith(f"params.npz: tensor {AATYPE} is missing (shape wanted: (22, 128)).")


def test_a_wrong_shape_is_named_with_both_shapes():
    found = released_shapes(PRESETS["model_1"].model) | {AATYPE: (21, 128)}
    assert f"tensor {AATYPE} has shape (21, 128), and (22, 128) is wanted." in refuse(found)


def test_a_tensor_too_many_is_named():
    found = released_shapes(PRESETS["model_1"].model) | {"x//weights": (3,)}
    assert "tensor 'x//weights' (shape (3,)) has no place in the model." in refuse(found)


def test_another_models_file_says_which_models_it_fits():
    message = refuse(released_shapes(PRESETS["model_4_ptm"].model))
    assert "template" in message
    assert "fits model_3_ptm, model_4_ptm, model_5_ptm: choose with --model" in message


def test_a_multimer_file_says_so(parity):
    manifest = json.loads((parity / "param_manifest" / "model_1_multimer_v3.json").read_text())
    message = refuse({name: tuple(tensor["shape"]) for name, tensor in manifest["params"].items()})
    assert "It is a file of AlphaFold-Multimer" in message


def test_state_shapes_are_those_of_the_assembled_parameters(tiny, released):
    from axfold.weights import names

    pieces = names.parameters(tiny.model)
    state = {name: names.assemble(parts, released).shape for name, parts in pieces.items()}
    assert fit.state_shapes(tiny.model) == state
