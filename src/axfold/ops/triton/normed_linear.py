"""LayerNorm and a projection in one kernel: the normalised representation is never written."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.normed_linear import normed_linear
from axfold.ops.triton import float32, tiles
from axfold.ops.triton.common import extents, normalize, place, recorded, strides, why_not
from axfold.ops.triton.gradients import norm_backward, normed
from axfold.ops.triton.tiles import Tile


@triton.jit(do_not_specialize=["positions"])
def _normed_linear_kernel(
    x,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    positions,
    x_member,
    x_row,
    x_position,
    BIASED: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = W norm(x) + bias, a chunk of its channels at a time."""
    channel = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    member = tl.program_id(1).to(tl.int64)
    x += member * x_member
    out += member * (tl.num_programs(0) // tl.cdiv(positions, BLOCK)) * positions * OUT
    source = x + row * x_row + (position.to(tl.int64) * x_position)[:, None] + channel[None, :]
    target = out + row * positions * OUT + (position * OUT)[:, None]
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    y = tl.load(source, exists[:, None], 0.0).to(tl.float32)
    y = normalize(y, scale, shift, C, 1).to(x.dtype.element_ty)
    for start in tl.range(0, OUT, CHUNK, num_stages=STAGES):
        current = start + chunk
        layer = tl.load(weight + current[None, :] * C + channel[:, None], current[None, :] < OUT, 0.0)
        new = tl.dot(y, layer, input_precision=PRECISION)
        if BIASED:
            new += tl.load(bias + current, current < OUT, 0.0)[None, :]
        inside = exists[:, None] & (current[None, :] < OUT)
        tl.store(target + current[None, :], new.to(out.dtype.element_ty), inside)


def _why_not(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None = None
) -> str | None:
    return why_not(x, norm_weight, norm_bias, weight, bias, channels=x.shape[-1:])


@normed_linear.backend("triton", why_not=_why_not)
def normed_linear_triton(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """One read of x and one write of the result; the backward keeps x and normalises it again."""
    if recorded(x, norm_weight, norm_bias, weight, bias):
        return _NormedLinear.apply(x, norm_weight, norm_bias, weight, bias, tile)
    if x.dtype == torch.float32:
        return float32.normed_linear(x, norm_weight, norm_bias, weight, bias, tile)
    members, rows, positions, c = extents(x)
    width = len(weight)
    out = x.new_empty(*x.shape[:-1], width)
    tile = tile or tiles.tile("normed_linear", x)
    _normed_linear_kernel[(rows * triton.cdiv(positions, tile.positions), members)](
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        positions,
        *strides(x),
        BIASED=bias is not None,
        C=c,
        OUT=width,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, max(16, triton.next_power_of_2(width))),
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tile: Tile | None,
    ) -> Tensor:
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        return normed_linear_triton(x, norm_weight, norm_bias, weight, bias, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        grad = grad.reshape(-1, len(weight))  # a bias for attention arrives channel first, and stays a view
        to_weight = grad.mT @ normed(x, norm_weight, norm_bias)
        to_bias = grad.sum(0) if ctx.needs_input_grad[4] else None
        return *norm_backward(x, norm_weight, grad @ weight), to_weight, to_bias, None
