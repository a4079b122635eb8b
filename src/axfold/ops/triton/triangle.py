"""Triangle multiplication: one kernel before its product and one after it; the product itself is cuBLAS's."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.triangle import triangle_operand, triangle_update
from axfold.ops.triton import float32, narrow, tiles
from axfold.ops.triton.common import (
    after_norm,
    extents,
    normalize,
    place,
    recorded,
    sigmoid,
    standardize,
    strides,
    strides_of_keep,
    strides_of_mask,
    why_not,
)
from axfold.ops.triton.gradients import (
    gate_backward,
    gated_backward,
    norm_backward,
    norm_channels,
    norm_channels_backward,
    normed,
)
from axfold.ops.triton.tiles import Tile

ALIGNMENT = 16
"""Rows of operands and products start at multiples of so many numbers, as cuBLAS's fast kernels need."""


@triton.jit(do_not_specialize=["rows", "positions", "mask_row", "mask_position"])
def _operand_kernel(
    z,
    mask,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    rows,
    positions,
    width,
    z_member,
    z_row,
    z_position,
    mask_member,
    mask_row,
    mask_position,
    MASKED: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[c, i, n] = mask * (value W norm(z_in))_c * sigmoid((gate W norm(z_in))_c), and zeros for n >= positions."""
    AHEAD: tl.constexpr = STAGES if RESIDENT else 1  # else a program has one tile
    channel = tl.arange(0, C_IN)
    chunk = tl.arange(0, CHUNK)
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    size = rows.to(tl.int64) * width
    blocks = tl.cdiv(width, BLOCK)
    member = tl.program_id(1).to(tl.int64)
    z += member * z_member
    mask += member * mask_member
    out += member * C_OUT * size
    weight += chunk[:, None] * C_IN + channel[None, :]
    bias += chunk
    if RESIDENT:
        value_layer, gate_layer = tl.load(weight), tl.load(weight + C_OUT * C_IN)
        value_shift, gate_shift = tl.load(bias), tl.load(bias + C_OUT)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0), num_stages=AHEAD):
        row, position = place(tile, blocks, BLOCK)
        exists = position < positions
        source = z + row * z_row + (position.to(tl.int64) * z_position)[:, None] + channel[None, :]
        x = tl.load(source, exists[:, None], 0.0).to(tl.float32)
        x = normalize(x, scale, shift, C_IN, 1).to(z.dtype.element_ty)
        if MASKED:
            shown = mask + row * mask_row + position.to(tl.int64) * mask_position
            shown = tl.load(shown, exists, 0.0).to(tl.float32)
        else:
            shown = exists.to(tl.float32)
        target = out + row * width + position[None, :] + chunk.to(tl.int64)[:, None] * size
        inside = (position < width)[None, :]
        if RESIDENT:
            new = _gated(x, value_layer, gate_layer, value_shift, gate_shift, PRECISION) * shown[None, :]
            tl.store(target, new.to(out.dtype.element_ty), inside)
        else:
            for start in tl.range(0, C_OUT, CHUNK, num_stages=STAGES):
                value_layer = tl.load(weight + start * C_IN)
                gate_layer = tl.load(weight + (start + C_OUT) * C_IN)
                value_shift, gate_shift = tl.load(bias + start), tl.load(bias + start + C_OUT)
                new = _gated(x, value_layer, gate_layer, value_shift, gate_shift, PRECISION) * shown[None, :]
                tl.store(target + start * size, new.to(out.dtype.element_ty), inside)


@triton.jit
def _gated(x, value_layer, gate_layer, value_shift, gate_shift, PRECISION: tl.constexpr):
    """value * sigmoid(gate) of x [positions, c_in], channel first."""
    gate = tl.dot(gate_layer, tl.trans(x), input_precision=PRECISION)
    value = tl.dot(value_layer, tl.trans(x), input_precision=PRECISION) + value_shift[:, None]
    return value * sigmoid(gate, gate_shift.to(tl.float32)[:, None])


@triton.jit(do_not_specialize=["rows", "positions"])
def _update_kernel(
    z,
    product,
    keep,
    norm_weight,
    norm_bias,
    product_norm_weight,
    product_norm_bias,
    output_weight,
    output_bias,
    gate_weight,
    gate_bias,
    out,
    rows,
    positions,
    width,
    z_member,
    z_row,
    z_position,
    keep_member,
    keep_row,
    keep_position,
    keep_channel,
    out_member,
    out_row,
    out_position,
    DROPOUT: tl.constexpr,
    C_Z: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out_in = z_in + keep_in * sigmoid(gate W norm(z_in)) * (output W norm(product_:in)); out may be z."""
    AHEAD: tl.constexpr = STAGES if RESIDENT else 1  # else a program has one tile
    channel = tl.arange(0, C_Z)
    inner = tl.arange(0, C)
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    product_scale = tl.load(product_norm_weight + inner).to(tl.float32)
    product_shift = tl.load(product_norm_bias + inner).to(tl.float32)
    size = rows.to(tl.int64) * width
    blocks = tl.cdiv(positions, BLOCK)
    member = tl.program_id(1).to(tl.int64)
    z += member * z_member
    product += member * C * size
    out += member * out_member
    if DROPOUT:
        keep += member * keep_member
    chunk = tl.arange(0, CHUNK)
    gate_weight += chunk[:, None] * C_Z + channel[None, :]
    output_weight += chunk[:, None] * C + inner[None, :]
    gate_bias += chunk
    output_bias += chunk
    if RESIDENT:
        gate_layer, gate_shift = after_norm(tl.load(gate_weight), tl.load(gate_bias), scale, shift)
        output_layer = tl.load(output_weight)
        output_shift = tl.load(output_bias)
        output_layer, output_shift = after_norm(output_layer, output_shift, product_scale, product_shift)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0), num_stages=AHEAD):
        row, position = place(tile, blocks, BLOCK)
        exists = position < positions
        far = position.to(tl.int64)[:, None]
        source = z + row * z_row + far * z_position
        target = out + row * out_row + far * out_position + chunk[None, :]
        kept = keep
        if DROPOUT:
            kept = keep + row * keep_row + far * keep_position + chunk[None, :] * keep_channel
        p = product + row * width + position[None, :] + inner.to(tl.int64)[:, None] * size
        p = tl.load(p, (position < width)[None, :], 0.0).to(tl.float32)
        p = standardize(p, C, 0) if RESIDENT else normalize(p, product_scale, product_shift, C, 0)
        p = p.to(z.dtype.element_ty)
        x = tl.load(source + channel[None, :], exists[:, None], 0.0)
        y = x.to(tl.float32)
        y = standardize(y, C_Z, 1) if RESIDENT else normalize(y, scale, shift, C_Z, 1)
        y = y.to(z.dtype.element_ty)
        if RESIDENT:
            new = _update(p, y, output_layer, gate_layer, output_shift, gate_shift, PRECISION)
            if DROPOUT:
                new *= tl.load(kept, exists[:, None], 0.0)
            tl.store(target, (x + new).to(out.dtype.element_ty), exists[:, None])
        else:
            for start in tl.range(0, C_Z, CHUNK, num_stages=STAGES):
                output_layer = tl.load(output_weight + start * C)
                gate_layer = tl.load(gate_weight + start * C_Z)
                output_shift, gate_shift = tl.load(output_bias + start), tl.load(gate_bias + start)
                new = _update(p, y, output_layer, gate_layer, output_shift, gate_shift, PRECISION)
                if DROPOUT:
                    new *= tl.load(kept + start * keep_channel, exists[:, None], 0.0)
                new += tl.load(source + start + chunk[None, :], exists[:, None], 0.0)
                tl.store(target + start, new.to(out.dtype.element_ty), exists[:, None])


