"""Gated attention with its projections and residual, as one operation: for where gradients are recorded."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops.attention import gated_attention
from axfold.ops.linear_residual import linear_residual
from axfold.ops.normed_linear import normed_linear
from axfold.ops.op import Op


@Op
def attention_update(
    x: Float[Tensor, "*b r n c"],
    mask: Float[Tensor, "*b r n"],
    bias: Float[Tensor, "*b h n n"] | None,
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    qkv_weight: Float[Tensor, "three_width c"],
    gate_weight: Float[Tensor, "width c"],
    gate_bias: Float[Tensor, " width"],
    output_weight: Float[Tensor, "c width"],
    output_bias: Float[Tensor, " c"],
    heads: int,
    keep: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*b r n c"]:
    """x + keep * output(gated_attention(q, k, v, gate)), where q, k, v and gate are projections of norm(x).

    The whole of Algorithms 7, 8, 13 and 14 but the bias. By itself each of its operations would keep what it is given
    for its backward, and the projections are four times as large as x; here they can be made again from x.
    `keep` is what dropout multiplies the update with, of any shape that broadcasts to x's. Leaves x as it is.
    """
    weight = torch.cat([qkv_weight, gate_weight])
    shift = F.pad(gate_bias, (len(qkv_weight), 0))
    projected = normed_linear.reference(x, norm_weight, norm_bias, weight, shift)
    q, k, v, gate = projected.unflatten(-1, (4, heads, -1)).unbind(-3)
    mixed = gated_attention.reference(q, k, v, gate, mask, bias)
    update = linear_residual.reference
    return update(x if torch.is_grad_enabled() else x.clone(), mixed, output_weight, output_bias, keep)
