"""Kernels for float32 where a representation [rows, positions, channels] is normalised and projected, or projected.

A product on tensor cores takes float32 as several parts of fewer bits (`tiles.products`), which fill a program's
registers: so these take few channels at a time, reading the representation once for its mean and deviation and then
again, from the cache, for each product. Sums over more channels than those are added in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.triton import tf32, tiles
from axfold.ops.triton.common import EPSILON, place, sigmoid
from axfold.ops.triton.tiles import Tile

DEPTH = 32
"""Channels whose products go to the tensor cores at a time."""


@triton.jit
def _statistics(source, exists, step, C: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and 1 / deviation of the rows at source [BLOCK], whose channels are `step` apart.

    DEPTH channels at a time too: the threads then hold the numbers as the products do.
    """
    channel = tl.arange(0, DEPTH).to(tl.int64)
    total = tl.zeros((BLOCK, DEPTH), tl.float32)
    for start in tl.range(0, C, DEPTH, num_stages=1):
        total += tl.load(source[:, None] + (start + channel)[None, :] * step, exists[:, None], 0.0)
    mean = tl.sum(total, 1) / C
    total = tl.zeros((BLOCK, DEPTH), tl.float32)
    for start in tl.range(0, C, DEPTH, num_stages=1):
        x = tl.load(source[:, None] + (start + channel)[None, :] * step, exists[:, None], 0.0) - mean[:, None]
        total += x * x
    return mean, tl.rsqrt(tl.sum(total, 1) / C + EPSILON)


@triton.jit
def _normed(source, exists, step, mean, scale, norm_weight, norm_bias, start, DEPTH: tl.constexpr):
    """DEPTH channels of norm(x) from `start` on: [positions, DEPTH]."""
    channel = start + tl.arange(0, DEPTH)
    x = tl.load(source[:, None] + channel.to(tl.int64)[None, :] * step, exists[:, None], 0.0)
    x = (x - mean[:, None]) * scale[:, None]
    return x * tl.load(norm_weight + channel)[None, :] + tl.load(norm_bias + channel)[None, :]


