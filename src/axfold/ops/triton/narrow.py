"""Backwards of narrow layers in one kernel each: weights and the sums of their gradients stay on the chip.

The ways of `gradients` write every step of a backward to memory, for products that are cuBLAS's. Where the channels are
few, these products take next to no time, and the traffic all of it: here a representation is read once, with its
gradient, and what it receives is written once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.triton import tiles
from axfold.ops.triton.common import EPSILON, extents, place, sigmoid, strides, strides_of_mask
from axfold.ops.triton.gradients import total
from axfold.ops.triton.tiles import Tile

NARROWER, NARROW = Tile(64, 0, 8, 1, resident=1), Tile(32, 0, 8, 1, resident=1)
"""Tiles of at most 32 channels, and of more: the largest whose sums and steps stay in registers."""
WIDEST = 64 * 128
"""Numbers of a layer [out, in] whose gradient a program keeps."""


def takes(*layers: Tensor) -> bool:
    """Whether all layers [out, in] are so narrow, and their sizes powers of two."""
    sizes = [size for layer in layers for size in layer.shape]
    return max(x.numel() for x in layers) <= WIDEST and all(n >= 16 and n & (n - 1) == 0 for n in sizes)


@triton.jit
def _normed(x, scale, shift, C: tl.constexpr):
    """Standardized x [positions, C] in float32, one over its deviation, and the normalised x in float32."""
    x -= tl.sum(x, 1)[:, None] / C
    inverse = tl.rsqrt(tl.sum(x * x, 1)[:, None] / C + EPSILON)
    x *= inverse
    return x, inverse, x * scale[None, :] + shift[None, :]


@triton.jit
def _through_norm(grad, x, inverse, scale, C: tl.constexpr):
    """Gradient of what was normalised; x is standardized."""
    grad *= scale[None, :]
    return (grad - tl.sum(grad, 1)[:, None] / C - x * (tl.sum(grad * x, 1)[:, None] / C)) * inverse


@triton.jit(do_not_specialize=["rows", "positions"])
def _transition_backward(
    x,
    grad,
    norm_weight,
    norm_bias,
    expand_weight,
    expand_bias,
    output_weight,
    out,
    partial,
    rows,
    positions,
    x_member,
    x_row,
    x_position,
    grad_member,
    grad_row,
    grad_position,
    out_member,
    out_row,
    out_position,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = the gradient of x, and this program's share of the others, side by side: norm, expand, output."""
    channel, wide = tl.arange(0, C), tl.arange(0, HIDDEN)
    member = tl.program_id(1).to(tl.int64)
    x += member * x_member
    grad += member * grad_member
    out += member * out_member
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    expand_weight += wide[:, None] * C + channel[None, :]
    output_weight += channel[:, None] * HIDDEN + wide[None, :]
    to_scale, to_shift = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    to_first, to_first_bias = tl.zeros((HIDDEN, C), tl.float32), tl.zeros((HIDDEN,), tl.float32)
    to_second, to_second_bias = tl.zeros((C, HIDDEN), tl.float32), tl.zeros((C,), tl.float32)
    blocks = tl.cdiv(positions, BLOCK)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None]
        far = position.to(tl.int64)[:, None]
        y = tl.load(x + row * x_row + far * x_position + channel[None, :], exists, 0.0).to(tl.float32)
        g = tl.load(grad + row * grad_row + far * grad_position + channel[None, :], exists, 0.0)
        y, inverse, normal = _normed(y, scale, shift, C)
        normal = normal.to(g.dtype)
        first = tl.load(expand_weight)  # in each round from the cache: nothing is kept in registers but sums
        hidden = tl.dot(normal, tl.trans(first), input_precision=PRECISION)
        hidden = tl.maximum(hidden + tl.load(expand_bias + wide).to(tl.float32)[None, :], 0.0).to(g.dtype)
        to_second = tl.dot(tl.trans(g), hidden, to_second, input_precision=PRECISION)
        to_second_bias += tl.sum(g.to(tl.float32), 0)
        inner = tl.where(hidden > 0, tl.dot(g, tl.load(output_weight), input_precision=PRECISION), 0.0)
        to_first_bias += tl.sum(inner, 0)
        inner = inner.to(g.dtype)
        to_first = tl.dot(tl.trans(inner), normal, to_first, input_precision=PRECISION)
        change = tl.dot(inner, first, input_precision=PRECISION)
        to_scale += tl.sum(change * y, 0)
        to_shift += tl.sum(change, 0)
        change = _through_norm(change, y, inverse, scale, C) + g.to(tl.float32)
        target = out + row * out_row + far * out_position + channel[None, :]
        tl.store(target, change.to(out.dtype.element_ty), exists)
    share = partial + (member * tl.num_programs(0) + tl.program_id(0)) * (2 * C * HIDDEN + 3 * C + HIDDEN)
    tl.store(share + channel, to_scale)
    tl.store(share + C + channel, to_shift)
    share += 2 * C
    tl.store(share + wide[:, None] * C + channel[None, :], to_first)
    share += HIDDEN * C
    tl.store(share + wide, to_first_bias)
    share += HIDDEN
    tl.store(share + channel[:, None] * HIDDEN + wide[None, :], to_second)
    tl.store(share + HIDDEN * C + channel, to_second_bias)


