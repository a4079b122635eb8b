"""Outer product mean: the products by cuBLAS, and a kernel that reads them as they lie for all that follows."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.outer import outer_product_update
from axfold.ops.triton import tf32, tiles
from axfold.ops.triton.common import extents, place, recorded, strides, strides_of_mask, why_not
from axfold.ops.triton.gradients import arriving, total
from axfold.ops.triton.tiles import Tile


@triton.jit(do_not_specialize=["positions", "count_row", "count_position"])
def _outer_kernel(
    z,
    product,
    count,
    weight,
    bias,
    out,
    positions,
    z_member,
    z_row,
    z_position,
    count_member,
    count_row,
    count_position,
    out_member,
    out_row,
    out_position,
    C_Z: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out_in = z_in + (bias + weight product_in) / (count_in + 0.001); out may be z.

    product[i, c, n, d] is what a channel c of residue i and a channel d of residue n make: for a few c at a time its
    rows of d are put side by side, as the columns of `weight` are.
    """
    channel = tl.arange(0, C_Z)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    pair = tl.arange(0, CHUNK)
    width = positions.to(tl.int64) * C
    member = tl.program_id(1).to(tl.int64)
    z += member * z_member
    count += member * count_member
    out += member * out_member
    product += member * (tl.num_programs(0) // tl.cdiv(positions, BLOCK)) * C * width
    source = product + row * C * width + (pair // C).to(tl.int64)[None, :] * width + (pair % C)[None, :]
    source += (position.to(tl.int64) * C)[:, None]
    layer = weight + channel[None, :] * (C * C) + pair[:, None]
    update = tl.zeros((BLOCK, C_Z), tl.float32)
    for start in tl.range(0, C * C, CHUNK, num_stages=STAGES):
        x = tl.load(source + start // C * width, exists[:, None], 0.0)
        update = tl.dot(x, tl.load(layer + start), update, input_precision=PRECISION)
    far = position.to(tl.int64)
    seen = tl.load(count + row * count_row + far * count_position, exists, 1.0).to(tl.float32)
    update = (update + tl.load(bias + channel)[None, :]) / (seen + 1e-3)[:, None]
    update += tl.load(z + row * z_row + (far * z_position)[:, None] + channel[None, :], exists[:, None], 0.0)
    target = out + row * out_row + (far * out_position)[:, None] + channel[None, :]
    tl.store(target, update.to(out.dtype.element_ty), exists[:, None])


def _why_not(z: Tensor, a: Tensor, b: Tensor, count: Tensor, weight: Tensor, bias: Tensor) -> str | None:
    if any(x.dtype != z.dtype or x.device != z.device for x in (a, b)):
        return "the operands have another dtype or device than the representation"
    if recorded(a, b) and z.dtype == torch.float32:
        return "it has no backward in float32"
    if a.shape[-1] not in (8, 16, 32, 64):
        return f"the operands have {a.shape[-1]} channels, not 8, 16, 32 or 64"
    return why_not(z, weight, bias, channels=z.shape[-1:])


@outer_product_update.backend("triton", why_not=_why_not)
def outer_product_update_triton(
    z: Tensor, a: Tensor, b: Tensor, count: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None
) -> Tensor:
    """The products are written once and read once, in the order in which cuBLAS makes them; the backward makes them
    once more, and their gradients in their place."""
    if recorded(z, a, b, weight, bias):
        return _OuterProductUpdate.apply(z, a, b, count, weight, bias, tile)
    return _updated(z, a, b, count, weight, bias, torch.empty_like(z) if torch.is_grad_enabled() else z, tile)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The products [*b, (i, c), (n, d)]."""
    return torch.matmul(a.mT.flatten(-3, -2), b.flatten(-2))


def _updated(
    z: Tensor,
    a: Tensor,
    b: Tensor,
    count: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    tile: Tile | None,
) -> Tensor:
    """z with its update, in `out`, which may be z."""
    members, rows, positions, c_z = extents(z)
    c = a.shape[-1]
    if tiles.in_float16(z.dtype):
        return tf32.outer_product_update(z, a, b, count, weight, bias, out, tile)
    product = _product(a, b)
    tile = tile or tiles.tile("outer_product_mean", z)
    _outer_kernel[(rows * triton.cdiv(positions, tile.positions), members)](
        z,
        product,
        count,
        weight,
        bias,
        out,
        positions,
        *strides(z),
        *strides_of_mask(count),
        *strides(out),
        C_Z=c_z,
        C=c,
        BLOCK=tile.positions,
        CHUNK=max(min(tile.chunk, c * c), c),
        STAGES=tile.stages,
        PRECISION=tiles.products(z.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


@triton.jit(do_not_specialize=["rows", "positions"])
def _to_weight(
    product,
    grad,
    partial,
    rows,
    positions,
    C_Z: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial[program] [C C, C_Z] = productT grad, CHUNK of its rows, over this program's tiles."""
    channel = tl.arange(0, C_Z)
    pair = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    width = positions.to(tl.int64) * C
    columns = (pair // C).to(tl.int64)[None, :] * width + (pair % C)[None, :]
    blocks = tl.cdiv(positions, BLOCK)
    total = tl.zeros((CHUNK, C_Z), tl.float32)
    for tile in tl.range(tl.program_id(1), rows * blocks, tl.num_programs(1), num_stages=STAGES):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None]
        far = position.to(tl.int64)[:, None]
        x = tl.load(product + row * C * width + far * C + columns, exists, 0.0)
        g = tl.load(grad + (row * positions + far) * C_Z + channel[None, :], exists, 0.0)
        total = tl.dot(tl.trans(x), g, total, input_precision=PRECISION)
    target = partial + (tl.program_id(1) * (C * C) + pair[:, None]) * C_Z + channel[None, :]
    tl.store(target, total)


@triton.jit(do_not_specialize=["positions"])
def _to_product(
    grad,
    weight,
    out,
    positions,
    C_Z: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[i, c, n, d] = (grad weight)_in,cd of grad [rows, positions, C_Z]."""
    channel = tl.arange(0, C_Z)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = (position < positions)[:, None]
    far = position.to(tl.int64)[:, None]
    g = tl.load(grad + (row * positions + far) * C_Z + channel[None, :], exists, 0.0)
    pair = tl.arange(0, CHUNK)
    width = positions.to(tl.int64) * C
    target = out + row * C * width + (pair // C).to(tl.int64)[None, :] * width + (pair % C)[None, :]
    target += far * C
    layer = weight + channel[:, None] * (C * C) + pair[None, :]
    for start in tl.range(0, C * C, CHUNK, num_stages=STAGES):
        new = tl.dot(g, tl.load(layer + start), input_precision=PRECISION)
        tl.store(target + start // C * width, new.to(out.dtype.element_ty), exists)


class _OuterProductUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        a: Tensor,
        b: Tensor,
        count: Tensor,
        weight: Tensor,
        bias: Tensor,
        tile: Tile | None,
    ) -> Tensor:
        ctx.save_for_backward(a, b, count, weight)
        return _updated(z, a, b, count, weight, bias, torch.empty_like(z), tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, count, weight = ctx.saved_tensors
        members, rows, positions, c_z = extents(grad)
        rows *= members
        c = a.shape[-1]
        update, to_bias = arriving(grad, (count + 1e-3).reciprocal()[..., None])
        constants = {"C_Z": c_z, "C": c, "PRECISION": tiles.products(grad.dtype)}
        tile = tiles.tile("outer_product_backward", grad)
        chunk = max(min(tile.chunk, c * c), c)
        blocks = rows * triton.cdiv(positions, tile.positions)
        options = {"BLOCK": tile.positions, "CHUNK": chunk, "STAGES": tile.stages, "num_warps": tile.warps}

        product = _product(a, b)
        parts = c * c // chunk
        splits = min(blocks, triton.cdiv(2 * tiles.gpu(grad.device)[1], parts))
        partial = grad.new_empty(splits, c * c, c_z, dtype=torch.float32)
        _to_weight[(parts, splits)](product, update, partial, rows, positions, **constants, **options)
        to_weight = total(partial, weight.dtype).mT
        _to_product[(blocks,)](update, weight, product, positions, **constants, **options)
        others = b.flatten(-2)
        to_a = (product @ others.mT).view(a.mT.shape).mT
        to_b = (a.mT.flatten(-3, -2).mT @ product).view(b.shape)
        return grad, to_a, to_b, None, to_weight, to_bias, None
