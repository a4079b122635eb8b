"""The residual connection."""

import torch
from jaxtyping import Float
from torch import Tensor

from axfold.ops.op import Op


@Op
def add(x: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x + update. Consumes x: where no gradient is recorded the sum is written into it."""
    return x + update if torch.is_grad_enabled() else x.add_(update)
