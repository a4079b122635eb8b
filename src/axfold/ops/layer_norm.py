"""LayerNorm by itself, for where no fused operation takes it along."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op


@Op
def layer_norm(
    x: Float[Tensor, "*shape c"], weight: Float[Tensor, " c"], bias: Float[Tensor, " c"]
) -> Float[Tensor, "*shape c"]:
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias over the last axis; statistics in at least float32.

    Has a backward, whose gradients of weight and bias are the same in every run. Leaves x as it is.
    """
    return F.layer_norm(x, weight.shape, weight, bias)


@layer_norm.like
def _small(x: Tensor, *parameters: Tensor) -> small.Smalls:
    return small.normal(x, small.ROWS, small.POSITIONS, x.shape[-1]), *small.parameters(parameters)
