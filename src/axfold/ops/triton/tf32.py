"""Kernels for float32 whose products may be as short as TF32's: they are taken in float16.

Both keep 11 bits of a number. Tensor cores multiply float16 twice as fast as TF32 and read it in any order, it takes
half of the shared memory, and it is rounded, where TF32 would be cut off. But float16 ends at 65,504: so every operand
is brought near that by a power of two first, which is exact and is undone in the sums, in float32. What a LayerNorm
makes needs none, since no number of it passes the root of how many there are; that bounds what the next layer makes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.triton import tiles
from axfold.ops.triton.common import place, sigmoid, standardize
from axfold.ops.triton.tiles import Tile


@triton.jit
def powers(largest):
    """(2^-e, 2^e) so that numbers up to `largest` times the first end between 2^14 and 2^15."""
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 15)
    there = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    return there, ((exponent - 14) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["outs"])
def _layer_kernel(
    weight,
    bias,
    columns,
    offsets,
    layer,
    vectors,
    outs,
    BIASED: tl.constexpr,
    SCALED: tl.constexpr,
    OFFSET: tl.constexpr,
    BOUNDED: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A layer of float16 and vectors [3, outs]: `layer x scale + shift` is `weight (columns x + offsets) + bias`.

    BOUNDED: for a standardized x, divided by the third vector, so that it stays under 2^15.
    """
    row, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    exists, within = row < outs, channel < WIDTH
    at = row[:, None] * WIDTH + channel[None, :]
    inside = exists[:, None] & within[None, :]
    x = tl.load(weight + at, inside, 0.0)
    shift = tl.zeros((BLOCK,), tl.float32)
    if BIASED:
        shift += tl.load(bias + row, exists, 0.0)
    if OFFSET:
        shift += tl.sum(x * tl.load(offsets + channel, within, 0.0)[None, :], 1)
    if SCALED:
        x *= tl.load(columns + channel, within, 0.0)[None, :]
    there, back = powers(tl.max(tl.abs(x), 1))
    if BOUNDED:
        down, up = powers(tl.sqrt(WIDTH * tl.sum(x * x, 1)) + tl.abs(shift))
        back, shift = back * down, shift * down
        tl.store(vectors + 2 * outs + row, up, exists)
    tl.store(layer + at, (x * there[:, None]).to(tl.float16), inside)
    tl.store(vectors + row, back, exists)
    tl.store(vectors + outs + row, shift, exists)


