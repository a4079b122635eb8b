"""Gradients of gated attention: the weights are computed once more from the logarithms of their sums.

With p the weights, o what they make of v, and out = sigmoid(gate) o, an incoming gradient d gives

    do = sigmoid(gate) d, and dgate = d out (1 - sigmoid(gate))
    dv = pT do
    ds = p (do vT - delta), where delta = sum(do o) = sum(d out) over the channels of a head
    dq = c^-1/2 ds k, dk = c^-1/2 dsT q, and dbias = the sum of ds over all rows

One kernel makes do, dgate and delta, one dq, one dk and dv, one dbias: each computes p for itself, tile by tile, which
takes less time than to keep it. Nothing is summed in an order that could change.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.triton import tiles
from axfold.ops.triton.attention import (
    HIDDEN,
    LOG2_E,
    NO_KEYS,
    Tile,
    _in_rows,
    attend,
    laid_out,
    row_and_tile,
    rows_of_each,
)
from axfold.ops.triton.common import place, sigmoid
from axfold.ops.triton.gradients import programs, tile_for, total


@dataclass(frozen=True)
class Tiles:
    """Of the three kernels. That of the keys' gradients holds its logits with the keys first: its tile's `queries`
    are keys, and its `keys` queries."""

    to_queries: Tile
    to_keys: Tile
    to_bias: Tile


# least compute capability, tiles; the first that fits is taken
TILES: tuple[tuple[int, Tiles], ...] = (
    (90, Tiles(Tile(64, 32, 4, 3), Tile(64, 32, 4, 3), Tile(64, 64, 4, 3))),
    (0, Tiles(Tile(64, 32, 4, 2), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2))),
)


@triton.jit(
    do_not_specialize=[
        *("rows", "queries", "q_row", "q_query", "q_head", "gate_row", "gate_query", "gate_head"),
        *("to_row", "to_query", "to_head"),
    ]
)
def _before(
    q,
    gate,
    mixed,
    grad,
    scaled,
    gate_grad,
    delta,
    partial,
    rows,
    queries,
    q_row,
    q_query,
    q_head,
    gate_row,
    gate_query,
    gate_head,
    to_row,
    to_query,
    to_head,
    H: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`grad` [rows, queries, H C] of `mixed` becomes that of what the weights make of v.

    And scaled [rows, queries, H C] = C^-1/2 log2(e) q, gate_grad, delta [rows, H, queries], and the sums of gate_grad.
    """
    W: tl.constexpr = H * C
    channel = tl.arange(0, W)
    head = channel // C
    within = channel % C
    blocks = tl.cdiv(queries, BLOCK)
    sums = tl.zeros((BLOCK, W), tl.float32)
    for tile in tl.range(tl.program_id(0), rows * blocks, tl.num_programs(0)):
        row, query = place(tile, blocks, BLOCK)
        exists = (query < queries)[:, None]
        far = query.to(tl.int64)[:, None]
        at = (row * queries + far) * W + channel[None, :]
        d = tl.load(grad + at, exists, 0.0).to(tl.float32)
        m = tl.load(mixed + at, exists, 0.0).to(tl.float32)
        source = gate + row * gate_row + far * gate_query + (head * gate_head + within)[None, :]
        share = sigmoid(tl.load(source, exists, 0.0).to(tl.float32))
        product = d * m
        both = tl.sum(tl.reshape(product, (BLOCK, H, C)), 2)
        place_of = (row * H + tl.arange(0, H)[None, :]) * queries + query[:, None]
        tl.store(delta + place_of, both, exists)
        tl.store(grad + at, (d * share).to(grad.dtype.element_ty), exists)
        product *= 1 - share
        sums += product
        target = gate_grad + row * to_row + far * to_query + (head * to_head + within)[None, :]
        tl.store(target, product.to(gate_grad.dtype.element_ty), exists)
        source = q + row * q_row + far * q_query + (head * q_head + within)[None, :]
        x = tl.load(source, exists, 0.0).to(tl.float32) * (C**-0.5 * LOG2_E)
        tl.store(scaled + at, x.to(scaled.dtype.element_ty), exists)
    tl.store(partial + tl.program_id(0) * W + channel, tl.sum(sums, 0))


