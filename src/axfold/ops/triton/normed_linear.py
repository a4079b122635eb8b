"""LayerNorm and a projection in one kernel: the normalised representation is never written.

Or, for wide layers of many channels, LayerNorm by a kernel and the product by cuBLAS, some rows at a time.
"""

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

NARROW = (4, 16, 32)
"""Channels of a layer up to which it has tiles of its own."""

PART_BYTES = 64 << 20
"""Of normalised rows at once. Larger parts are little faster, smaller ones do not fill the GPU."""

PART_CHANNELS, PART_POSITIONS = 256, 1 << 16
"""Of a representation whose wide layers are so faster: fewer channels leave one kernel near its floor."""


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


@triton.jit(do_not_specialize=["positions"])
def _normalized(
    x, norm_weight, norm_bias, out, positions, x_row, x_position, C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [rows, positions, C] = norm(x)."""
    channel = tl.arange(0, C)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = (position < positions)[:, None]
    far = position.to(tl.int64)[:, None]
    y = tl.load(x + row * x_row + far * x_position + channel[None, :], exists, 0.0).to(tl.float32)
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    y = normalize(y, scale, shift, C, 1)
    tl.store(out + (row * positions + far) * C + channel[None, :], y.to(out.dtype.element_ty), exists)


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
    if tile is None:
        narrow = next((f" to {most}" for most in NARROW if width <= most), "")
        tile = tiles.tile("normed_linear" + narrow, x)
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


def _parts_why_not(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None = None
) -> str | None:
    if (reason := _why_not(x, norm_weight, norm_bias, weight, bias)) is not None:
        return reason
    if x.dtype == torch.float32:
        return "it has half precision alone"
    if recorded(x, norm_weight, norm_bias, weight, bias):
        return "it has no backward"
    if x.dim() != 3:
        return "it takes no batch axes"
    if x.shape[-1] != PART_CHANNELS or len(weight) < 2 * PART_CHANNELS:
        return f"one kernel is faster but for a wide layer of {PART_CHANNELS} channels"
    if x.shape[0] * x.shape[1] < PART_POSITIONS:
        return f"one kernel is as fast under {PART_POSITIONS} positions"
    return None


@normed_linear.backend("parts", why_not=_parts_why_not)
def normed_linear_parts(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    part_bytes: int = PART_BYTES,
) -> Tensor:
    """Rows of `part_bytes` are normalised and multiplied; their place serves the next ones."""
    rows, positions, c = x.shape
    out = x.new_empty(rows, positions, len(weight))
    if not out.numel():
        return out
    size = min(max(part_bytes // (positions * c * x.element_size()), 1), rows)
    normed = x.new_empty(size, positions, c)
    block = 4096 // c
    layer = weight.t()
    for start in range(0, rows, size):
        some = min(size, rows - start)
        _normalized[(some * triton.cdiv(positions, block),)](
            x[start:], norm_weight, norm_bias, normed, positions, *x.stride()[:2], C=c, BLOCK=block, num_warps=4
        )  # fmt: skip
        source, target = normed[:some].flatten(0, 1), out[start : start + some].flatten(0, 1)
        if bias is None:
            torch.mm(source, layer, out=target)
        else:
            torch.addmm(bias, source, layer, out=target)
    return out