@triton.jit
def _project(
    source,
    exists,
    step,
    mean,
    scale,
    norm_weight,
    norm_bias,
    layer,
    inside,
    C: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """norm(x) times a layer whose rows of C channels start at layer [CHUNK]: [BLOCK, CHUNK]."""
    depth = tl.arange(0, DEPTH)
    total = tl.zeros((BLOCK, CHUNK), tl.float32)
    for start in tl.range(0, C, DEPTH, num_stages=STAGES):
        x = _normed(source, exists, step, mean, scale, norm_weight, norm_bias, start, DEPTH)
        weight = tl.load(layer[None, :] + start + depth[:, None], inside[None, :], 0.0)
        total = tl.dot(x, weight, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["positions"])
def _normed_linear_kernel(
    x,
    norm_weight,
    norm_bias,
    weight,
    bias,
    out,
    positions,
    x_row,
    x_position,
    BIASED: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = W norm(x) + bias, CHUNK of its channels at a time."""
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    source = x + row * x_row + position.to(tl.int64) * x_position
    target = out + row * positions * OUT + position.to(tl.int64) * OUT
    mean, scale = _statistics(source, exists, 1, C, DEPTH, BLOCK)
    for start in tl.range(0, OUT, CHUNK):
        current = start + chunk
        inside = current < OUT
        new = _project(
            source,
            exists,
            1,
            mean,
            scale,
            norm_weight,
            norm_bias,
            weight + current * C,
            inside,
            C,
            DEPTH,
            BLOCK,
            CHUNK,
            STAGES,
            PRECISION,
        )
        if BIASED:
            new += tl.load(bias + current, inside, 0.0)[None, :]
        tl.store(target[:, None] + current[None, :], new, exists[:, None] & inside[None, :])


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
    z_row,
    z_position,
    mask_row,
    mask_position,
    MASKED: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[c, i, n] = mask * (value W norm(z_in))_c * sigmoid((gate W norm(z_in))_c), and zeros for n >= positions."""
    chunk = tl.arange(0, CHUNK)
    depth = tl.arange(0, DEPTH)
    size = rows.to(tl.int64) * width
    row, position = place(tl.program_id(0), tl.cdiv(width, BLOCK), BLOCK)
    exists = position < positions
    source = z + row * z_row + position.to(tl.int64) * z_position
    if MASKED:
        shown = tl.load(mask + row * mask_row + position.to(tl.int64) * mask_position, exists, 0.0).to(
            tl.float32
        )
    else:
        shown = exists.to(tl.float32)
    mean, scale = _statistics(source, exists, 1, C_IN, DEPTH, BLOCK)
    for start in tl.range(0, C_OUT, CHUNK):
        layer = weight + (start + chunk)[None, :] * C_IN + depth[:, None]
        value = tl.zeros((BLOCK, CHUNK), tl.float32)
        gate = tl.zeros((BLOCK, CHUNK), tl.float32)
        for first in tl.range(0, C_IN, DEPTH, num_stages=STAGES):
            x = _normed(source, exists, 1, mean, scale, norm_weight, norm_bias, first, DEPTH)
            value = tl.dot(x, tl.load(layer + first), value, input_precision=PRECISION)
            gate = tl.dot(x, tl.load(layer + first + C_OUT * C_IN), gate, input_precision=PRECISION)
        value += tl.load(bias + start + chunk)[None, :]
        gate += tl.load(bias + start + chunk + C_OUT)[None, :]
        new = tl.trans(value * sigmoid(gate) * shown[:, None])
        target = out + (start + chunk).to(tl.int64)[:, None] * size + row * width + position[None, :]
        tl.store(target, new, (position < width)[None, :])


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
    z_row,
    z_position,
    keep_row,
    keep_position,
    keep_channel,
    out_row,
    out_position,
    DROPOUT: tl.constexpr,
    C_Z: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    PRODUCT_DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out_in = z_in + keep_in * sigmoid(gate W norm(z_in)) * (output W norm(product_:in)); out may be z.

    All channels are written at once, since all are read for each.
    """
    channel = tl.arange(0, C_Z)
    every = channel < C_Z
    size = rows.to(tl.int64) * width
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    far = position.to(tl.int64)
    source = z + row * z_row + far * z_position
    mean, scale = _statistics(source, exists, 1, C_Z, DEPTH, BLOCK)
    gate = _project(
        source,
        exists,
        1,
        mean,
        scale,
        norm_weight,
        norm_bias,
        gate_weight + channel * C_Z,
        every,
        C_Z,
        DEPTH,
        BLOCK,
        C_Z,
        STAGES,
        PRECISION,
    )
    gate = sigmoid(gate + tl.load(gate_bias + channel)[None, :])
    products = product + row * width + far
    mean, scale = _statistics(products, exists, size, C, PRODUCT_DEPTH, BLOCK)
    update = _project(
        products,
        exists,
        size,
        mean,
        scale,
        product_norm_weight,
        product_norm_bias,
        output_weight + channel * C,
        every,
        C,
        PRODUCT_DEPTH,
        BLOCK,
        C_Z,
        STAGES,
        PRECISION,
    )
    update = (update + tl.load(output_bias + channel)[None, :]) * gate
    if DROPOUT:
        kept = keep + row * keep_row + far[:, None] * keep_position + channel[None, :] * keep_channel
        update *= tl.load(kept, exists[:, None], 0.0)
    update += tl.load(source[:, None] + channel[None, :], exists[:, None], 0.0)
    target = out + row * out_row + far[:, None] * out_position + channel[None, :]
    tl.store(target, update, exists[:, None])


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
    x_row,
    x_position,
    keep_row,
    keep_position,
    keep_channel,
    out_row,
    out_position,
    DROPOUT: tl.constexpr,
    C: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x + keep * (output W relu(expand W norm(x))), the hidden layer a chunk at a time; out may be x."""
    channel = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    far = position.to(tl.int64)
    source = x + row * x_row + far * x_position
    mean, scale = _statistics(source, exists, 1, C, DEPTH, BLOCK)
    update = tl.zeros((BLOCK, C), tl.float32)
    for start in tl.range(0, HIDDEN, CHUNK):
        current = start + chunk
        hidden = _project(
            source,
            exists,
            1,
            mean,
            scale,
            norm_weight,
            norm_bias,
            expand_weight + current * C,
            current < HIDDEN,
            C,
            DEPTH,
            BLOCK,
            CHUNK,
            STAGES,
            PRECISION,
        )
        hidden = tl.maximum(hidden + tl.load(expand_bias + current)[None, :], 0.0)
        layer = tl.load(output_weight + channel[None, :] * HIDDEN + current[:, None])
        update = tl.dot(hidden, layer, update, input_precision=PRECISION)
    update += tl.load(output_bias + channel)[None, :]
    if DROPOUT:
        kept = keep + row * keep_row + far[:, None] * keep_position + channel[None, :] * keep_channel
        update *= tl.load(kept, exists[:, None], 0.0)
    update += tl.load(source[:, None] + channel[None, :], exists[:, None], 0.0)
    target = out + row * out_row + far[:, None] * out_position + channel[None, :]
    tl.store(target, update, exists[:, None])


@triton.jit(do_not_specialize=["positions"])
def _linear_residual_kernel(
    x,
    y,
    keep,
    weight,
    bias,
    out,
    positions,
    x_row,
    x_position,
    y_row,
    y_position,
    keep_row,
    keep_position,
    keep_channel,
    out_row,
    out_position,
    DROPOUT: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    DEPTH: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x + keep * (W y + bias), CHUNK of its channels at a time; out may be x."""
    depth = tl.arange(0, DEPTH)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = (position < positions)[:, None]
    far = position.to(tl.int64)[:, None]
    values = y + row * y_row + far * y_position + depth[None, :]
    for start in tl.range(0, C, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        layer = weight + channel[None, :] * WIDTH + depth[:, None]
        new = tl.zeros((BLOCK, CHUNK), tl.float32)
        for first in tl.range(0, WIDTH, DEPTH, num_stages=STAGES):
            current = tl.load(values + first, exists, 0.0)
            new = tl.dot(current, tl.load(layer + first), new, input_precision=PRECISION)
        new += tl.load(bias + channel)[None, :]
        if DROPOUT:
            kept = keep + row * keep_row + far * keep_position + channel[None, :] * keep_channel
            new *= tl.load(kept, exists, 0.0)
        new += tl.load(x + row * x_row + far * x_position + channel[None, :], exists, 0.0)
        tl.store(out + row * out_row + far * out_position + channel[None, :], new, exists)


def normed_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile | None = None,
) -> Tensor:
    """`ops.normed_linear` in float32."""
    if tiles.in_float16(x.dtype):
        return tf32.normed_linear(x, norm_weight, norm_bias, weight, bias, tile)
    rows, positions, c = x.shape
    width = len(weight)
    out = x.new_empty(rows, positions, width)
    tile = tile or tiles.tile("normed_linear", x)
    _normed_linear_kernel[(rows * triton.cdiv(positions, tile.positions),)](
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        out,
        positions,
        *x.stride()[:2],
        BIASED=bias is not None,
        C=c,
        OUT=width,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, max(16, triton.next_power_of_2(width))),
        DEPTH=min(DEPTH, c),
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
    )
    return out


def triangle_operand(
    z: Tensor,
    mask: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """`ops.triangle_operand` in float32, into out [c, rows, positions or more]."""
    if tiles.in_float16(z.dtype):
        return tf32.triangle_operand(z, mask, norm_weight, norm_bias, weight, bias, out, tile)
    rows, positions, c_in = z.shape
    c_out, _, width = out.shape
    tile = tile or tiles.tile("triangle_operand", z)
    _operand_kernel[(rows * triton.cdiv(width, tile.positions),)](
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
        *z.stride()[:2],
        *mask.stride(),
        MASKED=any(mask.stride()),
        C_IN=c_in,
        C_OUT=c_out,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, c_out),
        DEPTH=min(DEPTH, c_in),
        STAGES=tile.stages,
        PRECISION=tiles.products(z.dtype),
        num_warps=tile.warps,
    )
    return out


def triangle_update(
    z: Tensor,
    product: Tensor,
    kept: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    product_norm_weight: Tensor,
    product_norm_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """What follows the product of `ops.triangle_update`, in float32; product is [c, rows, positions or more]."""
    if tiles.in_float16(z.dtype):
        norms = norm_weight, norm_bias, product_norm_weight, product_norm_bias
        layers = output_weight, output_bias, gate_weight, gate_bias
        return tf32.triangle_update(z, product, kept, *norms, *layers, out, tile)
    rows, positions, c_z = z.shape
    c, _, width = product.shape
    tile = tile or tiles.tile("triangle_update", z)
    _update_kernel[(rows * triton.cdiv(positions, tile.positions),)](
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
        *z.stride()[:2],
        *((0, 0, 0) if kept is None else kept.stride()),
        *out.stride()[:2],
        DROPOUT=kept is not None,
        C_Z=c_z,
        C=c,
        BLOCK=tile.positions,
        DEPTH=min(tile.chunk, c_z),
        PRODUCT_DEPTH=min(tile.chunk, c),
        STAGES=tile.stages,
        PRECISION=tiles.products(z.dtype),
        num_warps=tile.warps,
    )
    return out


def transition(
    x: Tensor,
    keep: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """`ops.transition` in float32; out may be x."""
    if tiles.in_float16(x.dtype):
        layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
        return tf32.transition(x, keep, *layers, out, tile)
    rows, positions, c = x.shape
    hidden = len(expand_weight)
    tile = tile or tiles.tile("transition", x)
    _transition_kernel[(rows * triton.cdiv(positions, tile.positions),)](
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
        *x.stride()[:2],
        *((0, 0, 0) if keep is None else keep.stride()),
        *out.stride()[:2],
        DROPOUT=keep is not None,
        C=c,
        HIDDEN=hidden,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, hidden & -hidden),
        DEPTH=min(DEPTH, c),
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
    )
    return out


def linear_residual(
    x: Tensor,
    y: Tensor,
    keep: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """`ops.linear_residual` in float32; out may be x."""
    if tiles.in_float16(x.dtype):
        return tf32.linear_residual(x, y, keep, weight, bias, out, tile)
    rows, positions, c = x.shape
    width = y.shape[-1]
    tile = tile or tiles.tile("linear_residual", x)
    _linear_residual_kernel[(rows * triton.cdiv(positions, tile.positions),)](
        x,
        y,
        keep,
        weight,
        bias,
        out,
        positions,
        *x.stride()[:2],
        *y.stride()[:2],
        *((0, 0, 0) if keep is None else keep.stride()),
        *out.stride()[:2],
        DROPOUT=keep is not None,
        C=c,
        WIDTH=width,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, c),
        DEPTH=min(DEPTH, width),
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
    )
    return out
