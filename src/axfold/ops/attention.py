"""Attention with a bias that all rows share, a mask of the keys and a gate: Algorithms 7, 8, 13 and 14."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.op import Op

MASKED = -1e9
"""Logit of a masked key. Finite, so that a row whose keys are all masked averages them (as AlphaFold's does)."""


def masked_logit(dtype: torch.dtype) -> float:
    """MASKED; in float16, which can't hold it, half of the least number, so that with a bias it stays finite.

    Where it is added to logits of float16 a row without keys does not quite average them.
    """
    return max(MASKED, torch.finfo(dtype).min / 2)


@Op
def gated_attention(
    q: Float[Tensor, "*b r q h c"],
    k: Float[Tensor, "*b r k h c"],
    v: Float[Tensor, "*b r k h c"],
    gate: Float[Tensor, "*b r q h c"],
    mask: Float[Tensor, "*b r k"],
    bias: Float[Tensor, "*b h q k"] | None = None,
) -> Float[Tensor, "*b r q hc"]:
    """sigmoid(gate) * softmax(c^-1/2 q kᵀ + bias) v for each row r and head h; heads side by side in the result.

    `mask` is 0 where a row has no key; a single number expanded (strides of 0) hides nothing. `bias` is the same
    for all rows. The softmax is taken in at least float32.
    """
    logits = torch.einsum("...rqhc,...rkhc->...rhqk", q * q.shape[-1] ** -0.5, k)
    if bias is not None:
        logits = logits + bias.unsqueeze(-4)
    logits = logits.masked_fill(mask[..., None, None, :] == 0, masked_logit(logits.dtype))
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(dim=-1, dtype=wide).to(v.dtype)
    return (gate.sigmoid() * torch.einsum("...rhqk,...rkhc->...rqhc", weights, v)).flatten(-2)


@gated_attention.like
def _small(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> small.Smalls:
    row = small.normal(q, small.ROWS, small.POSITIONS, *q.shape[-2:])
    hidden = small.mask(mask, small.ROWS, small.POSITIONS)
    shape = q.shape[-2], small.POSITIONS, small.POSITIONS
    return row, row, row, row, hidden, None if bias is None else small.normal(bias, *shape)


_MASKED_LOGITS = 1 << 25  # at once where keys are masked: each row has a bias of its own


def _sdpa_why_not(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> str | None:
    if q.dtype == torch.float64:
        return "float64 has the reference's exact masking"
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, gate, bias)):
        return "rows without keys have other gradients than the reference's"
    if q.dim() != 4:
        return "it takes no batch axes"
    return None


@gated_attention.backend("sdpa", why_not=_sdpa_why_not, checked=False)
def gated_attention_sdpa(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """By PyTorch's scaled_dot_product_attention, which never holds the logits of all rows."""
    q, k, v = (x.transpose(-2, -3) for x in (q, k, v))
    shared = None if bias is None else bias.unsqueeze(0)
    if not any(mask.stride()):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=shared)
    else:
        hidden = ((mask == 0).to(q.dtype) * masked_logit(q.dtype))[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden if shared is None else shared)
        if shared is not None:  # once more for the rows that hide keys, with a bias for each: usually a few
            rows = (mask == 0).any(-1).nonzero().squeeze(-1)
            for some in rows.split(max(_MASKED_LOGITS // shared.numel(), 1)) if len(rows) else ():
                own = shared + hidden[some]
                out[some] = F.scaled_dot_product_attention(q[some], k[some], v[some], attn_mask=own)
    return out.transpose(-2, -3).mul_(gate.sigmoid()).flatten(-2)  # no gradient is recorded here
