"""LayerNorm, forward and backward: a row is read once in either, and no statistics are kept between them."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.layer_norm import layer_norm
from axfold.ops.triton import tiles
from axfold.ops.triton.common import EPSILON, INTERPRETED, place
from axfold.ops.triton.tiles import Tile


@triton.jit
def _standardize(x, exists, C: tl.constexpr):
    """(x - mean) / deviation and 1 / deviation of the rows of x [positions, channels >= C]; 0 where none `exists`."""
    centered = tl.where(exists, x - tl.sum(x, 1)[:, None] / C, 0.0)
    inverse = tl.rsqrt(tl.sum(centered * centered, 1)[:, None] / C + EPSILON)
    return centered * inverse, inverse


@triton.jit(do_not_specialize=["positions"])
def _forward(
    x,
    weight,
    bias,
    out,
    positions,
    x_row,
    x_position,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [rows, positions, C] = norm(x) * weight + bias."""
    channel = tl.arange(0, WIDTH)
    real = channel < C
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = (position < positions)[:, None] & real[None, :]
    far = position.to(tl.int64)[:, None]
    y = tl.load(x + row * x_row + far * x_position + channel[None, :], exists, 0.0).to(tl.float32)
    y, _ = _standardize(y, exists, C)
    scale, shift = tl.load(weight + channel, real, 0.0), tl.load(bias + channel, real, 0.0)
    y = y * scale.to(tl.float32)[None, :] + shift.to(tl.float32)[None, :]
    tl.store(out + (row * positions + far) * C + channel[None, :], y.to(out.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["rows", "positions"])
def _backward(
    x,
    weight,
    grad,
    x_grad,
    partial,
    rows,
    positions,
    x_row,
    x_position,
    grad_row,
    grad_position,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of x, and this program's share [2, C] of those of weight and bias; which tiles it takes is fixed."""
    channel = tl.arange(0, WIDTH)
    real = channel < C
    scale = tl.load(weight + channel, real, 0.0).to(tl.float32)[None, :]
    to_weight = tl.zeros((WIDTH,), tl.float32)
    to_bias = tl.zeros((WIDTH,), tl.float32)
    blocks = tl.cdiv(positions, BLOCK)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None] & real[None, :]
        far = position.to(tl.int64)[:, None]
        y = tl.load(x + row * x_row + far * x_position + channel[None, :], exists, 0.0).to(tl.float32)
        g = tl.load(grad + row * grad_row + far * grad_position + channel[None, :], exists, 0.0).to(
            tl.float32
        )
        y, inverse = _standardize(y, exists, C)
        to_weight += tl.sum(g * y, 0)
        to_bias += tl.sum(g, 0)
        g *= scale
        g = (g - tl.sum(g, 1)[:, None] / C - y * (tl.sum(g * y, 1)[:, None] / C)) * inverse
        tl.store(
            x_grad + (row * positions + far) * C + channel[None, :], g.to(x_grad.dtype.element_ty), exists
        )
    share = partial + tl.program_id(0) * (2 * C) + channel
    tl.store(share, to_weight, real)
    tl.store(share + C, to_bias, real)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tile: Tile) -> Tensor:
        flat = _rows(x)
        rows, positions, c = flat.shape
        out = x.new_empty(flat.shape)
        _forward[(rows * triton.cdiv(positions, tile.positions),)](
            flat,
            weight,
            bias,
            out,
            positions,
            *flat.stride()[:2],
            C=c,
            WIDTH=triton.next_power_of_2(c),
            BLOCK=tile.positions,
            num_warps=tile.warps,
        )
        ctx.save_for_backward(x, weight)
        ctx.tile = tile
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat, incoming = _rows(x), _rows(grad if grad.stride(-1) == 1 else grad.contiguous())
        rows, positions, c = flat.shape
        x_grad = x.new_empty(flat.shape)
        programs = tiles.programs(ctx.tile, rows * triton.cdiv(positions, ctx.tile.positions), x.device)
        partial = x.new_empty(programs, 2, c, dtype=torch.float32)
        _backward[(programs,)](
            flat,
            weight,
            incoming,
            x_grad,
            partial,
            rows,
            positions,
            *flat.stride()[:2],
            *incoming.stride()[:2],
            C=c,
            WIDTH=triton.next_power_of_2(c),
            BLOCK=ctx.tile.positions,
            num_warps=ctx.tile.warps,
        )
        to_weight, to_bias = partial.sum(0).to(weight.dtype)  # the second stage
        return x_grad.view(x.shape), to_weight, to_bias, None


def _rows(x: Tensor) -> Tensor:
    """x as [rows, positions, c]: a view unless more than two leading axes lie apart."""
    return x.flatten(0, -3) if x.dim() > 2 else x.reshape(1, -1, x.shape[-1])


def _why_not(x: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    if not (x.is_cuda or INTERPRETED):
        return "it needs a CUDA device"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {x.dtype}"
    if any(p.dtype != x.dtype or p.device != x.device for p in (weight, bias)):
        return "parameters have another dtype or device than the representation"
    if x.stride(-1) != 1 or not (weight.is_contiguous() and bias.is_contiguous()):
        return "channels are not contiguous"
    if not x.numel():
        return "there are no numbers"
    if x.shape[-1] > tiles.widest("layer_norm"):
        return f"there are more than {tiles.widest('layer_norm')} channels"
    return None


@layer_norm.backend("triton", why_not=_why_not)
def layer_norm_triton(x: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None) -> Tensor:
    """One read and one write of x; its backward reads x and the gradient, and writes the gradient."""
    return _LayerNorm.apply(x, weight, bias, tile or tiles.tile("layer_norm", x))