def layer_of(
    weight: Tensor,
    bias: Tensor | None,
    columns: Tensor | None = None,
    offsets: Tensor | None = None,
    *,
    bounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """The layer [out, in] in float16 and vectors [3, out], as the kernel defines them."""
    outs, width = weight.shape
    layer = torch.empty_like(weight, dtype=torch.float16)
    vectors = weight.new_empty(3, outs)
    padded = triton.next_power_of_2(width)
    block = max(4096 // padded, 1)
    _layer_kernel[(triton.cdiv(outs, block),)](
        weight,
        bias,
        columns,
        offsets,
        layer,
        vectors,
        outs,
        BIASED=bias is not None,
        SCALED=columns is not None,
        OFFSET=offsets is not None,
        BOUNDED=bounded,
        WIDTH=width,
        PADDED=padded,
        BLOCK=block,
        num_warps=4,
    )
    return layer, vectors


@triton.jit(do_not_specialize=["positions"])
def _normed_linear_kernel(
    x,
    layer,
    vectors,
    out,
    positions,
    x_row,
    x_position,
    C: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = W norm(x) + bias, CHUNK of its channels at a time."""
    channel = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    source = x + row * x_row + (position.to(tl.int64) * x_position)[:, None] + channel[None, :]
    target = out + row * positions * OUT + (position.to(tl.int64) * OUT)[:, None]
    y = standardize(tl.load(source, exists[:, None], 0.0), C, 1).to(tl.float16)
    for start in tl.range(0, OUT, CHUNK, num_stages=STAGES):
        current = start + chunk
        inside = current < OUT
        some = tl.load(layer + current[None, :] * C + channel[:, None], inside[None, :], 0.0)
        scale, shift = tl.load(vectors + current, inside, 0.0), tl.load(vectors + OUT + current, inside, 0.0)
        new = tl.dot(y, some) * scale[None, :] + shift[None, :]
        tl.store(target + current[None, :], new, exists[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["rows", "positions", "mask_row", "mask_position"])
def _operand_kernel(
    z,
    mask,
    layer,
    vectors,
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
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[c, i, n] = mask * (value W norm(z_in))_c * sigmoid((gate W norm(z_in))_c), and zeros for n >= positions."""
    AHEAD: tl.constexpr = STAGES if RESIDENT else 1  # else a program has one tile
    channel = tl.arange(0, C_IN)
    chunk = tl.arange(0, CHUNK)
    size = rows.to(tl.int64) * width
    blocks = tl.cdiv(width, BLOCK)
    layer += chunk[:, None] * C_IN + channel[None, :]
    vectors += chunk
    if RESIDENT:
        value_layer, gate_layer = tl.load(layer), tl.load(layer + C_OUT * C_IN)
        value_scale, gate_scale = tl.load(vectors), tl.load(vectors + C_OUT)
        value_shift, gate_shift = tl.load(vectors + 2 * C_OUT), tl.load(vectors + 3 * C_OUT)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0), num_stages=AHEAD):
        row, position = place(tile, blocks, BLOCK)
        exists = position < positions
        source = z + row * z_row + (position.to(tl.int64) * z_position)[:, None] + channel[None, :]
        x = standardize(tl.load(source, exists[:, None], 0.0), C_IN, 1).to(tl.float16)
        if MASKED:
            shown = tl.load(mask + row * mask_row + position.to(tl.int64) * mask_position, exists, 0.0)
        else:
            shown = exists.to(tl.float32)
        target = out + row * width + position[None, :] + chunk.to(tl.int64)[:, None] * size
        inside = (position < width)[None, :]
        if RESIDENT:
            gate = tl.dot(gate_layer, tl.trans(x)) * gate_scale[:, None]
            value = tl.dot(value_layer, tl.trans(x)) * value_scale[:, None] + value_shift[:, None]
            tl.store(target, value * sigmoid(gate, gate_shift[:, None]) * shown[None, :], inside)
        else:
            for start in tl.range(0, C_OUT, CHUNK, num_stages=STAGES):
                to_gate = vectors + C_OUT + start
                gate = tl.dot(tl.load(layer + (start + C_OUT) * C_IN), tl.trans(x))
                gate *= tl.load(to_gate)[:, None]
                value = tl.dot(tl.load(layer + start * C_IN), tl.trans(x)) * tl.load(vectors + start)[:, None]
                value += tl.load(vectors + 2 * C_OUT + start)[:, None]
                new = value * sigmoid(gate, tl.load(to_gate + 2 * C_OUT)[:, None]) * shown[None, :]
                tl.store(target + start * size, new, inside)


@triton.jit(do_not_specialize=["rows", "positions"])
def _update_kernel(
    z,
    product,
    keep,
    output,
    output_vectors,
    gate,
    gate_vectors,
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
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out_in = z_in + keep_in * sigmoid(gate W norm(z_in)) * (output W norm(product_:in)); out may be z."""
    AHEAD: tl.constexpr = STAGES if RESIDENT else 1  # else a program has one tile
    channel = tl.arange(0, C_Z)
    inner = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    size = rows.to(tl.int64) * width
    blocks = tl.cdiv(positions, BLOCK)
    output += chunk[:, None] * C + inner[None, :]
    gate += chunk[:, None] * C_Z + channel[None, :]
    output_vectors += chunk
    gate_vectors += chunk
    if RESIDENT:
        output_layer, gate_layer = tl.load(output), tl.load(gate)
        output_scale, output_shift = tl.load(output_vectors), tl.load(output_vectors + C_Z)
        gate_scale, gate_shift = tl.load(gate_vectors), tl.load(gate_vectors + C_Z)
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
        p = standardize(tl.load(p, (position < width)[None, :], 0.0), C, 0).to(tl.float16)
        x = tl.load(source + channel[None, :], exists[:, None], 0.0)
        y = standardize(x, C_Z, 1).to(tl.float16)
        if RESIDENT:
            new = _update(p, y, output_layer, gate_layer, output_scale, output_shift, gate_scale, gate_shift)
            if DROPOUT:
                new *= tl.load(kept, exists[:, None], 0.0)
            tl.store(target, x + new, exists[:, None])
        else:
            for start in tl.range(0, C_Z, CHUNK, num_stages=STAGES):
                output_layer, gate_layer = tl.load(output + start * C), tl.load(gate + start * C_Z)
                output_scale = tl.load(output_vectors + start)
                output_shift = tl.load(output_vectors + C_Z + start)
                gate_scale = tl.load(gate_vectors + start)
                gate_shift = tl.load(gate_vectors + C_Z + start)
                new = _update(
                    p, y, output_layer, gate_layer, output_scale, output_shift, gate_scale, gate_shift
                )
                if DROPOUT:
                    new *= tl.load(kept + start * keep_channel, exists[:, None], 0.0)
                new += tl.load(source + start + chunk[None, :], exists[:, None], 0.0)
                tl.store(target + start, new, exists[:, None])


@triton.jit
def _update(p, y, output_layer, gate_layer, output_scale, output_shift, gate_scale, gate_shift):
    """sigmoid(gate(y)) * output(p) for y [positions, c_z] and p [c, positions], position first."""
    gate = tl.dot(gate_layer, tl.trans(y)) * gate_scale[:, None]
    update = tl.dot(output_layer, p) * output_scale[:, None] + output_shift[:, None]
    return tl.trans(update * sigmoid(gate, gate_shift[:, None]))


@triton.jit(do_not_specialize=["positions"])
def _transition_kernel(
    x,
    keep,
    expand,
    expand_vectors,
    output,
    output_vectors,
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
    STAGES: tl.constexpr,
):
    """out = x + keep * (output W relu(expand W norm(x))), the hidden layer a chunk at a time; out may be x."""
    channel = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    far = position.to(tl.int64)[:, None]
    source = x + row * x_row + far * x_position + channel[None, :]
    y = standardize(tl.load(source, exists[:, None], 0.0), C, 1).to(tl.float16)
    expand += chunk[None, :] * C + channel[:, None]
    expand_vectors += chunk
    output += channel[None, :] * HIDDEN + chunk[:, None]
    update = tl.zeros((BLOCK, C), tl.float32)
    for start in tl.range(0, HIDDEN, CHUNK, num_stages=STAGES):
        hidden = tl.dot(y, tl.load(expand + start * C)) * tl.load(expand_vectors + start)[None, :]
        hidden = tl.maximum(hidden + tl.load(expand_vectors + HIDDEN + start)[None, :], 0.0)
        update = tl.dot(hidden.to(tl.float16), tl.load(output + start), update)
    update *= tl.load(output_vectors + channel)[None, :]
    update += tl.load(output_vectors + C + channel)[None, :]
    if DROPOUT:
        kept = keep + row * keep_row + far * keep_position + channel[None, :] * keep_channel
        update *= tl.load(kept, exists[:, None], 0.0)
    update += tl.load(source, exists[:, None], 0.0)
    target = out + row * out_row + far * out_position + channel[None, :]
    tl.store(target, update, exists[:, None])


@triton.jit(do_not_specialize=["rows", "positions"])
def _linear_residual_kernel(
    x,
    y,
    keep,
    layer,
    vectors,
    out,
    rows,
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
    RESIDENT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = x + keep * (W y + bias); out may be x."""
    inner = tl.arange(0, WIDTH)
    chunk = tl.arange(0, CHUNK)
    blocks = tl.cdiv(positions, BLOCK)
    AHEAD: tl.constexpr = STAGES if RESIDENT else 1  # else a program has one tile
    layer += chunk[None, :] * WIDTH + inner[:, None]
    vectors += chunk
    if RESIDENT:
        weights, scale, shift = tl.load(layer), tl.load(vectors), tl.load(vectors + C)
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
        there, back = powers(tl.max(tl.abs(values), 1))
        values = (values * there[:, None]).to(tl.float16)
        if RESIDENT:
            before = tl.load(source, exists, 0.0)  # ahead of the product, which it need not wait for
            new = tl.dot(values, weights) * back[:, None] * scale[None, :] + shift[None, :]
            if DROPOUT:
                new *= tl.load(kept, exists, 0.0)
            tl.store(target, new + before, exists)
        else:
            for start in tl.range(0, C, CHUNK, num_stages=STAGES):
                before = tl.load(source + start, exists, 0.0)
                scale, shift = tl.load(vectors + start), tl.load(vectors + C + start)
                new = tl.dot(values, tl.load(layer + start * WIDTH)) * back[:, None]
                new = new * scale[None, :] + shift[None, :]
                if DROPOUT:
                    new *= tl.load(kept + start * keep_channel, exists, 0.0)
                tl.store(target + start, new + before, exists)


@triton.jit(do_not_specialize=["keys", "k_row", "k_key", "k_head", "v_row", "v_key", "v_head"])
def _halves_kernel(
    k,
    v,
    halves,
    scales,
    keys,
    k_row,
    k_key,
    k_head,
    v_row,
    v_key,
    v_head,
    ALIGNED: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keys or values of one row and head in float16, divided by a power of two, and that one.

    Values end near 2^14. Keys near 1: queries are multiplied with the power, and have room on both sides then.
    """
    at = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    row, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    key, channel = tl.arange(0, BLOCK).to(tl.int64), tl.arange(0, C)
    if tl.program_id(1) == 0:
        step = k_key.to(tl.int64) * ALIGNED
        source = k + (row * k_row + head * k_head) * ALIGNED
        up, down = 2.0**14, 2.0**-14
    else:
        step = v_key.to(tl.int64) * ALIGNED
        source = v + (row * v_row + head * v_head) * ALIGNED
        up, down = 1.0, 1.0
    source += key[:, None] * step + channel[None, :]
    largest = tl.zeros((BLOCK, C), tl.float32)
    for start in tl.range(0, keys, BLOCK, num_stages=3):
        x = tl.load(source + start * step, (start + key < keys)[:, None], 0.0)
        largest = tl.maximum(largest, tl.abs(x))
    there, back = powers(tl.max(tl.max(largest, 1), 0))
    there, back = there * down, back * up
    target = halves + at.to(tl.int64) * keys * C + key[:, None] * C + channel[None, :]
    for start in tl.range(0, keys, BLOCK, num_stages=3):
        exists = (start + key < keys)[:, None]
        x = tl.load(source + start * step, exists, 0.0)  # most of it from the cache
        tl.store(target + start * C, (x * there).to(tl.float16), exists)
    tl.store(scales + at, back)


def halves(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [2, rows, keys, heads, c] in float16, and what each head of a row is times: [2, rows, heads]."""
    rows, keys, heads, channels = k.shape
    found = torch.empty(2, rows, heads, keys, channels, dtype=torch.float16, device=k.device)
    scales = k.new_empty(2, rows, heads)
    strides = [stride for x in (k, v) for stride in x.stride()[:3]]
    aligned = 4 if all(stride % 4 == 0 for stride in strides) else 1
    _halves_kernel[(rows * heads, 2)](
        k,
        v,
        found,
        scales,
        keys,
        *(stride // aligned for stride in strides),
        ALIGNED=aligned,
        H=heads,
        C=channels,
        BLOCK=2048 // max(channels, 16),
        num_warps=4,
    )
    return found.transpose(2, 3), scales


@triton.jit(
    do_not_specialize=["sequences", "x_residue", "x_sequence", "out_residue", "out_sequence", "out_channel"]
)
def _sequences_kernel(
    x,
    out,
    scales,
    sequences,
    x_residue,
    x_sequence,
    out_residue,
    out_sequence,
    out_channel,
    ALIGNED: tl.constexpr,
    LAST: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All sequences of a residue in float16, divided by a power of two so that no channel's norm passes 2^7.

    LAST: sequences are the last axis of `out`.
    """
    residue = tl.program_id(0).to(tl.int64)
    sequence, channel = tl.arange(0, BLOCK).to(tl.int64), tl.arange(0, C)
    step = x_sequence.to(tl.int64) * ALIGNED
    source = x + residue * x_residue * ALIGNED + sequence[:, None] * step + channel[None, :]
    total = tl.zeros((BLOCK, C), tl.float32)
    for start in tl.range(0, sequences, BLOCK, num_stages=3):
        some = tl.load(source + start * step, (start + sequence < sequences)[:, None], 0.0)
        total += some * some
    there, back = powers(tl.sqrt(tl.max(tl.sum(total, 0), 0)))
    tl.store(scales + residue, back * 256)
    target = out + residue * out_residue
    for start in tl.range(0, sequences, BLOCK, num_stages=3):
        exists = start + sequence < sequences
        some = tl.load(source + start * step, exists[:, None], 0.0)
        some = (some * (there * 2.0**-8)).to(tl.float16)
        at = (start + sequence) * out_sequence
        wide = channel.to(tl.int64) * out_channel
        if LAST:
            tl.store(target + wide[:, None] + at[None, :], tl.trans(some), exists[None, :])
        else:
            tl.store(target + at[:, None] + wide[None, :], some, exists[:, None])


def _sequences(x: Tensor, residue: int, sequence: int, *, last: bool) -> tuple[Tensor, Tensor]:
    """x, [residues, sequences, c] or [sequences, residues, c], in float16, and what each residue's numbers are times.

    last: as [residues, c, sequences]
    """
    residues, sequences, c = x.shape[residue], x.shape[sequence], x.shape[2]
    shape = (residues, c, sequences) if last else x.shape
    out = torch.empty(shape, dtype=torch.float16, device=x.device)
    strides = (out.stride(0), 1, out.stride(1)) if last else (out.stride(residue), out.stride(sequence), 1)
    scales = x.new_empty(residues)
    aligned = 4 if x.stride(0) % 4 == 0 and x.stride(1) % 4 == 0 else 1
    _sequences_kernel[(residues,)](
        x,
        out,
        scales,
        sequences,
        x.stride(residue) // aligned,
        x.stride(sequence) // aligned,
        *strides,
        ALIGNED=aligned,
        LAST=last,
        C=c,
        BLOCK=2048 // c,
        num_warps=4,
    )
    return out, scales


@triton.jit(do_not_specialize=["positions", "count_row", "count_position"])
def _outer_kernel(
    z,
    product,
    rows_by,
    positions_by,
    count,
    layer,
    vectors,
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
):
    """out_in = z_in + (bias + weight product_in) / (count_in + 0.001); out may be z.

    product[i, c, n, d] is in units of rows_by[i] positions_by[n]. For a few c at a time its rows of d are put side by
    side, as the columns of the layer are.
    """
    channel = tl.arange(0, C_Z)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    pair = tl.arange(0, CHUNK)
    width = positions.to(tl.int64) * C
    source = product + row * C * width + (pair // C).to(tl.int64)[None, :] * width + (pair % C)[None, :]
    source += (position.to(tl.int64) * C)[:, None]
    layer += channel[None, :] * (C * C) + pair[:, None]
    update = tl.zeros((BLOCK, C_Z), tl.float32)
    for start in tl.range(0, C * C, CHUNK, num_stages=STAGES):
        x = tl.load(source + start // C * width, exists[:, None], 0.0)
        update = tl.dot(x, tl.load(layer + start), update)
    far = position.to(tl.int64)
    by = tl.load(rows_by + row) * tl.load(positions_by + position, exists, 0.0)
    update = update * by[:, None] * tl.load(vectors + channel)[None, :]
    seen = tl.load(count + row * count_row + far * count_position, exists, 1.0)
    update = (update + tl.load(vectors + C_Z + channel)[None, :]) / (seen + 1e-3)[:, None]
    update += tl.load(z + row * z_row + (far * z_position)[:, None] + channel[None, :], exists[:, None], 0.0)
    tl.store(out + row * out_row + (far * out_position)[:, None] + channel[None, :], update, exists[:, None])


def normed_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile | None = None,
) -> Tensor:
    """`ops.normed_linear`."""
    rows, positions, c = x.shape
    width = len(weight)
    out = x.new_empty(rows, positions, width)
    tile = tile or tiles.tile("normed_linear", x)
    _normed_linear_kernel[(rows * triton.cdiv(positions, tile.positions),)](
        x,
        *layer_of(weight, bias, norm_weight, norm_bias),
        out,
        positions,
        *x.stride()[:2],
        C=c,
        OUT=width,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, max(16, triton.next_power_of_2(width))),
        STAGES=tile.stages,
        num_warps=tile.warps,
        maxnreg=tile.registers,
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
    """`ops.triangle_operand`, into out [c, rows, positions or more]."""
    rows, positions, c_in = z.shape
    c_out, _, width = out.shape
    tile = tile or tiles.tile("triangle_operand", z)
    _operand_kernel[(tiles.programs(tile, rows * triton.cdiv(width, tile.positions), z.device),)](
        z,
        mask,
        *layer_of(weight, bias, norm_weight, norm_bias),
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
        RESIDENT=tile.resident > 0 and tile.chunk >= c_out,
        STAGES=tile.stages,
        num_warps=tile.warps,
        maxnreg=tile.registers,
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
    """What follows the product of `ops.triangle_update`; product is [c, rows, positions or more]."""
    rows, positions, c_z = z.shape
    c, _, width = product.shape
    tile = tile or tiles.tile("triangle_update", z)
    _update_kernel[(tiles.programs(tile, rows * triton.cdiv(positions, tile.positions), z.device),)](
        z,
        product,
        kept,
        *layer_of(output_weight, output_bias, product_norm_weight, product_norm_bias),
        *layer_of(gate_weight, gate_bias, norm_weight, norm_bias),
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
        CHUNK=min(tile.chunk, c_z),
        RESIDENT=tile.resident > 0 and tile.chunk >= c_z,
        STAGES=tile.stages,
        num_warps=tile.warps,
        maxnreg=tile.registers,
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
    """`ops.transition`; out may be x. The hidden layer is divided by its bounds, which stand in the second layer."""
    rows, positions, c = x.shape
    hidden = len(expand_weight)
    tile = tile or tiles.tile("transition", x)
    expand, expand_vectors = layer_of(expand_weight, expand_bias, norm_weight, norm_bias, bounded=True)
    _transition_kernel[(rows * triton.cdiv(positions, tile.positions),)](
        x,
        keep,
        expand,
        expand_vectors,
        *layer_of(output_weight, output_bias, expand_vectors[2]),
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
        STAGES=tile.stages,
        num_warps=tile.warps,
        maxnreg=tile.registers,
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
    """`ops.linear_residual`; out may be x."""
    rows, positions, c = x.shape
    tile = tile or tiles.tile("linear_residual", x)
    _linear_residual_kernel[(tiles.programs(tile, rows * triton.cdiv(positions, tile.positions), x.device),)](
        x,
        y,
        keep,
        *layer_of(weight, bias),
        out,
        rows,
        positions,
        *x.stride()[:2],
        *y.stride()[:2],
        *((0, 0, 0) if keep is None else keep.stride()),
        *out.stride()[:2],
        DROPOUT=keep is not None,
        C=c,
        WIDTH=y.shape[-1],
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, c),
        RESIDENT=tile.resident > 0 and tile.chunk >= c,
        STAGES=tile.stages,
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out


def outer_product_update(
    z: Tensor,
    a: Tensor,
    b: Tensor,
    count: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """`ops.outer_product_update`; out may be z. The products are bounded by the norms of what makes them."""
    rows, positions, c_z = z.shape
    c = a.shape[-1]
    own, rows_by = _sequences(a, 0, 1, last=True)
    others, positions_by = _sequences(b, 1, 0, last=False)
    product = torch.matmul(own.flatten(0, 1), others.flatten(1))
    del own, others
    tile = tile or tiles.tile("outer_product_mean", z)
    _outer_kernel[(rows * triton.cdiv(positions, tile.positions),)](
        z,
        product,
        rows_by,
        positions_by,
        count,
        *layer_of(weight, bias),
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
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out
