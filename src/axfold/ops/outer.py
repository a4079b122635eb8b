"""The pair representation's update from the MSA: Algorithm 10, lines 3 and 4."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op
from axfold.ops.residual import add


@Op
def outer_product_update(
    z: Float[Tensor, "*b i j c_z"],
    a: Float[Tensor, "*b i s c"],
    b: Float[Tensor, "*b s j c"],
    count: Float[Tensor, "*b i j"],
    weight: Float[Tensor, "c_z cc"],
    bias: Float[Tensor, " c_z"],
) -> Float[Tensor, "*b i j c_z"]:
    """z + linear(sum_s a_is ⊗ b_sj) / (count + 0.001).

    a and b are 0 where the mask hides a residue, and `count` is the number of sequences that show both (float32).
    Consumes z: where no gradient is recorded the sum is written into it.
    """
    # all of the block's products in one: (i c, s) with (s, j c)
    product = torch.matmul(a.movedim(-1, -2).flatten(-3, -2), b.flatten(-2))
    product = product.unflatten(-2, (z.shape[-3], -1)).unflatten(-1, (z.shape[-2], -1))
    product = product.transpose(-2, -3).flatten(-2)
    return add(z, F.linear(product, weight, bias) / (count + 1e-3).to(z.dtype)[..., None])


@outer_product_update.like
def _small(z: Tensor, a: Tensor, b: Tensor, count: Tensor, weight: Tensor, bias: Tensor) -> small.Smalls:
    c, shape = a.shape[-1], (small.ROWS, small.POSITIONS)
    operands = small.normal(a, small.ROWS, 5, c), small.normal(b, 5, small.POSITIONS, c)
    number = small.mask(count, *shape)
    if number.kind == "mask":
        number = number._replace(kind="positive")
    return small.normal(z, *shape, z.shape[-1]), *operands, number, *small.parameters([weight, bias])
