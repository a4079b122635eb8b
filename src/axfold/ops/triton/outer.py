"""Outer product mean: the products by cuBLAS, and a kernel that reads them as they lie for all that follows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.outer import outer_product_update
from axfold.ops.triton import tiles
from axfold.ops.triton.common import place, why_not
from axfold.ops.triton.tiles import Tile


@triton.jit(do_not_specialize=["positions", "count_row", "count_position"])
def _kernel(
    z,
    product,
    count,
    weight,
    bias,
    out,
    positions,
    z_row,
    z_position,
    count_row,
    count_position,
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
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return "it has no backward"
    if a.shape[-1] not in (8, 16, 32, 64):
        return f"the operands have {a.shape[-1]} channels, not 8, 16, 32 or 64"
    return why_not(z, weight, bias, channels=z.shape[-1:])


@outer_product_update.backend("triton", why_not=_why_not)
def outer_product_update_triton(
    z: Tensor, a: Tensor, b: Tensor, count: Tensor, weight: Tensor, bias: Tensor, tile: Tile | None = None
) -> Tensor:
    """The products are written once and read once, in the order in which cuBLAS makes them."""
    rows, positions, c_z = z.shape
    c = a.shape[-1]
    product = torch.matmul(a.mT.reshape(rows * c, -1), b.flatten(-2))
    out = torch.empty_like(z) if torch.is_grad_enabled() else z
    tile = tile or tiles.tile("outer_product_mean", z)
    _kernel[(rows * triton.cdiv(positions, tile.positions),)](
        z,
        product,
        count,
        weight,
        bias,
        out,
        positions,
        *z.stride()[:2],
        *count.stride(),
        *out.stride()[:2],
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
