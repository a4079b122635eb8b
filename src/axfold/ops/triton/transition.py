"""The transition: the hidden layer, four times as wide as the representation, stays on the chip."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.transition import transition
from axfold.ops.triton import float32, narrow, tiles
from axfold.ops.triton.common import extents, normalize, place, recorded, strides, strides_of_keep, why_not
from axfold.ops.triton.gradients import arriving, norm_backward, normed, relu_backward
from axfold.ops.triton.tiles import Tile


@triton.jit(do_not_specialize=["positions"])
def _transition_kernel(
    x,
    keep,
    norm_weight,
    norm_bias,
    expand_weight,
    expand_bias,
    output_weight,
    output_bias,
    out,
    positions,
    x_member,
    x_row,
    x_position,
    keep_member,
    keep_row,
    keep_position,
    keep_channel,
    out_member,
    out_row,
    out_position,
    DROPOUT: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x + keep * (output W relu(expand W norm(x))), the hidden layer a chunk at a time; out may be x."""
    channel = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    far = position.to(tl.int64)[:, None]
    member = tl.program_id(1).to(tl.int64)
    x += member * x_member
    out += member * out_member
    if DROPOUT:
        keep += member * keep_member
    source = x + row * x_row + far * x_position + channel[None, :]
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    y = tl.load(source, exists[:, None], 0.0).to(tl.float32)
    y = normalize(y, scale, shift, C, 1).to(x.dtype.element_ty)
    expand_weight += chunk[None, :] * C + channel[:, None]
    output_weight += channel[None, :] * HIDDEN + chunk[:, None]
    update = tl.zeros((BLOCK, C), tl.float32)
    for start in tl.range(0, HIDDEN, CHUNK, num_stages=STAGES):
        hidden = tl.dot(y, tl.load(expand_weight + start * C), input_precision=PRECISION)
        hidden = tl.maximum(hidden + tl.load(expand_bias + start + chunk)[None, :], 0.0)
        layer = tl.load(output_weight + start)
        update = tl.dot(hidden.to(x.dtype.element_ty), layer, update, input_precision=PRECISION)
    update += tl.load(output_bias + channel)[None, :]
    if DROPOUT:
        kept = keep + row * keep_row + far * keep_position + channel[None, :] * keep_channel
        update *= tl.load(kept, exists[:, None], 0.0).to(tl.float32)
    update += tl.load(source, exists[:, None], 0.0)
    target = out + row * out_row + far * out_position + channel[None, :]
    tl.store(target, update.to(out.dtype.element_ty), exists[:, None])


def _by_member(x: Tensor) -> bool:
    """Whether the batch goes member by member: the kernel takes one batch axis, in half precision."""
    return x.dim() > 4 or (x.dim() == 4 and x.dtype == torch.float32)


def _why_not(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    keep: Tensor | None = None,
) -> str | None:
    if _by_member(x) and len(x):  # one member of a batch is as good as another
        return _why_not(x[0], norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias)
    if len(expand_weight) % 16:
        return "the hidden layer's width is no multiple of 16"
    layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
    return why_not(x, *layers, channels=x.shape[-1:])


@transition.backend("triton", why_not=_why_not)
def transition_triton(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    keep: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """One read and one write of x; a batch goes member by member. The backward makes the hidden layer again."""
    layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
    if _by_member(x):
        each = [None] * len(x) if keep is None else list(keep.expand_as(x))
        new = [transition_triton(one, *layers, kept, tile) for one, kept in zip(x, each, strict=True)]
        return torch.stack(new) if torch.is_grad_enabled() else x
    if recorded(x, *layers):
        return _Transition.apply(x, *layers, keep, tile)
    return updated(x, *layers, keep, torch.empty_like(x) if torch.is_grad_enabled() else x, tile)


def updated(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    keep: Tensor | None,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """x with its update, in `out`, which may be x."""
    members, rows, positions, c = extents(x)
    hidden = len(expand_weight)
    kept = None if keep is None else keep.expand_as(x)
    if x.dtype == torch.float32:
        layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
        return float32.transition(x, kept, *layers, out, tile)
    tile = tile or tiles.tile("transition", x)
    _transition_kernel[(rows * triton.cdiv(positions, tile.positions), members)](
        x,
        kept,
        norm_weight,
        norm_bias,
        expand_weight,
        expand_bias,
        output_weight,
        output_bias,
        out,
        positions,
        *strides(x),
        *strides_of_keep(kept),
        *strides(out),
        DROPOUT=kept is not None,
        C=c,
        HIDDEN=hidden,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, hidden & -hidden),
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


HIDDEN_AT_ONCE = 1 << 29
"""Bytes that the hidden layer may take in the backward, and its gradient as many; larger ones go in parts."""


class _Transition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        expand_weight: Tensor,
        expand_bias: Tensor,
        output_weight: Tensor,
        output_bias: Tensor,
        keep: Tensor | None,
        tile: Tile | None,
    ) -> Tensor:
        layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight
        ctx.save_for_backward(x, *layers, keep)
        return updated(x, *layers, output_bias, keep, torch.empty_like(x), tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *layers, keep = ctx.saved_tensors
        norm_weight, norm_bias, expand_weight, expand_bias, output_weight = layers
        if keep is None and narrow.takes(expand_weight, output_weight):
            return *narrow.transition_backward(x, grad, *layers), None, None
        y = normed(x, norm_weight, norm_bias)
        update, to_output_bias = arriving(grad, keep)
        count = -(-y.element_size() * len(y) * len(expand_weight) // HIDDEN_AT_ONCE) or 1
        parts = []
        for some, change in zip(y.chunk(count), update.chunk(count), strict=True):
            hidden = torch._addmm_activation(expand_bias, some, expand_weight.mT)  # its default is the ReLU
            to_output = change.mT @ hidden
            inner = change @ output_weight
            to_expand_bias = relu_backward(hidden, inner)
            to_expand = inner.mT @ some
            torch.mm(inner, expand_weight, out=some)  # of the normalised x, which is not needed any more
            parts.append((to_expand, to_expand_bias, to_output))
        if len(parts) == 1:
            to_expand, to_expand_bias, to_output = parts[0]
        else:
            to_expand, to_expand_bias, to_output = (
                torch.stack(each).sum(0, dtype=torch.float32).to(x.dtype) for each in zip(*parts, strict=True)
            )
        to_norm = norm_backward(x, norm_weight, y, residual=grad)
        return *to_norm, to_expand, to_expand_bias.to(x.dtype), to_output, to_output_bias, None, None
