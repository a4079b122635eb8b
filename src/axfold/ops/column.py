"""Attention of one mean query to the sequences at a residue, with its residual: Algorithm 19."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.attention import masked_logit
from axfold.ops.op import Op
from axfold.ops.residual import add


@Op
def global_column_attention(
    m: Float[Tensor, "*b r s c"],
    mask: Float[Tensor, "*b r s"],
    norm_weight: Float[Tensor, " c"],
    norm_bias: Float[Tensor, " c"],
    q_weight: Float[Tensor, "width c"],
    kv_weight: Float[Tensor, "two_c_head c"],
    gate_weight: Float[Tensor, "width c"],
    gate_bias: Float[Tensor, " width"],
    output_weight: Float[Tensor, "c width"],
    output_bias: Float[Tensor, " c"],
) -> Float[Tensor, "*b r s c"]:
    """m + output(sigmoid(gate(x)) * attention(x)), where x = norm(m); attention of each residue r to its sequences s.

    The query is that of their mean; heads share keys and values, whose weights are put together in `kv_weight`.
    `mask` is 0 where a sequence has no residue; a single number expanded (strides of 0) hides nothing.
    Consumes m: where no gradient is recorded the sum is written into it.
    """
    x = F.layer_norm(m, norm_weight.shape, norm_weight, norm_bias)
    wide = torch.promote_types(x.dtype, torch.float32)
    present = mask[..., None].to(wide)
    mean = (x.to(wide) * present).sum(-2) / (present.sum(-2) + 1e-10)
    c_head = len(kv_weight) // 2
    q = F.linear(mean.to(x.dtype), q_weight).unflatten(-1, (-1, c_head)) * c_head**-0.5
    k, v = F.linear(x, kv_weight).chunk(2, dim=-1)
    logits = torch.einsum("...rhc,...rsc->...rhs", q, k)
    logits = logits.masked_fill(mask[..., None, :] == 0, masked_logit(logits.dtype))
    weights = logits.softmax(-1, dtype=wide).to(v.dtype)
    mixed = torch.einsum("...rhs,...rsc->...rhc", weights, v).flatten(-2)
    gated = F.linear(x, gate_weight, gate_bias).sigmoid() * mixed.unsqueeze(-2)
    return add(m, F.linear(gated, output_weight, output_bias))


@global_column_attention.like
def _small(m: Tensor, mask: Tensor, *parameters: Tensor) -> small.Smalls:
    shape = small.ROWS, small.POSITIONS
    return small.normal(m, *shape, m.shape[-1]), small.mask(mask, *shape), *small.parameters(parameters)
