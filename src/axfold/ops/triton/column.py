"""Global column attention in three reads and one write of the MSA: the normalised MSA is never written.

Keys and values are linear in the normalised MSA x, and there is one query a residue. So the query is taken through
the keys' weights first, which gives vectors u with logits = x u, and the average of the values is that of x through
the values' weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.column import global_column_attention
from axfold.ops.triton import tiles
from axfold.ops.triton.common import EPSILON, by_row, normalize, recorded, sigmoid, why_not
from axfold.ops.triton.gradients import arriving, norm_backward, normed, tile_for, total
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
    if recorded(m, *layers) and len(q_weight) & (len(q_weight) - 1):
        return "its backward takes a power of two of channels"
    if len(q_weight) > 32 * len(kv_weight):
        return "it takes at most 64 heads"
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
    layers = norm_weight, norm_bias, q_weight, kv_weight, gate_weight, gate_bias, output_weight, output_bias
    if (
        m.dim() == 4
    ):  # residues of all members of the batch: where they are not side by side in memory, a copy
        hidden = by_row(mask)
        new = global_column_attention_triton(m.flatten(0, 1), hidden, *layers, tile).view(m.shape)
        return new if torch.is_grad_enabled() or new.data_ptr() == m.data_ptr() else m.copy_(new)
    if recorded(m, *layers):
        return _GlobalColumnAttention.apply(m, mask, *layers, tile)
    return _updated(m, mask, *layers, torch.empty_like(m) if torch.is_grad_enabled() else m, tile)


def _updated(
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
    out: Tensor,
    tile: Tile | None,
) -> Tensor:
    """m with its update, in `out`, which may be m."""
    rows, sequences, c = m.shape
    width, c_head = len(q_weight), len(kv_weight) // 2
    heads = width // c_head
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


@triton.jit(do_not_specialize=["sequences"])
def _gate_backward(
    mixed,
    gate,
    grad,
    to_mixed,
    partial,
    sequences,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of gated = sigmoid(gate) * mixed[r], with its gradient in `grad` [rows, sequences, WIDTH]: `gate` becomes its
    gradient, `grad` becomes gated; to_mixed[r], and the sums of the gradients of the gates of each row."""
    row = tl.program_id(0).to(tl.int64)
    wide, sequence = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    value = tl.load(mixed + row * WIDTH + wide).to(tl.float32)[None, :]
    to_value = tl.zeros((BLOCK, WIDTH), tl.float32)
    to_gate = tl.zeros((BLOCK, WIDTH), tl.float32)
    for block in tl.range(0, tl.cdiv(sequences, BLOCK)):
        exists = (block * BLOCK + sequence < sequences)[:, None]
        at = (row * sequences + block * BLOCK + sequence)[:, None] * WIDTH + wide[None, :]
        g = tl.load(grad + at, exists, 0.0).to(tl.float32)
        share = sigmoid(tl.load(gate + at, exists, 0.0).to(tl.float32))
        tl.store(grad + at, (share * value).to(grad.dtype.element_ty), exists)
        g *= share
        to_value += g
        g *= value * (1 - share)
        tl.store(gate + at, g.to(gate.dtype.element_ty), exists)
        to_gate += g
    tl.store(to_mixed + row * WIDTH + wide, tl.sum(to_value, 0))
    tl.store(partial + row * WIDTH + wide, tl.sum(to_gate, 0))


class _GlobalColumnAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
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
        tile: Tile | None,
    ) -> Tensor:
        layers = norm_weight, norm_bias, q_weight, kv_weight, gate_weight, gate_bias, output_weight
        ctx.save_for_backward(m, mask, *layers)
        return _updated(m, mask, *layers, output_bias, torch.empty_like(m), tile)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        m, mask, norm_weight, norm_bias, *layers = ctx.saved_tensors
        q_weight, kv_weight, gate_weight, gate_bias, output_weight = layers
        rows, sequences, c = m.shape
        width, c_head = len(q_weight), len(kv_weight) // 2
        dtype, scale = m.dtype, c_head**-0.5
        y = normed(m, norm_weight, norm_bias)
        by_row = y.view(rows, sequences, c)

        # what is small, in float32: the one query of each residue, and its weights
        masked = any(mask.stride())
        present = mask.float() if masked else mask[:, :1].float()  # a single number expanded
        count = (present.sum(-1, keepdim=True) if masked else sequences * present) + 1e-10
        present = present / count
        shares = present.to(dtype).unsqueeze(1)
        mean = torch.bmm(shares, by_row).squeeze(1) if masked else by_row.mean(1)
        q = (mean @ q_weight.mT).float().view(rows, -1, c_head) * scale
        keys, values = (y @ kv_weight.mT).view(rows, sequences, 2, c_head).float().unbind(2)
        logits = q @ keys.mT
        if masked:
            logits.masked_fill_((mask == 0).unsqueeze(1), HIDDEN.value)
        weights = logits.softmax(-1)
        mixed = weights @ values

        update, to_output_bias = arriving(above, None)
        gate = torch.addmm(gate_bias, y, gate_weight.mT)
        gated = update @ output_weight  # its gradient, until the kernel has made it
        to_mixed = m.new_empty(rows, width, dtype=torch.float32)
        partial = torch.empty_like(to_mixed)
        each = tile_for(width)
        _gate_backward[(rows,)](
            mixed,
            gate,
            gated,
            to_mixed,
            partial,
            sequences,
            WIDTH=width,
            BLOCK=each.positions,
            num_warps=each.warps,
        )
        to_gate_bias = total(partial, dtype)
        to_output, to_gate = update.mT @ gated, gate.mT @ y
        to_y = torch.mm(gate, gate_weight, out=gated) if width == c else gate @ gate_weight
        del update, gate

        to_mixed = to_mixed.view(rows, -1, c_head)
        to_values = weights.mT @ to_mixed
        to_logits = weights * (to_mixed @ values.mT - (to_mixed * mixed).sum(-1, keepdim=True))
        if masked:
            to_logits.masked_fill_((mask == 0).unsqueeze(1), 0.0)
        to_keys = to_logits.mT @ q
        to_q = ((to_logits @ keys) * scale).flatten(1).to(dtype)
        to_kv = torch.stack([to_keys, to_values], 2).view(-1, 2 * c_head).to(dtype)
        to_y.addmm_(to_kv, kv_weight)
        to_mean = to_q @ q_weight
        to_y.view(rows, sequences, c).add_(present.to(dtype).unsqueeze(2) * to_mean.unsqueeze(1))
        to_m, *to_norm = norm_backward(m, norm_weight, to_y, residual=above)
        to_layers = to_q.mT @ mean, to_kv.mT @ y, to_gate, to_gate_bias, to_output, to_output_bias
        return to_m, None, *to_norm, *to_layers, None