@triton.jit
def _update(p, y, output_layer, gate_layer, output_shift, gate_shift, PRECISION: tl.constexpr):
    """sigmoid(gate(y)) * output(p) for y [positions, c_z] and p [c, positions], position first."""
    gate = tl.dot(gate_layer, tl.trans(y), input_precision=PRECISION)
    update = tl.dot(output_layer, p, input_precision=PRECISION) + output_shift[:, None]
    return tl.trans(update * sigmoid(gate, gate_shift.to(tl.float32)[:, None]))


def _operand_why_not(
    z: Tensor, mask: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor
) -> str | None:
    channels = z.shape[-1], len(weight) // 2
    return why_not(z, norm_weight, norm_bias, weight, bias, channels=channels)


@triangle_operand.backend("triton", why_not=_operand_why_not)
def triangle_operand_triton(
    z: Tensor,
    mask: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """One read of z and one write of the operand; the backward keeps z and projects it again."""
    if recorded(z, norm_weight, norm_bias, weight, bias):
        return _Operand.apply(z, mask, norm_weight, norm_bias, weight, bias, tile)
    members, rows, positions, c_in = extents(z)
    c_out = len(weight) // 2
    width = triton.cdiv(positions, ALIGNMENT) * ALIGNMENT
    out = z.new_empty(*z.shape[:-3], c_out, rows, width)
    if z.dtype == torch.float32:
        return float32.triangle_operand(z, mask, norm_weight, norm_bias, weight, bias, out, tile)
    tile = tile or tiles.tile("triangle_operand", z)
    _operand_kernel[tiles.grid(tile, members, rows * triton.cdiv(width, tile.positions), z.device)](
        z,
        mask,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        rows,
        positions,
        width,
        *strides(z),
        *strides_of_mask(mask),
        MASKED=any(mask.stride()),
        C_IN=c_in,
        C_OUT=c_out,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, c_out),
        RESIDENT=tile.resident > 0 and tile.chunk >= c_out,
        STAGES=tile.stages,
        PRECISION=tiles.products(z.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


def _update_why_not(z: Tensor, own: Tensor, others: Tensor, *parameters: Tensor | None) -> str | None:
    if own.dtype != z.dtype or own.device != z.device:
        return "the operands have another dtype or device than the representation"
    if recorded(own, others) and z.dtype == torch.float32:
        return "it has no backward in float32"
    return why_not(z, *parameters[:8], channels=(z.shape[-1], own.shape[-3]))


@triangle_update.backend("triton", why_not=_update_why_not)
def triangle_update_triton(
    z: Tensor,
    own: Tensor,
    others: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    product_norm_weight: Tensor,
    product_norm_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    keep: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The product by cuBLAS; then one read of it and of z, and one write of z. The backward keeps what is given."""
    norms = norm_weight, norm_bias, product_norm_weight, product_norm_bias
    layers = output_weight, output_bias, gate_weight, gate_bias
    if recorded(z, own, others, *norms, *layers):
        return _Update.apply(z, own, others, *norms, *layers, keep, tile)
    out = torch.empty_like(z) if torch.is_grad_enabled() else z
    return _updated(z, own, others, *norms, *layers, keep, out, tile)


def _product(own: Tensor, others: Tensor, positions: int) -> Tensor:
    """sum_k own_ik others_nk [*b, c, i, n], where rows are as long as cuBLAS likes them."""
    width = triton.cdiv(positions, ALIGNMENT) * ALIGNMENT
    product = own.new_empty(*own.shape[:-1], width)
    one, other, out = (x.flatten(0, -3) for x in (own, others, product))
    torch.bmm(one, other.mT, out=out[..., :positions])
    return product


def _updated(
    z: Tensor,
    own: Tensor,
    others: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    product_norm_weight: Tensor,
    product_norm_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    keep: Tensor | None,
    out: Tensor,
    tile: Tile | None,
) -> Tensor:
    """z with its update, in `out`, which may be z."""
    members, rows, positions, c_z = extents(z)
    product = _product(own, others, positions)
    width = product.shape[-1]
    kept = None if keep is None else keep.expand_as(z)
    if z.dtype == torch.float32:
        norms = norm_weight, norm_bias, product_norm_weight, product_norm_bias
        layers = output_weight, output_bias, gate_weight, gate_bias
        return float32.triangle_update(z, product, kept, *norms, *layers, out, tile)
    tile = tile or tiles.tile("triangle_update", z)
    _update_kernel[tiles.grid(tile, members, rows * triton.cdiv(positions, tile.positions), z.device)](
        z,
        product,
        kept,
        norm_weight,
        norm_bias,
        product_norm_weight,
        product_norm_bias,
        output_weight,
        output_bias,
        gate_weight,
        gate_bias,
        out,
        rows,
        positions,
        width,
        *strides(z),
        *strides_of_keep(kept),
        *strides(out),
        DROPOUT=kept is not None,
        C_Z=c_z,
        C=own.shape[-3],
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, c_z),
        RESIDENT=tile.resident > 0 and tile.chunk >= c_z,
        STAGES=tile.stages,
        PRECISION=tiles.products(z.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


class _Operand(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        mask: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        tile: Tile | None,
    ) -> Tensor:
        ctx.save_for_backward(z, mask, norm_weight, norm_bias, weight, bias)
        return triangle_operand_triton(z, mask, norm_weight, norm_bias, weight, bias, tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, mask, norm_weight, norm_bias, weight, bias = ctx.saved_tensors
        if narrow.takes(weight):
            to_z, *others = narrow.operand_backward(z, mask, grad, norm_weight, norm_bias, weight, bias)
            return to_z, None, *others, None
        y = normed(z, norm_weight, norm_bias)
        both = torch.addmm(bias, y, weight.mT)
        to_bias = gated_backward(both, mask, grad)  # they are gradients from here on
        to_weight = both.mT @ y
        to_z, *to_norm = norm_backward(z, norm_weight, both @ weight)
        return to_z, None, *to_norm, to_weight, to_bias, None


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        own: Tensor,
        others: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        product_norm_weight: Tensor,
        product_norm_bias: Tensor,
        output_weight: Tensor,
        output_bias: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor,
        keep: Tensor | None,
        tile: Tile | None,
    ) -> Tensor:
        norms = norm_weight, norm_bias, product_norm_weight, product_norm_bias
        layers = output_weight, output_bias, gate_weight, gate_bias
        ctx.save_for_backward(z, own, others, *norms, *layers, keep)
        return _updated(z, own, others, *norms, *layers, keep, torch.empty_like(z), tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, own, others, norm_weight, norm_bias, *parameters, keep = ctx.saved_tensors
        product_norm_weight, product_norm_bias, *layers = parameters
        output_weight, output_bias, gate_weight, gate_bias = layers
        positions = z.shape[-2]
        product = _product(own, others, positions)
        mixed = norm_channels(product, product_norm_weight, product_norm_bias, positions)
        y = normed(z, norm_weight, norm_bias)
        update, gate = (
            torch.addmm(output_bias, mixed, output_weight.mT),
            torch.addmm(gate_bias, y, gate_weight.mT),
        )
        to_output_bias, to_gate_bias = gate_backward(grad, keep, update, gate)  # gradients from here on
        to_output, to_gate = update.mT @ mixed, gate.mT @ y
        torch.mm(update, output_weight, out=mixed)  # each step takes the place of what is not needed any more
        to_product_norm = norm_channels_backward(product, product_norm_weight, mixed, positions)
        torch.mm(gate, gate_weight, out=y)
        to_z, *to_norm = norm_backward(z, norm_weight, y, residual=grad)
        del update, gate, mixed, y
        inner, one, other = product[..., :positions].flatten(0, -3), own.flatten(0, -3), others.flatten(0, -3)
        to_own, to_others = (
            torch.bmm(inner, other).view(own.shape),
            torch.bmm(inner.mT, one).view(others.shape),
        )
        to_layers = to_output, to_output_bias, to_gate, to_gate_bias
        return to_z, to_own, to_others, *to_norm, *to_product_norm, *to_layers, None, None
