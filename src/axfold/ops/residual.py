"""The residual connection."""

import torch
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op


@Op
def add(x: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x + update. Consumes x: where no gradient is recorded the sum is written into it."""
    return x + update if torch.is_grad_enabled() else x.add_(update)


@add.like
def _small(x: Tensor, update: Tensor) -> small.Smalls:
    shape = small.ROWS, small.POSITIONS, x.shape[-1]
    return small.normal(x, *shape), small.normal(update, *shape)
