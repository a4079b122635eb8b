"""Triangle multiplication around its product: Algorithms 11 and 12, line by line what each edge contributes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op
from axfold.ops.residual import add


@Op
def triangle_operand(
    z: Float[Tensor, "*b i n c_z"],
    mask: Float[Tensor, "*b i n"],
    norm_weight: Float[Tensor, " c_z"],
    norm_bias: Float[Tensor, " c_z"],
    weight: Float[Tensor, "gated c_z"],
    bias: Float[Tensor, " gated"],
) -> Float[Tensor, "*b c i k"]:
    """mask * value * sigmoid(gate) of the normalised z, channel first for the product (lines 1 and 2).

    The upper half of `weight` and `bias` gives the value, the lower one the gate. k is n or a little more: the
    product runs faster where rows are aligned, so a backend may append zeros, which add nothing to it.
    `mask` is 0 where there is no edge; a single number expanded (strides of 0) hides nothing.
    """
    both = F.linear(F.layer_norm(z, norm_weight.shape, norm_weight, norm_bias), weight, bias)
    gated = F.glu(both, dim=-1)
    del both  # each step lets go of the one before
    return _times(gated, mask[..., None]).movedim(-1, -3).contiguous()


@triangle_operand.like
def _small_operand(z: Tensor, mask: Tensor, *parameters: Tensor) -> small.Smalls:
    shape = small.ROWS, small.POSITIONS
    return small.normal(z, *shape, z.shape[-1]), small.mask(mask, *shape), *small.parameters(parameters)


@Op
def triangle_update(
    z: Float[Tensor, "*b i n c_z"],
    own: Float[Tensor, "*b c i k"],
    others: Float[Tensor, "*b c n k"],
    norm_weight: Float[Tensor, " c_z"],
    norm_bias: Float[Tensor, " c_z"],
    product_norm_weight: Float[Tensor, " c"],
    product_norm_bias: Float[Tensor, " c"],
    output_weight: Float[Tensor, "c_z c"],
    output_bias: Float[Tensor, " c_z"],
    gate_weight: Float[Tensor, "c_z c_z"],
    gate_bias: Float[Tensor, " c_z"],
    keep: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*b i n c_z"]:
    """z + keep * sigmoid(gate(z)) * output(norm(sum_k own_ik others_nk)): lines 3 and 4, and the residual.

    `keep` is what dropout multiplies the update with, of any shape that broadcasts to z's.
    Consumes z: where no gradient is recorded the sum is written into it.
    """
    update = torch.matmul(own, others.transpose(-1, -2)).movedim(-3, -1)
    update = F.layer_norm(update, product_norm_weight.shape, product_norm_weight, product_norm_bias)
    update = F.linear(update, output_weight, output_bias)
    gate = F.linear(F.layer_norm(z, norm_weight.shape, norm_weight, norm_bias), gate_weight, gate_bias)
    update = _times(update, gate.sigmoid_())
    return add(z, update if keep is None else _times(update, keep))


@triangle_update.like
def _small_update(z: Tensor, own: Tensor, others: Tensor, *parameters: Tensor | None) -> small.Smalls:
    layers, keep = parameters[:8], parameters[8] if len(parameters) > 8 else None
    c_z, c, k = z.shape[-1], own.shape[-3], small.POSITIONS + 1  # as if a zero were appended
    return (
        small.normal(z, small.ROWS, small.POSITIONS, c_z),
        small.normal(own, c, small.ROWS, k),
        small.normal(others, c, small.POSITIONS, k),
        *small.parameters(layers),
        small.dropout(keep, c_z),
    )


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor. Where no gradient is recorded it is written into x."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)
