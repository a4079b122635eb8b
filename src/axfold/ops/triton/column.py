"""Global column attention in three reads and one write of the MSA: the normalised MSA is never written.

Keys and values are linear in the normalised MSA x, and there is one query a residue. So the query is taken through
the keys' weights first, which gives vectors u with logits = x u, and the average of the values is that of x through
the values' weights.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.column import global_column_attention
from axfold.ops.triton import tiles
from axfold.ops.triton.common import EPSILON, normalize, recorded, sigmoid, why_not
from axfold.ops.triton.tiles import Tile

HIDDEN = tl.constexpr(
    -(2.0**30)
)  # logit of a masked sequence: finite, so that a residue without any averages them
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _standard(x, C: tl.constexpr):
    """x - mean over deviation, of each row."""
    centered = x - tl.expand_dims(tl.sum(x, 1) / C, 1)
    variance = tl.sum(centered * centered, 1) / C
    return centered * tl.expand_dims(tl.rsqrt(variance + EPSILON), 1)


@triton.jit(do_not_specialize=["sequences", "m_row", "m_sequence", "mask_row", "mask_sequence"])
def _mean(
    m,
    mask,
    out,
    sequences,
    m_row,
    m_sequence,
    mask_row,
    mask_sequence,
    MASKED: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out[r] = the mean of the sequences, each standardised."""
    row = tl.program_id(0).to(tl.int64)
    channel, sequence = tl.arange(0, C), tl.arange(0, BLOCK)
    far = sequence.to(tl.int64)
    m += row * m_row + far[:, None] * m_sequence + channel[None, :]
    mask += row * mask_row + far * mask_sequence
    total = tl.zeros((BLOCK, C), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    for block in tl.range(0, tl.cdiv(sequences, BLOCK), num_stages=STAGES):
        exists = block * BLOCK + sequence < sequences
        step = tl.cast(block, tl.int64) * BLOCK
        x = _standard(tl.load(m + step * m_sequence, exists[:, None], 0.0).to(tl.float32), C)
        present = exists.to(tl.float32)
        if MASKED:
            present = tl.load(mask + step * mask_sequence, exists, 0.0).to(tl.float32)
        total += x * present[:, None]
        count += present
    tl.store(out + row * C + channel, tl.sum(total, 0) / (tl.sum(count, 0) + 1e-10))


@triton.jit(do_not_specialize=["sequences", "m_row", "m_sequence", "mask_row", "mask_sequence"])
def _average(
    m,
    mask,
    u,
    out,
    sequences,
    m_row,
    m_sequence,
    mask_row,
    mask_sequence,
    MASKED: tl.constexpr,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[r, h] = the average of the standardised sequences x with weights softmax(x u[r, h])."""
    row = tl.program_id(0).to(tl.int64)
    head, channel, sequence = tl.arange(0, HEADS), tl.arange(0, C), tl.arange(0, BLOCK)
    far = sequence.to(tl.int64)
    m += row * m_row + far[:, None] * m_sequence + channel[None, :]
    mask += row * mask_row + far * mask_sequence
    at = (row * H + head[None, :]) * C + channel[:, None]
    inside = (head < H)[None, :] & (channel < C)[:, None]
    vectors = tl.load(u + at, inside, 0.0).to(m.dtype.element_ty)
    highest = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    mixed = tl.zeros((C, HEADS), tl.float32)
    for block in tl.range(0, tl.cdiv(sequences, BLOCK), num_stages=STAGES):
        exists = block * BLOCK + sequence < sequences
        step = tl.cast(block, tl.int64) * BLOCK
        x = _standard(tl.load(m + step * m_sequence, exists[:, None], 0.0).to(tl.float32), C)
        x = x.to(m.dtype.element_ty)
        logits = tl.dot(x, vectors, input_precision=PRECISION)
        if MASKED:
            present = tl.load(mask + step * mask_sequence, exists, 0.0).to(tl.float32)
            logits = tl.where((present == 0)[:, None], HIDDEN, logits)
        logits = tl.where(exists[:, None], logits, float("-inf"))
        new = tl.maximum(highest, tl.max(logits, 0))
        weights = tl.exp2((logits - new[None, :]) * LOG2_E)
        shrink = tl.exp2((highest - new) * LOG2_E)
        highest = new
        total = total * shrink + tl.sum(weights, 0)
        weights = weights.to(m.dtype.element_ty)
        mixed = tl.dot(tl.trans(x), weights, mixed * shrink[None, :], input_precision=PRECISION)
    tl.store(out + at, mixed / total[None, :], inside)


@triton.jit(do_not_specialize=["sequences", "m_row", "m_sequence", "out_row", "out_sequence"])
def _update(
    m,
    mixed,
    norm_weight,
    norm_bias,
    gate_weight,
    gate_bias,
    output_weight,
    output_bias,
    out,
    sequences,
    m_row,
    m_sequence,
    out_row,
    out_sequence,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = m + output(sigmoid(gate(norm(m))) * mixed[r]) for BLOCKS tiles of sequences; out may be m."""
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1).to(tl.int64) * (BLOCK * BLOCKS)
    channel, wide, sequence = tl.arange(0, C), tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    far = sequence.to(tl.int64)
    m += row * m_row + (start + far)[:, None] * m_sequence + channel[None, :]
    out += row * out_row + (start + far)[:, None] * out_sequence + channel[None, :]
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    first = tl.load(gate_weight + wide[None, :] * C + channel[:, None])
    first_bias = tl.load(gate_bias + wide).to(tl.float32)
    second = tl.load(output_weight + channel[None, :] * WIDTH + wide[:, None])
    second_bias = tl.load(output_bias + channel).to(tl.float32)
    value = tl.load(mixed + row * WIDTH + wide)
    for block in tl.range(0, BLOCKS, num_stages=STAGES):
        exists = start + block * BLOCK + sequence < sequences
        step = tl.cast(block, tl.int64) * BLOCK
        x = tl.load(m + step * m_sequence, exists[:, None], 0.0).to(tl.float32)
        y = normalize(x, scale, shift, C, 1).to(m.dtype.element_ty)
        gate = tl.dot(y, first, input_precision=PRECISION) + first_bias[None, :]
        gated = (sigmoid(gate) * value[None, :]).to(m.dtype.element_ty)
        update = tl.dot(gated, second, input_precision=PRECISION) + second_bias[None, :]
        tl.store(out + step * out_sequence, (x + update).to(out.dtype.element_ty), exists[:, None])


def _why_not(
    m: Tensor,
    mask: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    q_weight: Tensor,
    kv_weight: Tensor,
    *others: Tensor,
) -> str | None:
    layers = norm_weight, norm_bias, q_weight, kv_weight, *others
    if recorded(m, *layers):
        return "it has no backward"
    if len(q_weight) > 32 * len(kv_weight):
        return "it takes at most 64 heads"
    if m.dim() != 3:
        return "it takes no batch axes"
    return why_not(m, *layers, channels=(m.shape[-1], len(q_weight)))


@global_column_attention.backend("triton", why_not=_why_not)
def global_column_attention_triton(
    m: Tensor,
    mask: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    q_weight: Tensor,
    kv_weight: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """Three kernels; between them are vectors of a residue in float32, which take next to no memory."""
    rows, sequences, c = m.shape
    width, c_head = len(q_weight), len(kv_weight) // 2
    heads = width // c_head
    out = torch.empty_like(m) if torch.is_grad_enabled() else m
    if not m.numel():
        return out
    tile = tile or tiles.tile("global_column_attention", m)
    shape = {"C": c, "BLOCK": tile.positions, "STAGES": tile.stages, "num_warps": tile.warps}
    masked = any(mask.stride())
    strides = *m.stride()[:2], *mask.stride()
    scale, shift, queries, both = (x.float() for x in (norm_weight, norm_bias, q_weight, kv_weight))
    keys, values = both.chunk(2)

    mean = m.new_empty(rows, c, dtype=torch.float32)
    _mean[(rows,)](m, mask, mean, sequences, *strides, MASKED=masked, **shape)
    q = F.linear(mean * scale + shift, queries).unflatten(-1, (heads, c_head))
    u = torch.matmul(q * c_head**-0.5, keys * scale)  # what the shift adds is the same for all sequences
    average = torch.empty_like(u)
    precision = {"PRECISION": tiles.products(m.dtype)}
    _average[(rows,)](
        m,
        mask,
        u,
        average,
        sequences,
        *strides,
        MASKED=masked,
        H=heads,
        HEADS=max(16, triton.next_power_of_2(heads)),
        **precision,
        **shape,
    )
    mixed = F.linear(average * scale + shift, values).flatten(-2)
    blocks = 8
    _update[(rows, triton.cdiv(sequences, blocks * tile.positions))](
        m,
        mixed,
        norm_weight,
        norm_bias,
        gate_weight,
        gate_bias,
        output_weight,
        output_bias,
        out,
        sequences,
        *m.stride()[:2],
        *out.stride()[:2],
        WIDTH=width,
        BLOCKS=blocks,
        **precision,
        **shape,
    )
    return out
