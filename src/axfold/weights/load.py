"""From a source of parameters into a model."""

import torch
from torch import nn

from axfold.config import Config
from axfold.weights.names import assemble, parameters
from axfold.weights.source import Source, opened


def load(model: nn.Module, config: Config, source: Source) -> None:
    """Give `model`, a `model.alphafold.AlphaFold(config.model)`, the parameters of `source` in float32.

    The model may be on PyTorch's "meta" device, so that nothing is allocated twice. Raises WeightsError where the
    source is not of `config`.
    """
    with opened(source, config) as tensors:
        if tensors.naming == "axfold":
            arrays = {name: tensors[name] for name in model.state_dict()}
        else:
            # In this order the blocks of a stack follow one another, so that each stored tensor is read once.
            arrays = {name: assemble(parts, tensors) for name, parts in parameters(config.model).items()}
        state = {name: torch.tensor(array) for name, array in arrays.items()}
    model.load_state_dict(state, assign=True)
