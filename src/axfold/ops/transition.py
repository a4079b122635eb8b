"""The two layers on every element by itself: Algorithm 9 on the MSA, Algorithm 15 on the pair representation."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op
from axfold.ops.residual import add


@Op
def transition(
    x: Float[Tensor, "*b i j c"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    expand_weight: Float[Tensor, "hidden c"],
    expand_bias: Float[Tensor, " hidden"],
    output_weight: Float[Tensor, "c hidden"],
    output_bias: Float[Tensor, " c"],
    keep: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*b i j c"]:
    """x + keep * output(relu(expand(norm(x)))).

    `keep` is what dropout multiplies the update with, of any shape that broadcasts to x's.
    Consumes x: where no gradient is recorded the sum is written into it.
    """
    hidden = F.linear(F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias), expand_weight, expand_bias)
    update = F.linear(hidden.relu_(), output_weight, output_bias)
    return add(x, update if keep is None else update * keep)


@transition.like
def _small(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    keep: Tensor | None = None,
) -> small.Smalls:
    layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
    c = x.shape[-1]
    kept = small.dropout(keep, c)
    return small.normal(x, small.ROWS, small.POSITIONS, c), *small.parameters(layers), kept
