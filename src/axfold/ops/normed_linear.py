"""LayerNorm and the projection that follows it: line 1 of most algorithms, with line 2."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op


@Op
def normed_linear(
    x: Float[Tensor, "*b i j c"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    weight: Float[Tensor, "out c"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*b i j out"]:
    """Linear(LayerNorm(x)). Projections of one x cost one read of it when their weights are put together."""
    return F.linear(F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias), weight, bias)


@normed_linear.like
def _small(x: Tensor, *parameters: Tensor | None) -> small.Smalls:
    return small.normal(x, small.ROWS, small.POSITIONS, x.shape[-1]), *small.parameters(parameters)
