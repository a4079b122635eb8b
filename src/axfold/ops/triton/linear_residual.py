"""A projection and the sum that it enters in one kernel: the update is never written."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.linear_residual import linear_residual
from axfold.ops.triton import float32, tiles
from axfold.ops.triton.common import extents, place, recorded, strides, strides_of_keep, why_not
from axfold.ops.triton.gradients import arriving
from axfold.ops.triton.tiles import Tile


@triton.jit(do_not_specialize=["rows", "positions"])
def _linear_residual_kernel(
    x,
    y,
    keep,
    weight,
    bias,
    out,
    rows,
    positions,
    x_member,
    x_row,
    x_position,
    y_member,
    y_row,
    y_position,
    keep_member,
    keep_row,
    keep_position,
    keep_channel,
    out_member,
    out_row,
    out_position,
    DROPOUT: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x + keep * (W y + bias); out may be x."""
    inner = tl.arange(0, WIDTH)
    chunk = tl.arange(0, CHUNK)
    blocks = tl.cdiv(positions, BLOCK)
    member = tl.program_id(1).to(tl.int64)
    x += member * x_member
    y += member * y_member
    out += member * out_member
    if DROPOUT:
        keep += member * keep_member
    AHEAD: tl.constexpr = STAGES if RESIDENT else 1  # else a program has one tile
    weight += chunk[None, :] * WIDTH + inner[:, None]
    bias += chunk
    if RESIDENT:
        layer, shift = tl.load(weight), tl.load(bias)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0), num_stages=AHEAD):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None]
        far = position.to(tl.int64)[:, None]
        source = x + row * x_row + far * x_position + chunk[None, :]
        target = out + row * out_row + far * out_position + chunk[None, :]
        kept = keep
        if DROPOUT:
            kept = keep + row * keep_row + far * keep_position + chunk[None, :] * keep_channel
        values = tl.load(y + row * y_row + far * y_position + inner[None, :], exists, 0.0)
        if RESIDENT:
            before = tl.load(source, exists, 0.0)  # ahead of the product, which it need not wait for
            new = tl.dot(values, layer, input_precision=PRECISION) + shift[None, :]
            if DROPOUT:
                new *= tl.load(kept, exists, 0.0).to(tl.float32)
            tl.store(target, (new + before).to(out.dtype.element_ty), exists)
        else:
            for start in tl.range(0, C, CHUNK, num_stages=STAGES):
                before = tl.load(source + start, exists, 0.0)
                layer, shift = tl.load(weight + start * WIDTH), tl.load(bias + start)
                new = tl.dot(values, layer, input_precision=PRECISION) + shift[None, :]
                if DROPOUT:
                    new *= tl.load(kept + start * keep_channel, exists, 0.0).to(tl.float32)
                tl.store(target + start, (new + before).to(out.dtype.element_ty), exists)


def _why_not(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None = None) -> str | None:
    if y.dtype != x.dtype or y.device != x.device:
        return "what is projected has another dtype or device than the representation"
    if recorded(y) and x.dtype == torch.float32:
        return "it has no backward in float32"
    if y.stride(-1) != 1:
        return "channels are not contiguous"
    return why_not(x, weight, bias, channels=(x.shape[-1], y.shape[-1]))


@linear_residual.backend("triton", why_not=_why_not)
def linear_residual_triton(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """One read of x and of y, and one write of x; the backward keeps y and computes nothing again."""
    if recorded(x, y, weight, bias):
        return _LinearResidual.apply(x, y, weight, bias, keep, tile)
    return added(x, y, weight, bias, keep, torch.empty_like(x) if torch.is_grad_enabled() else x, tile)


def added(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    keep: Tensor | None,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """The sum, in `out`, which may be x."""
    members, rows, positions, c = extents(x)
    kept = None if keep is None else keep.expand_as(x)
    if x.dtype == torch.float32:
        return float32.linear_residual(x, y, kept, weight, bias, out, tile)
    tile = tile or tiles.tile("linear_residual", x)
    _linear_residual_kernel[
        tiles.grid(tile, members, rows * triton.cdiv(positions, tile.positions), x.device)
    ](
        x,
        y,
        kept,
        weight,
        bias,
        out,
        rows,
        positions,
        *strides(x),
        *strides(y),
        *strides_of_keep(kept),
        *strides(out),
        DROPOUT=kept is not None,
        C=c,
        WIDTH=y.shape[-1],
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, c),
        RESIDENT=tile.resident > 0 and tile.chunk >= c,
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


class _LinearResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        keep: Tensor | None,
        tile: Tile | None,
    ) -> Tensor:
        ctx.save_for_backward(y, weight, keep)
        return added(x, y, weight, bias, keep, torch.empty_like(x), tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, weight, keep = ctx.saved_tensors
        update, to_bias = arriving(grad, keep)
        to_weight = update.mT @ y.reshape(-1, y.shape[-1])
        return grad, (update @ weight).view(y.shape), to_weight, to_bias, None, None
