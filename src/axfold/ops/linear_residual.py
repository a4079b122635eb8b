"""A projection added to its representation: the last line of Algorithms 7, 8, 13 and 14, with the residual."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op
from axfold.ops.residual import add


@Op
def linear_residual(
    x: Float[Tensor, "*b i j c"],
    y: Float[Tensor, "*b i j width"],
    weight: Float[Tensor, "c width"],
    bias: Float[Tensor, " c"],
    keep: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*b i j c"]:
    """x + keep * linear(y).

    `keep` is what dropout multiplies the update with, of any shape that broadcasts to x's.
    Consumes x: where no gradient is recorded the sum is written into it.
    """
    update = F.linear(y, weight, bias)
    return add(x, update if keep is None else update * keep)


@linear_residual.like
def _small(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None = None) -> small.Smalls:
    shape = small.ROWS, small.POSITIONS
    first = small.normal(x, *shape, x.shape[-1]), small.normal(y, *shape, y.shape[-1])
    return *first, *small.parameters([weight, bias]), small.dropout(keep, x.shape[-1])