@triton.jit
def _of_tile(tiled, tile, at, A: tl.constexpr, B: tl.constexpr, WARPS: tl.constexpr, BITS: tl.constexpr):
    """A tile [A, B] of the bias times log2(e)."""
    x = tl.load(
        tiled + tl.cast(tile, tl.int64) * (A * B * BITS // tiled.dtype.element_ty.primitive_bitwidth) + at
    )
    if x.dtype == tl.int32:  # two bfloat16
        x = tl.join(x << 16, x & -65536).to(tl.float32, bitcast=True)
    return _in_rows(x, A, B, WARPS, BITS).to(tl.float32) * LOG2_E


@triton.jit(
    do_not_specialize=[
        *("rows", "queries", "keys", "k_row", "k_key", "k_head", "v_row", "v_key", "v_head", "limit_row"),
        "each",
        *("to_row", "to_query", "to_head"),
    ]
)
def _to_queries(
    q,
    k,
    v,
    grad,
    bias,
    limits,
    logsum,
    delta,
    out,
    rows,
    queries,
    keys,
    k_row,
    k_key,
    k_head,
    v_row,
    v_key,
    v_head,
    limit_row,
    each,
    to_row,
    to_query,
    to_head,
    ALIGNED: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BIASED: tl.constexpr,
    LIMITED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradient of QUERIES queries of one row and head."""
    q_blocks, k_blocks = tl.cdiv(queries, QUERIES), tl.cdiv(keys, KEYS)
    row, tile = row_and_tile(rows, H * q_blocks, GROUP)
    head = tile // q_blocks
    query = (tile % q_blocks) * QUERIES + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    channel = tl.arange(0, WIDTH)[None, :]
    inside = channel < C
    asked = (query < queries)[:, None] & inside
    at = (row * queries + query)[:, None] * (H * C) + head * C + channel
    q_tile = tl.load(q + at, asked, 0.0)
    g_tile = tl.load(grad + at, asked, 0.0)
    place_of = (row * H + head) * queries + query
    sums = tl.load(logsum + place_of, query < queries, float("inf"))
    share = tl.load(delta + place_of, query < queries, 0.0)
    k_from = k + ((row * k_row + head * k_head + key.to(tl.int64) * k_key) * ALIGNED)[:, None] + channel
    v_from = v + ((row * v_row + head * v_head + key.to(tl.int64) * v_key) * ALIGNED)[:, None] + channel
    k_step, v_step = k_key.to(tl.int64) * (KEYS * ALIGNED), v_key.to(tl.int64) * (KEYS * ALIGNED)
    limit_from = limits + row * limit_row + key
    BITS: tl.constexpr = q.dtype.element_ty.primitive_bitwidth
    spot = tl.arange(0, QUERIES * KEYS * BITS // bias.dtype.element_ty.primitive_bitwidth)
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    own = (row.to(tl.int32) // each).to(tl.int64) * (
        H * q_blocks
    ) + tile  # the bias is that of the row's protein
    tl.assume(k_blocks > 0)
    for block in tl.range(0, k_blocks, num_stages=STAGES):
        present = (block * KEYS + key < keys)[:, None] & inside
        k_tile, v_tile = tl.load(k_from, present, 0.0), tl.load(v_from, present, 0.0)
        logits = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        if BIASED:
            logits += _of_tile(bias, own * k_blocks + block, spot, QUERIES, KEYS, WARPS, BITS)
        if LIMITED:
            limit = tl.load(limit_from)[None, :]
            logits = tl.where(limit < 0, limit, logits)
        ds = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds = tl.exp2(logits - sums[:, None]) * (ds - share[:, None])
        if LIMITED:
            ds = tl.where(limit < 0, 0.0, ds)
        total = tl.dot(ds.to(k_tile.dtype), k_tile, total, input_precision=PRECISION)
        k_from += k_step
        v_from += v_step
        limit_from += KEYS
    target = out + row * to_row + head * to_head + (query.to(tl.int64) * to_query)[:, None] + channel
    tl.store(target, (total * C**-0.5).to(out.dtype.element_ty), asked)


@triton.jit(
    do_not_specialize=[
        *("rows", "queries", "keys", "k_row", "k_key", "k_head", "v_row", "v_key", "v_head", "limit_row"),
        "each",
        *("k_to_row", "k_to_key", "k_to_head", "v_to_row", "v_to_key", "v_to_head"),
    ]
)
def _to_keys(
    q,
    k,
    v,
    grad,
    bias,
    limits,
    logsum,
    delta,
    k_out,
    v_out,
    rows,
    queries,
    keys,
    k_row,
    k_key,
    k_head,
    v_row,
    v_key,
    v_head,
    limit_row,
    each,
    k_to_row,
    k_to_key,
    k_to_head,
    v_to_row,
    v_to_key,
    v_to_head,
    ALIGNED: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BIASED: tl.constexpr,
    LIMITED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Gradients of KEYS keys and values of one row and head; its logits have the keys first."""
    q_blocks, k_blocks = tl.cdiv(queries, QUERIES), tl.cdiv(keys, KEYS)
    row, tile = row_and_tile(rows, H * k_blocks, GROUP)
    head = tile // k_blocks
    key = (tile % k_blocks) * KEYS + tl.arange(0, KEYS)
    query = tl.arange(0, QUERIES)
    channel = tl.arange(0, WIDTH)[None, :]
    inside = channel < C
    present = (key < keys)[:, None] & inside
    far = key.to(tl.int64)[:, None]
    k_tile = tl.load(k + (row * k_row + head * k_head + far * k_key) * ALIGNED + channel, present, 0.0)
    v_tile = tl.load(v + (row * v_row + head * v_head + far * v_key) * ALIGNED + channel, present, 0.0)
    at = (row * queries + query)[:, None] * (H * C) + head * C + channel
    q_from, g_from = q + at, grad + at
    place_of = (row * H + head) * queries + query
    if LIMITED:
        limit = tl.load(limits + row * limit_row + key, key < keys, float("inf"))[:, None]
    BITS: tl.constexpr = q.dtype.element_ty.primitive_bitwidth
    spot = tl.arange(0, QUERIES * KEYS * BITS // bias.dtype.element_ty.primitive_bitwidth)
    to_keys = tl.zeros((KEYS, WIDTH), tl.float32)
    to_values = tl.zeros((KEYS, WIDTH), tl.float32)
    own = (row.to(tl.int32) // each).to(tl.int64) * (H * k_blocks) + tile
    tl.assume(q_blocks > 0)
    for block in tl.range(0, q_blocks, num_stages=STAGES):
        exists = block * QUERIES + query < queries
        q_tile = tl.load(q_from, exists[:, None] & inside, 0.0)
        g_tile = tl.load(g_from, exists[:, None] & inside, 0.0)
        sums = tl.load(logsum + place_of, exists, float("inf"))
        share = tl.load(delta + place_of, exists, 0.0)
        logits = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
        if BIASED:
            logits += _of_tile(bias, own * q_blocks + block, spot, KEYS, QUERIES, WARPS, BITS)
        if LIMITED:
            logits = tl.where(limit < 0, limit, logits)
        weights = tl.exp2(logits - sums[None, :])
        to_values = tl.dot(weights.to(g_tile.dtype), g_tile, to_values, input_precision=PRECISION)
        ds = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        ds = weights * (ds - share[None, :])
        if LIMITED:
            ds = tl.where(limit < 0, 0.0, ds)
        to_keys = tl.dot(ds.to(q_tile.dtype), q_tile, to_keys, input_precision=PRECISION)
        q_from += QUERIES * H * C
        g_from += QUERIES * H * C
        place_of += QUERIES
    target = k_out + row * k_to_row + head * k_to_head + far * k_to_key + channel
    tl.store(target, (to_keys / LOG2_E).to(k_out.dtype.element_ty), present)  # q has c^-1/2 log2(e) in it
    target = v_out + row * v_to_row + head * v_to_head + far * v_to_key + channel
    tl.store(target, to_values.to(v_out.dtype.element_ty), present)


@triton.jit(
    do_not_specialize=[
        *("rows", "queries", "keys", "k_row", "k_key", "k_head", "v_row", "v_key", "v_head", "limit_row"),
        "each",
        "members",
    ]
)
def _to_bias(
    q,
    k,
    v,
    grad,
    bias,
    limits,
    logsum,
    delta,
    partial,
    rows,
    queries,
    keys,
    k_row,
    k_key,
    k_head,
    v_row,
    v_key,
    v_head,
    limit_row,
    each,
    members,
    ALIGNED: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    LIMITED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial[group, protein] [H, queries, keys] = gradient of a tile of its bias from `members` rows of a group."""
    q_blocks, k_blocks = tl.cdiv(queries, QUERIES), tl.cdiv(keys, KEYS)
    tile = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    k_block, q_block = tile % k_blocks, tile // k_blocks % q_blocks
    head = tile // (k_blocks * q_blocks)
    query = q_block * QUERIES + tl.arange(0, QUERIES)
    key = k_block * KEYS + tl.arange(0, KEYS)
    channel = tl.arange(0, WIDTH)[None, :]
    inside = channel < C
    asked = (query < queries)[:, None] & inside
    present = (key < keys)[:, None] & inside
    protein = tl.program_id(2).to(tl.int64)
    first = protein * each + group * members
    at = (first * queries + query)[:, None] * (H * C) + head * C + channel
    q_from, g_from = q + at, grad + at
    far = key.to(tl.int64)[:, None]
    k_from = k + (first * k_row + head * k_head + far * k_key) * ALIGNED + channel
    v_from = v + (first * v_row + head * v_head + far * v_key) * ALIGNED + channel
    place_of = (first * H + head) * queries + query
    limit_from = limits + first * limit_row + key
    q_step, k_step = queries.to(tl.int64) * (H * C), k_row.to(tl.int64) * ALIGNED
    v_step = v_row.to(tl.int64) * ALIGNED
    BITS: tl.constexpr = q.dtype.element_ty.primitive_bitwidth
    spot = tl.arange(0, QUERIES * KEYS * BITS // bias.dtype.element_ty.primitive_bitwidth)
    x = _of_tile(bias, protein * tl.num_programs(0) + tile, spot, QUERIES, KEYS, WARPS, BITS)
    total = tl.zeros((QUERIES, KEYS), tl.float32)
    for _ in tl.range(0, tl.minimum(members, each - tl.program_id(1) * members), num_stages=STAGES):
        q_tile, g_tile = tl.load(q_from, asked, 0.0), tl.load(g_from, asked, 0.0)
        k_tile, v_tile = tl.load(k_from, present, 0.0), tl.load(v_from, present, 0.0)
        sums = tl.load(logsum + place_of, query < queries, float("inf"))
        share = tl.load(delta + place_of, query < queries, 0.0)
        logits = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) + x
        ds = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds = tl.exp2(logits - sums[:, None]) * (ds - share[:, None])
        if LIMITED:
            limit = tl.load(limit_from, key < keys, float("inf"))[None, :]
            ds = tl.where(limit < 0, 0.0, ds)
        total += ds
        q_from += q_step
        g_from += q_step
        k_from += k_step
        v_from += v_step
        place_of += H * queries
        limit_from += limit_row
    target = (
        partial
        + (((group * tl.num_programs(2) + protein) * H + head) * queries + query)[:, None] * keys
        + key[None, :]
    )
    tl.store(target, total, (query < queries)[:, None] & (key < keys)[None, :])


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    mixed: Tensor,
    logsum: Tensor,
    grad: Tensor,
    outs: tuple[Tensor, ...],
    to_bias: bool = True,
    tile: Tiles | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Writes the gradients of q, k, v and gate into `outs` [rows, positions, heads, c].

    Returns the sum [heads * c] of the last over all positions, and the gradient of the bias. `grad` [rows, queries,
    heads * c] is that of `mixed`, and is consumed.
    """
    rows, queries, heads, channels = q.shape
    keys = k.shape[1]
    width = heads * channels
    to_q, to_k, to_v, to_gate = outs
    before = replace(tile_for(width), positions=max(1024 // width, 1))
    count = programs(before, rows, queries, q)
    partial = q.new_empty(count, width, dtype=torch.float32)
    scaled = torch.empty_like(mixed)
    delta = torch.empty_like(logsum)
    _before[(count,)](
        q,
        gate,
        mixed,
        grad,
        scaled,
        to_gate,
        delta,
        partial,
        rows,
        queries,
        *q.stride()[:3],
        *gate.stride()[:3],
        *to_gate.stride()[:3],
        H=heads,
        C=channels,
        BLOCK=before.positions,
        num_warps=before.warps,
    )
    chosen = tile or next(tile for least, tile in TILES if tiles.generation(tiles.gpu(q.device)[0]) >= least)
    limits = _limits(mask, keys, chosen.to_queries.keys, bias is None)
    limit_row = 0 if limits is None else limits.stride(0)
    vector = 16 // q.element_size()
    strides = [x.stride(axis) for x in (k, v) for axis in range(3)]
    aligned = vector if all(stride % vector == 0 for stride in strides) else 1
    strides = [stride // aligned for stride in strides]
    constants = {
        "ALIGNED": aligned,
        "H": heads,
        "C": channels,
        "WIDTH": max(channels, 16),
        "LIMITED": limits is not None,
        "PRECISION": tiles.products(q.dtype),
    }
    operands = scaled, k, v, grad
    statistics = scaled if limits is None else limits, logsum, delta
    biased = bias is not None

    one = chosen.to_queries
    each = rows_of_each(rows, bias)
    by_query = scaled if bias is None else laid_out(bias, queries, keys, one)
    _to_queries[(rows * heads * triton.cdiv(queries, one.queries),)](
        *operands,
        by_query,
        *statistics,
        to_q,
        rows,
        queries,
        keys,
        *strides,
        limit_row,
        each,
        *to_q.stride()[:3],
        BIASED=biased,
        QUERIES=one.queries,
        KEYS=one.keys,
        WARPS=one.warps,
        STAGES=one.stages,
        GROUP=one.rows,
        num_warps=one.warps,
        maxnreg=one.registers,
        **constants,
    )
    one = chosen.to_keys
    by_key = scaled if bias is None else laid_out(bias.mT, keys, queries, one)
    _to_keys[(rows * heads * triton.cdiv(keys, one.queries),)](
        *operands,
        by_key,
        *statistics,
        to_k,
        to_v,
        rows,
        queries,
        keys,
        *strides,
        limit_row,
        each,
        *to_k.stride()[:3],
        *to_v.stride()[:3],
        BIASED=biased,
        QUERIES=one.keys,
        KEYS=one.queries,
        WARPS=one.warps,
        STAGES=one.stages,
        GROUP=one.rows,
        num_warps=one.warps,
        maxnreg=one.registers,
        **constants,
    )
    sums = total(partial, q.dtype)
    if bias is None or not to_bias:
        return sums, None
    one = chosen.to_bias
    if (one.queries, one.keys, one.warps) != (
        chosen.to_queries.queries,
        chosen.to_queries.keys,
        chosen.to_queries.warps,
    ):
        by_query = laid_out(bias, queries, keys, one)
    blocks = heads * triton.cdiv(queries, one.queries) * triton.cdiv(keys, one.keys)
    proteins = rows // each
    groups = min(each, triton.cdiv(8 * tiles.gpu(q.device)[1], blocks * proteins))
    members = triton.cdiv(each, groups)
    groups = triton.cdiv(each, members)
    shares = q.new_empty(groups, *bias.shape, dtype=torch.float32)
    _to_bias[(blocks, groups, proteins)](
        *operands,
        by_query,
        *statistics,
        shares,
        rows,
        queries,
        keys,
        *strides,
        limit_row,
        each,
        members,
        QUERIES=one.queries,
        KEYS=one.keys,
        WARPS=one.warps,
        STAGES=one.stages,
        num_warps=one.warps,
        maxnreg=one.registers,
        **constants,
    )
    return sums, total(shares, bias.dtype)


def _limits(mask: Tensor, keys: int, block: int, unbiased: bool) -> Tensor | None:
    """Logits [rows, keys] of the keys that are hidden, with infinity for the others, or None where none is hidden.

    Keys that are missing in the last block are hidden too where no bias does it.
    """
    masked = any(mask.stride())
    if not masked and not (unbiased and keys % block):
        return None
    rows = len(mask)
    width = triton.cdiv(keys, block) * block
    limits = mask.new_full((rows if masked else 1, width), -torch.inf, dtype=torch.float32)
    if masked:
        hidden = mask == 0
        nothing = hidden.all(-1, keepdim=True)
        limits[:, :keys] = torch.where(hidden, torch.where(nothing, NO_KEYS.value, HIDDEN.value), torch.inf)
    else:
        limits[:, :keys] = torch.inf
    return limits.expand(rows, -1)


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        tile: Tile | None,
    ) -> Tensor:
        rows, queries, heads, _ = q.shape
        logsum = q.new_zeros(rows, heads, queries, dtype=torch.float32)
        out = attend(q, k, v, gate, mask, bias, tile, logsum)
        ctx.save_for_backward(q, k, v, gate, mask, bias, out, logsum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gate, mask, bias, out, logsum = ctx.saved_tensors
        outs = tuple(x.new_empty(x.shape) for x in (q, k, v, gate))
        if not grad.numel() or not k.shape[1]:
            return *(x.zero_() for x in outs), None, None if bias is None else torch.zeros_like(bias), None
        grad = grad.clone(memory_format=torch.contiguous_format)  # which the kernels write into
        _, to_bias = gradients(q, k, v, gate, mask, bias, out, logsum, grad, outs, ctx.needs_input_grad[5])
        return *outs, None, to_bias, None


def gated_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None, tile: Tile | None
) -> Tensor:
    """The attention, of which gradients are recorded."""
    return _GatedAttention.apply(q, k, v, gate, mask, bias, tile)
