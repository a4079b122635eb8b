"""Softmax of attention's logits with mask and bias, forward and backward; the logits with them are never written."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.softmax import softmax
from axfold.ops.triton import tiles
from axfold.ops.triton.common import INTERPRETED, place
from axfold.ops.triton.tiles import Tile

HIDDEN = tl.constexpr(-1e9)
"""`MASKED`, the logit of a masked key."""
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["heads", "queries"])
def _forward(
    x,
    mask,
    bias,
    out,
    heads,
    queries,
    keys,
    x_row,
    x_head,
    x_query,
    mask_row,
    mask_key,
    bias_head,
    bias_query,
    bias_key,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [rows, heads, queries, keys] of BLOCK queries of a row and head."""
    key = tl.arange(0, WIDTH)
    real = key < keys
    both, query = place(tl.program_id(0), tl.cdiv(queries, BLOCK), BLOCK)
    row, head = both // heads, both % heads
    query = query.to(tl.int64)[:, None]
    exists = (query < queries) & real[None, :]
    logits = tl.load(x + row * x_row + head * x_head + query * x_query + key[None, :], exists, 0.0).to(
        tl.float32
    )
    if BIASED:
        source = bias + head * bias_head + query * bias_query + key.to(tl.int64)[None, :] * bias_key
        logits += tl.load(source, exists, 0.0).to(tl.float32)
    if MASKED:
        shown = tl.load(mask + row * mask_row + key.to(tl.int64) * mask_key, real, 1.0)
        logits = tl.where((shown == 0)[None, :], HIDDEN, logits)
    logits = tl.where(real[None, :], logits, float("-inf"))
    weights = tl.exp2((logits - tl.max(logits, 1)[:, None]) * LOG2_E)
    weights /= tl.sum(weights, 1)[:, None]
    target = out + (both * queries + query) * keys + key[None, :]
    tl.store(target, weights.to(out.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["rows", "heads", "queries", "members"])
def _backward(
    weights,
    mask,
    grad,
    x_grad,
    partial,
    rows,
    heads,
    queries,
    keys,
    members,
    mask_row,
    mask_key,
    grad_row,
    grad_head,
    grad_query,
    MASKED: tl.constexpr,
    BIASED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of x for BLOCK queries of a head in `members` rows, one after the other; their sum is for the bias."""
    key = tl.arange(0, WIDTH)
    real = key < keys
    blocks = tl.cdiv(queries, BLOCK)
    group = tl.program_id(0) // (heads * blocks)
    head, query = place(tl.program_id(0) % (heads * blocks), blocks, BLOCK)
    query = query.to(tl.int64)[:, None]
    exists = (query < queries) & real[None, :]
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for member in tl.range(group * members, tl.minimum((group + 1) * members, rows)):
        row = tl.cast(member, tl.int64)
        at = ((row * heads + head) * queries + query) * keys + key[None, :]
        p = tl.load(weights + at, exists, 0.0).to(tl.float32)
        source = grad + row * grad_row + head * grad_head + query * grad_query + key[None, :]
        g = tl.load(source, exists, 0.0).to(tl.float32)
        g = p * (g - tl.sum(p * g, 1)[:, None])
        if MASKED:
            shown = tl.load(mask + row * mask_row + key.to(tl.int64) * mask_key, real, 1.0)
            g = tl.where((shown == 0)[None, :], 0.0, g)
        tl.store(x_grad + at, g.to(x_grad.dtype.element_ty), exists)
        if BIASED:
            total += g
    if BIASED:
        share = ((tl.cast(group, tl.int64) * heads + head) * queries + query) * keys + key[None, :]
        tl.store(partial + share, total, exists)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor | None, bias: Tensor | None, tile: Tile) -> Tensor:
        rows, heads, queries, keys = x.shape
        out = x.new_empty(x.shape)
        _forward[(rows * heads * triton.cdiv(queries, tile.positions),)](
            x,
            mask,
            bias,
            out,
            heads,
            queries,
            keys,
            *x.stride()[:3],
            *((0, 0) if mask is None else mask.stride()),
            *((0, 0, 0) if bias is None else bias.stride()),
            MASKED=mask is not None,
            BIASED=bias is not None,
            WIDTH=triton.next_power_of_2(keys),
            BLOCK=tile.positions,
            num_warps=tile.warps,
        )
        ctx.save_for_backward(out, mask)
        ctx.tile, ctx.bias_dtype = tile, None if bias is None else bias.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, mask = ctx.saved_tensors
        tile, biased = ctx.tile, ctx.bias_dtype is not None and ctx.needs_input_grad[2]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        rows, heads, queries, keys = weights.shape
        each = heads * triton.cdiv(queries, tile.positions)
        groups = min(rows, triton.cdiv(tiles.programs(tile, rows * each, grad.device), each))
        members = triton.cdiv(rows, groups)
        groups = triton.cdiv(rows, members)
        x_grad = torch.empty_like(weights)
        partial = weights.new_empty(groups, heads, queries, keys, dtype=torch.float32) if biased else None
        _backward[(groups * each,)](
            weights,
            mask,
            grad,
            x_grad,
            partial,
            rows,
            heads,
            queries,
            keys,
            members,
            *((0, 0) if mask is None else mask.stride()),
            *grad.stride()[:3],
            MASKED=mask is not None,
            BIASED=biased,
            WIDTH=triton.next_power_of_2(keys),
            BLOCK=tile.positions,
            num_warps=tile.warps,
        )
        to_bias = None if partial is None else partial.sum(0).to(ctx.bias_dtype)  # the second stage
        return x_grad, None, to_bias, None


def _why_not(x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    if not (x.is_cuda or INTERPRETED):
        return "it needs a CUDA device"
    if any(t is not None and t.device != x.device for t in (mask, bias)):
        return "the tensors are on different devices"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {x.dtype}"
    if bias is not None and bias.dtype not in (x.dtype, torch.float32):
        return "the bias has another dtype than the logits"
    if x.dim() != 4:
        return "it takes no batch axes"
    if x.stride(-1) != 1:
        return "keys are not contiguous"
    if not x.numel():
        return "there are no numbers"
    if x.shape[-1] > tiles.widest("softmax"):
        return f"there are more than {tiles.widest('softmax')} keys"
    return None


@softmax.backend("triton", why_not=_why_not)
def softmax_triton(
    x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """One read and one write of the logits; the bias is read from the cache by all rows but the first."""
    return _Softmax.apply(x, mask, bias, tile or tiles.tile("softmax", x))