def transition_backward(
    x: Tensor,
    grad: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of x [*b, rows, positions, c] and of all six parameters; `grad` is that of x with its update."""
    members, rows, positions, c = extents(x)
    hidden = len(expand_weight)
    tile = NARROWER if c <= 32 else NARROW
    grid = tiles.grid(tile, members, rows * triton.cdiv(positions, tile.positions), x.device)
    sizes = c, c, hidden * c, hidden, c * hidden, c
    partial = x.new_empty(grid[0] * grid[1], sum(sizes), dtype=torch.float32)
    out = torch.empty_like(x)
    _transition_backward[grid](
        x,
        grad,
        norm_weight,
        norm_bias,
        expand_weight,
        expand_bias,
        output_weight,
        out,
        partial,
        rows,
        positions,
        *strides(x),
        *strides(grad),
        *strides(out),
        C=c,
        HIDDEN=hidden,
        BLOCK=tile.positions,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
    )
    to_scale, to_shift, to_expand, to_expand_bias, to_output, to_output_bias = total(partial, x.dtype).split(
        sizes
    )
    to_expand, to_output = to_expand.view(expand_weight.shape), to_output.view(output_weight.shape)
    return out, to_scale, to_shift, to_expand, to_expand_bias, to_output, to_output_bias


@triton.jit(do_not_specialize=["rows", "positions", "mask_row", "mask_position"])
def _operand_backward(
    z,
    mask,
    grad,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    partial,
    rows,
    positions,
    z_member,
    z_row,
    z_position,
    mask_member,
    mask_row,
    mask_position,
    grad_member,
    grad_channel,
    grad_row,
    out_member,
    out_row,
    out_position,
    MASKED: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = the gradient of z, and this program's share of the others, side by side: norm, layer; channel first."""
    channel, outer = tl.arange(0, C_IN), tl.arange(0, C_OUT)
    member = tl.program_id(1).to(tl.int64)
    z += member * z_member
    mask += member * mask_member
    grad += member * grad_member
    out += member * out_member
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    weight += outer[:, None] * C_IN + channel[None, :]
    bias += outer
    to_scale, to_shift = tl.zeros((C_IN,), tl.float32), tl.zeros((C_IN,), tl.float32)
    to_value, to_gate = tl.zeros((C_OUT, C_IN), tl.float32), tl.zeros((C_OUT, C_IN), tl.float32)
    to_value_bias, to_gate_bias = tl.zeros((C_OUT,), tl.float32), tl.zeros((C_OUT,), tl.float32)
    blocks = tl.cdiv(positions, BLOCK)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = position < positions
        far = position.to(tl.int64)[:, None]
        y = tl.load(z + row * z_row + far * z_position + channel[None, :], exists[:, None], 0.0).to(
            tl.float32
        )
        source = grad + row * grad_row + outer.to(tl.int64)[:, None] * grad_channel + position[None, :]
        g = tl.load(source, exists[None, :], 0.0).to(tl.float32)
        if MASKED:
            shown = mask + row * mask_row + position.to(tl.int64) * mask_position
            g *= tl.load(shown, exists, 0.0).to(tl.float32)[None, :]
        y, inverse, normal = _normed(y, scale, shift, C_IN)
        value_layer, gate_layer = tl.load(weight), tl.load(weight + C_OUT * C_IN)  # from the cache, as above
        normal = normal.to(value_layer.dtype)
        value = tl.dot(value_layer, tl.trans(normal), input_precision=PRECISION)
        value += tl.load(bias).to(tl.float32)[:, None]
        gate = tl.dot(gate_layer, tl.trans(normal), input_precision=PRECISION)
        gate = sigmoid(gate, tl.load(bias + C_OUT).to(tl.float32)[:, None])
        g *= gate
        to_value_bias += tl.sum(g, 1)
        value = g * value * (1 - gate)  # the gradient of the gate
        to_gate_bias += tl.sum(value, 1)
        one, other = g.to(value_layer.dtype), value.to(value_layer.dtype)
        to_value = tl.dot(one, normal, to_value, input_precision=PRECISION)
        to_gate = tl.dot(other, normal, to_gate, input_precision=PRECISION)
        change = tl.dot(tl.trans(one), value_layer, input_precision=PRECISION)
        change = tl.dot(tl.trans(other), gate_layer, change, input_precision=PRECISION)
        to_scale += tl.sum(change * y, 0)
        to_shift += tl.sum(change, 0)
        change = _through_norm(change, y, inverse, scale, C_IN)
        target = out + row * out_row + far * out_position + channel[None, :]
        tl.store(target, change.to(out.dtype.element_ty), exists[:, None])
    share = partial + (member * tl.num_programs(0) + tl.program_id(0)) * (
        2 * C_IN * C_OUT + 2 * C_IN + 2 * C_OUT
    )
    tl.store(share + channel, to_scale)
    tl.store(share + C_IN + channel, to_shift)
    share += 2 * C_IN
    at = outer[:, None] * C_IN + channel[None, :]
    tl.store(share + at, to_value)
    tl.store(share + C_OUT * C_IN + at, to_gate)
    share += 2 * C_OUT * C_IN
    tl.store(share + outer, to_value_bias)
    tl.store(share + C_OUT + outer, to_gate_bias)


def operand_backward(
    z: Tensor,
    mask: Tensor,
    grad: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of z [*b, rows, positions, c_in], of its norm and of the layer.

    `grad` [*b, c, rows, k] is that of the operand.
    """
    members, rows, positions, c_in = extents(z)
    c_out = len(weight) // 2
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    tile = NARROWER if c_in <= 32 else NARROW
    grid = tiles.grid(tile, members, rows * triton.cdiv(positions, tile.positions), z.device)
    sizes = c_in, c_in, weight.numel(), len(bias)
    partial = z.new_empty(grid[0] * grid[1], sum(sizes), dtype=torch.float32)
    out = torch.empty_like(z)
    _operand_backward[grid](
        z,
        mask,
        grad,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        partial,
        rows,
        positions,
        *strides(z),
        *strides_of_mask(mask),
        *strides(grad),
        *strides(out),
        MASKED=any(mask.stride()),
        C_IN=c_in,
        C_OUT=c_out,
        BLOCK=tile.positions,
        PRECISION=tiles.products(z.dtype),
        num_warps=tile.warps,
    )
    to_scale, to_shift, to_weight, to_bias = total(partial, z.dtype).split(sizes)
    return out, to_scale, to_shift, to_weight.view(weight.shape), to_bias
