import numpy as np
import torch

from axfold.config import PRESETS
from axfold.model.alphafold import AlphaFold
from axfold.weights.load import _assembled, load
from axfold.weights.names import assemble, parameters, released_shapes
from axfold.weights.source import Source
from axfold.weights.synthetic import tensor
from axfold.weights.tensors import Tensors


def test_every_parameter_has_memory_of_its_own_as_pytorch_aligns_it():
    config = PRESETS["model_1_ptm"]
    with torch.device("meta"):
        network = AlphaFold(config.model)
    load(network, config, Source(seed=3))
    places = set()
    for name, parameter in network.named_parameters():
        assert parameter.is_contiguous(), name
        assert parameter.dtype == torch.float32, name
        assert parameter.data_ptr() % 64 == 0, name
        places.add(parameter.untyped_storage().data_ptr())
    assert len(places) == len(parameters(config.model))


def test_threads_read_each_tensor_once_and_change_no_number():
    config = PRESETS["model_3"]
    shapes = released_shapes(config.model)
    read = []

    def note(name: str) -> np.ndarray:
        read.append(name)
        return tensor(name, shapes[name], 0)

    state = _assembled(parameters(config.model), Tensors("here", shapes, note))
    assert sorted(read) == sorted(shapes)
    stored = {name: tensor(name, shape, 0) for name, shape in shapes.items()}
    for name, pieces in parameters(config.model).items():
        np.testing.assert_array_equal(state[name], assemble(pieces, stored), err_msg=name)
