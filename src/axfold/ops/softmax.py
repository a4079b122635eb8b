"""Softmax of attention's logits by itself, for where the whole attention is not to be one operation."""

import torch
from jaxtyping import Float
from torch import Tensor

from axfold.ops import small
from axfold.ops.attention import MASKED
from axfold.ops.op import Op


@Op
def softmax(
    x: Float[Tensor, "*b r h q k"],
    mask: Float[Tensor, "*b r k"] | None = None,
    bias: Float[Tensor, "*b h q k"] | None = None,
) -> Float[Tensor, "*b r h q k"]:
    """softmax(x + bias) over the keys k, for each row r, head h and query q; taken in at least float32.

    `mask` is 0 where a row has no key; a row without any keys gives each the same. `bias` is the same for all rows.
    Has a backward, the bias' gradient included, the same in every run. Leaves x as it is.
    """
    logits = x.to(torch.promote_types(x.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias.unsqueeze(-4)
    if mask is not None:
        logits = logits.masked_fill(mask[..., None, None, :] == 0, MASKED)
    return logits.softmax(dim=-1).to(x.dtype)


@softmax.like
def _small(x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> small.Smalls:
    heads, queries, keys = 2, 5, x.shape[-1]
    return (
        small.normal(x, small.ROWS, heads, queries, keys),
        None if mask is None else small.mask(mask, small.ROWS, keys),
        None if bias is None else small.normal(bias, heads, queries, keys),
    )
