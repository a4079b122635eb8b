"""What the backwards share: everything around their products, which are cuBLAS's.

A backward keeps nothing of its forward but the inputs and statistics; it computes the rest once more. All that is in
between lies in memory as [rows, positions, channels], whatever the strides of the representation are. Sums over all
positions, such as the gradients of biases, are taken by programs for the tiles that they go through, and then over the
programs: they are the same in every run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.triton import tiles
from axfold.ops.triton.common import (
    EPSILON,
    extents,
    normalize,
    place,
    sigmoid,
    strides,
    strides_of_keep,
    strides_of_mask,
)
from axfold.ops.triton.layer_norm import layer_norm_triton
from axfold.ops.triton.tiles import Tile


def tile_for(channels: int) -> Tile:
    """The tile of an elementwise kernel: so many numbers that each thread has a few loads of 16 bytes under way."""
    return Tile(max(2048 // channels, 1), channels, 4, 1, resident=4)


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm of x [*b, rows, positions, c] as [b * rows * positions, c]."""
    if x.dim() == 4 and x.stride(0) == x.shape[1] * x.stride(1):
        x = x.flatten(0, 1)
    if x.dim() == 3:
        return layer_norm_triton(x, weight, bias).view(-1, x.shape[-1])
    members, rows, positions, c = x.shape
    out = x.new_empty(members * rows * positions, c)
    tile = tile_for(c)
    _normed[(rows * triton.cdiv(positions, tile.positions), members)](
        x,
        weight,
        bias,
        out,
        rows,
        positions,
        *strides(x),
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    return out


@triton.jit(do_not_specialize=["rows", "positions"])
def _normed(
    x, weight, bias, out, rows, positions, x_member, x_row, x_position, C: tl.constexpr, BLOCK: tl.constexpr
):
    """out [members, rows, positions, C] = norm(x), of a batch that is no axis of rows."""
    channel = tl.arange(0, C)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = (position < positions)[:, None]
    far = position.to(tl.int64)[:, None]
    member = tl.program_id(1).to(tl.int64)
    source = x + member * x_member + row * x_row + far * x_position + channel[None, :]
    y = tl.load(source, exists, 0.0).to(tl.float32)
    scale, shift = tl.load(weight + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32)
    y = normalize(y, scale, shift, C, 1)
    target = out + ((member * rows + row) * positions + far) * C + channel[None, :]
    tl.store(target, y.to(out.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["count", "width"])
def _total(partial, out, count, width, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """out[n] = the sum of partial[count, n], for CHUNK of the `width` numbers n."""
    column = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = (column < width)[None, :]
    sums = tl.zeros((BLOCK, CHUNK), tl.float32)
    for start in tl.range(0, count, BLOCK):
        row = start + tl.arange(0, BLOCK)
        at = row.to(tl.int64)[:, None] * width + column[None, :]
        sums += tl.load(partial + at, (row < count)[:, None] & inside, 0.0)
    tl.store(out + column, tl.sum(sums, 0).to(out.dtype.element_ty), column < width)


def total(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums over programs: the second stage."""
    out = partial.new_empty(partial.shape[1:], dtype=dtype)
    count, width = len(partial), out.numel()
    block, chunk = (128, 16) if count > 32 else (1, 1024)
    _total[(triton.cdiv(width, chunk),)](partial, out, count, width, BLOCK=block, CHUNK=chunk, num_warps=4)
    return out


def programs(tile: Tile, rows: int, positions: int, x: Tensor, members: int = 1) -> int:
    """For each member of a batch, whose programs are the second axis of the grid."""
    return tiles.grid(tile, members, rows * triton.cdiv(positions, tile.positions), x.device)[0]


@triton.jit(do_not_specialize=["rows", "positions"])
def _arriving(
    grad,
    keep,
    out,
    partial,
    rows,
    positions,
    grad_member,
    grad_row,
    grad_position,
    keep_member,
    keep_row,
    keep_position,
    keep_channel,
    SCALED: tl.constexpr,
    STORED: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [rows, positions, C] = keep * grad, and the sums of its channels."""
    channel = tl.arange(0, C)[None, :]
    member = tl.program_id(1).to(tl.int64)
    grad += member * grad_member
    if SCALED:
        keep += member * keep_member
    out += member * rows * positions * C
    partial += member * tl.num_programs(0) * C
    blocks = tl.cdiv(positions, BLOCK)
    sums = tl.zeros(
        (BLOCK, C), tl.float32
    )  # over positions at the end, for threads wait for one another there
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None]
        far = position.to(tl.int64)[:, None]
        g = tl.load(grad + row * grad_row + far * grad_position + channel, exists, 0.0).to(tl.float32)
        if SCALED:
            kept = keep + row * keep_row + far * keep_position + channel * keep_channel
            g *= tl.load(kept, exists, 0.0).to(tl.float32)
        if STORED:
            tl.store(out + (row * positions + far) * C + channel, g.to(out.dtype.element_ty), exists)
        sums += g
    tl.store(partial + tl.program_id(0) * C + tl.arange(0, C), tl.sum(sums, 0))


def arriving(grad: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of an update [b * rows * positions, c] that `keep` multiplies, and its sum over all positions."""
    members, rows, positions, c = extents(grad)
    tile = tile_for(c)
    count = programs(tile, rows, positions, grad, members)
    partial = grad.new_empty(count * members, c, dtype=torch.float32)
    stored = keep is not None or not grad.is_contiguous()
    out = grad.new_empty(grad.shape) if stored else grad
    kept = None if keep is None else keep.expand_as(grad)
    _arriving[(count, members)](
        grad,
        kept,
        out,
        partial,
        rows,
        positions,
        *strides(grad),
        *strides_of_keep(kept),
        SCALED=kept is not None,
        STORED=stored,
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    return out.view(-1, c), total(partial, grad.dtype)


@triton.jit(do_not_specialize=["rows", "positions"])
def _norm_backward(
    x,
    weight,
    grad,
    residual,
    out,
    partial,
    rows,
    positions,
    x_member,
    x_row,
    x_position,
    residual_member,
    residual_row,
    residual_position,
    out_member,
    out_row,
    out_position,
    RESIDUAL: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = residual + the gradient of x, of which `grad` [rows, positions, C] is that of its LayerNorm."""
    channel = tl.arange(0, C)
    member = tl.program_id(1).to(tl.int64)
    x += member * x_member
    grad += member * rows * positions * C
    if RESIDUAL:
        residual += member * residual_member
    out += member * out_member
    partial += member * tl.num_programs(0) * (2 * C)
    scale = tl.load(weight + channel).to(tl.float32)[None, :]
    to_weight = tl.zeros((BLOCK, C), tl.float32)
    to_bias = tl.zeros((BLOCK, C), tl.float32)
    blocks = tl.cdiv(positions, BLOCK)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None]
        far = position.to(tl.int64)[:, None]
        y = tl.load(x + row * x_row + far * x_position + channel[None, :], exists, 0.0).to(tl.float32)
        g = tl.load(grad + (row * positions + far) * C + channel[None, :], exists, 0.0).to(tl.float32)
        y -= tl.sum(y, 1)[:, None] / C
        inverse = tl.rsqrt(tl.sum(y * y, 1)[:, None] / C + EPSILON)
        y *= inverse
        to_weight += g * y
        to_bias += g
        g *= scale
        g = (g - tl.sum(g, 1)[:, None] / C - y * (tl.sum(g * y, 1)[:, None] / C)) * inverse
        if RESIDUAL:
            before = residual + row * residual_row + far * residual_position + channel[None, :]
            g += tl.load(before, exists, 0.0).to(tl.float32)
        target = out + row * out_row + far * out_position + channel[None, :]
        tl.store(target, g.to(out.dtype.element_ty), exists)
    share = partial + tl.program_id(0) * (2 * C) + channel
    tl.store(share, tl.sum(to_weight, 0))
    tl.store(share + C, tl.sum(to_bias, 0))


def norm_backward(
    x: Tensor, weight: Tensor, grad: Tensor, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x [*b, rows, positions, c], of the LayerNorm's weight and of its bias.

    `grad` [b * rows * positions, c] is that of the normalised x, and `residual` what x receives beside it.
    """
    members, rows, positions, c = extents(x)
    tile = tile_for(c)
    count = programs(tile, rows, positions, x, members)
    partial = x.new_empty(count * members, 2, c, dtype=torch.float32)
    out = torch.empty_like(x)
    _norm_backward[(count, members)](
        x,
        weight,
        grad,
        residual,
        out,
        partial,
        rows,
        positions,
        *strides(x),
        *((0, 0, 0) if residual is None else strides(residual)),
        *strides(out),
        RESIDUAL=residual is not None,
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    to_weight, to_bias = total(partial, weight.dtype)
    return out, to_weight, to_bias


@triton.jit(do_not_specialize=["elements"])
def _relu_backward(
    hidden, grad, partial, elements, WIDTH: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):
    """grad [elements, WIDTH] is 0 where `hidden` is, and the sums of CHUNK of its channels."""
    channel = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    inside = (channel < WIDTH)[None, :]
    sums = tl.zeros((BLOCK, CHUNK), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(elements, BLOCK), tl.num_programs(0)):
        element = tile * BLOCK + tl.arange(0, BLOCK)
        exists = (element < elements)[:, None] & inside
        at = element.to(tl.int64)[:, None] * WIDTH + channel[None, :]
        h = tl.load(hidden + at, exists, 0.0)
        g = tl.load(grad + at, exists, 0.0)
        g = tl.where(h > 0, g, 0.0)
        tl.store(grad + at, g, exists)
        sums += g.to(tl.float32)
    tl.store(partial + tl.program_id(0) * WIDTH + channel, tl.sum(sums, 0), channel < WIDTH)


def relu_backward(hidden: Tensor, grad: Tensor) -> Tensor:
    """Make `grad` [n, width] that of what `hidden` is the ReLU of; returns its sum over n, in float32."""
    elements, width = hidden.shape
    tile = Tile(16, 256, 4, 1, resident=1)
    count = tiles.programs(tile, triton.cdiv(elements, tile.positions), hidden.device)
    partial = hidden.new_empty(count, width, dtype=torch.float32)
    _relu_backward[(count, triton.cdiv(width, tile.chunk))](
        hidden,
        grad,
        partial,
        elements,
        WIDTH=width,
        CHUNK=tile.chunk,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    return total(partial, torch.float32)


@triton.jit(do_not_specialize=["rows", "positions", "mask_row", "mask_position"])
def _gated_backward(
    both,
    mask,
    grad,
    partial,
    rows,
    positions,
    mask_member,
    mask_row,
    mask_position,
    grad_member,
    grad_channel,
    grad_row,
    MASKED: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Values and gates, side by side in `both` [rows, positions, 2 C], become their gradients.

    `grad` [C, rows, positions or more] is that of mask * value * sigmoid(gate).
    """
    channel = tl.arange(0, C)
    member = tl.program_id(1).to(tl.int64)
    both += member * rows * positions * (2 * C)
    mask += member * mask_member
    grad += member * grad_member
    partial += member * tl.num_programs(0) * (2 * C)
    blocks = tl.cdiv(positions, BLOCK)
    to_value = tl.zeros((BLOCK, C), tl.float32)
    to_gate = tl.zeros((BLOCK, C), tl.float32)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = position < positions
        source = grad + row * grad_row + channel.to(tl.int64)[:, None] * grad_channel + position[None, :]
        g = tl.trans(tl.load(source, exists[None, :], 0.0)).to(tl.float32)
        if MASKED:
            shown = mask + row * mask_row + position.to(tl.int64) * mask_position
            g *= tl.load(shown, exists, 0.0).to(tl.float32)[:, None]
        at = both + (row * positions + position)[:, None] * (2 * C) + channel[None, :]
        value = tl.load(at, exists[:, None], 0.0).to(tl.float32)
        share = sigmoid(tl.load(at + C, exists[:, None], 0.0).to(tl.float32))
        g *= share
        tl.store(at, g.to(both.dtype.element_ty), exists[:, None])
        to_value += g
        g *= value * (1 - share)
        tl.store(at + C, g.to(both.dtype.element_ty), exists[:, None])
        to_gate += g
    target = partial + tl.program_id(0) * (2 * C) + channel
    tl.store(target, tl.sum(to_value, 0))
    tl.store(target + C, tl.sum(to_gate, 0))


def gated_backward(both: Tensor, mask: Tensor, grad: Tensor) -> Tensor:
    """Make values and gates [b * rows * positions, 2 c] their gradients; returns the sum over all positions.

    `grad` [*b, c, rows, positions or more] is that of mask * value * sigmoid(gate).
    """
    rows, positions = mask.shape[-2:]
    members = len(mask) if mask.dim() == 3 else 1
    c = both.shape[-1] // 2
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    tile = Tile(32, c, 8, 1, resident=2)
    count = programs(tile, rows, positions, both, members)
    partial = both.new_empty(count * members, 2 * c, dtype=torch.float32)
    _gated_backward[(count, members)](
        both,
        mask,
        grad,
        partial,
        rows,
        positions,
        *strides_of_mask(mask),
        *(grad.stride()[:3] if grad.dim() == 4 else (0, *grad.stride()[:2])),
        MASKED=any(mask.stride()),
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    return total(partial, both.dtype)


@triton.jit(do_not_specialize=["rows", "positions"])
def _gate_backward(
    grad,
    keep,
    update,
    gate,
    partial,
    rows,
    positions,
    grad_member,
    grad_row,
    grad_position,
    keep_member,
    keep_row,
    keep_position,
    keep_channel,
    DROPOUT: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`update` and `gate` [rows, positions, C] become their gradients, `grad` is keep * sigmoid(gate) * update's."""
    channel = tl.arange(0, C)[None, :]
    member = tl.program_id(1).to(tl.int64)
    grad += member * grad_member
    if DROPOUT:
        keep += member * keep_member
    update += member * rows * positions * C
    gate += member * rows * positions * C
    partial += member * tl.num_programs(0) * (2 * C)
    blocks = tl.cdiv(positions, BLOCK)
    to_update = tl.zeros((BLOCK, C), tl.float32)
    to_gate = tl.zeros((BLOCK, C), tl.float32)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = (position < positions)[:, None]
        far = position.to(tl.int64)[:, None]
        g = tl.load(grad + row * grad_row + far * grad_position + channel, exists, 0.0).to(tl.float32)
        if DROPOUT:
            kept = keep + row * keep_row + far * keep_position + channel * keep_channel
            g *= tl.load(kept, exists, 0.0).to(tl.float32)
        at = (row * positions + far) * C + channel
        u = tl.load(update + at, exists, 0.0).to(tl.float32)
        share = sigmoid(tl.load(gate + at, exists, 0.0).to(tl.float32))
        g *= share
        tl.store(update + at, g.to(update.dtype.element_ty), exists)
        to_update += g
        g *= u * (1 - share)
        tl.store(gate + at, g.to(gate.dtype.element_ty), exists)
        to_gate += g
    target = partial + tl.program_id(0) * (2 * C) + tl.arange(0, C)
    tl.store(target, tl.sum(to_update, 0))
    tl.store(target + C, tl.sum(to_gate, 0))


def gate_backward(grad: Tensor, keep: Tensor | None, update: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Make update and gate [b * rows * positions, c] their gradients; returns the sums over all positions.

    `grad` [*b, rows, positions, c] is that of keep * sigmoid(gate) * update.
    """
    members, rows, positions, c = extents(grad)
    tile = tile_for(c)
    count = programs(tile, rows, positions, grad, members)
    partial = grad.new_empty(count * members, 2, c, dtype=torch.float32)
    kept = None if keep is None else keep.expand_as(grad)
    _gate_backward[(count, members)](
        grad,
        kept,
        update,
        gate,
        partial,
        rows,
        positions,
        *strides(grad),
        *strides_of_keep(kept),
        DROPOUT=kept is not None,
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    to_update, to_gate = total(partial, grad.dtype)
    return to_update, to_gate


@triton.jit(do_not_specialize=["rows", "positions"])
def _norm_channels(x, weight, bias, out, rows, positions, width, C: tl.constexpr, BLOCK: tl.constexpr):
    """out [rows, positions, C] = norm(x) of x [C, rows, width]."""
    channel = tl.arange(0, C)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    size = rows.to(tl.int64) * width
    member = tl.program_id(1).to(tl.int64)
    x += member * C * size
    out += member * rows * positions * C
    y = tl.load(
        x + row * width + position[None, :] + channel.to(tl.int64)[:, None] * size, exists[None, :], 0.0
    )
    scale = tl.load(weight + channel).to(tl.float32)
    shift = tl.load(bias + channel).to(tl.float32)
    y = normalize(tl.trans(y).to(tl.float32), scale, shift, C, 1)
    target = out + (row * positions + position)[:, None] * C + channel[None, :]
    tl.store(target, y.to(out.dtype.element_ty), exists[:, None])


def norm_channels(x: Tensor, weight: Tensor, bias: Tensor, positions: int) -> Tensor:
    """LayerNorm [b * rows * positions, c] of x [*b, c, rows, positions or more], which is contiguous."""
    members, c, rows, width = extents(x)
    out = x.new_empty(members * rows * positions, c)
    tile = Tile(32, c, 4, 1)
    _norm_channels[(rows * triton.cdiv(positions, tile.positions), members)](
        x,
        weight,
        bias,
        out,
        rows,
        positions,
        width,
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    return out


@triton.jit(do_not_specialize=["rows", "positions"])
def _norm_channels_backward(
    x, weight, grad, partial, rows, positions, width, C: tl.constexpr, BLOCK: tl.constexpr
):
    """x [C, rows, width] becomes its gradient, of which `grad` [rows, positions, C] is that of norm(x)."""
    channel = tl.arange(0, C)
    scale = tl.load(weight + channel).to(tl.float32)[None, :]
    to_weight = tl.zeros((BLOCK, C), tl.float32)
    to_bias = tl.zeros((BLOCK, C), tl.float32)
    size = rows.to(tl.int64) * width
    member = tl.program_id(1).to(tl.int64)
    x += member * C * size
    grad += member * rows * positions * C
    partial += member * tl.num_programs(0) * (2 * C)
    blocks = tl.cdiv(positions, BLOCK)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, position = place(tile, blocks, BLOCK)
        exists = position < positions
        at = x + row * width + position[None, :] + channel.to(tl.int64)[:, None] * size
        y = tl.trans(tl.load(at, exists[None, :], 0.0)).to(tl.float32)
        source = grad + (row * positions + position)[:, None] * C + channel[None, :]
        g = tl.load(source, exists[:, None], 0.0).to(tl.float32)
        y -= tl.sum(y, 1)[:, None] / C
        inverse = tl.rsqrt(tl.sum(y * y, 1)[:, None] / C + EPSILON)
        y *= inverse
        to_weight += g * y
        to_bias += g
        g *= scale
        g = (g - tl.sum(g, 1)[:, None] / C - y * (tl.sum(g * y, 1)[:, None] / C)) * inverse
        tl.store(at, tl.trans(g.to(x.dtype.element_ty)), exists[None, :])
    share = partial + tl.program_id(0) * (2 * C) + channel
    tl.store(share, tl.sum(to_weight, 0))
    tl.store(share + C, tl.sum(to_bias, 0))


def norm_channels_backward(x: Tensor, weight: Tensor, grad: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Make x [*b, c, rows, positions or more] its gradient; returns those of weight and bias of its LayerNorm.

    `grad` [b * rows * positions, c] is that of the normalised x.
    """
    members, c, rows, width = extents(x)
    tile = Tile(32, c, 16, 1, resident=1)
    count = programs(tile, rows, positions, x, members)
    partial = x.new_empty(count * members, 2, c, dtype=torch.float32)
    _norm_channels_backward[(count, members)](
        x,
        weight,
        grad,
        partial,
        rows,
        positions,
        width,
        C=c,
        BLOCK=tile.positions,
        num_warps=tile.warps,
    )
    to_weight, to_bias = total(partial, weight.dtype)
    return to_weight, to_bias
