"""Gated attention for Hopper (compute capability 9.0), by Triton's Gluon: loads, products and exponentials at once.

Five groups of four warps share a multiprocessor. One only loads, by the bulk copy engine; each of the others attends
for 64 queries of a row, two rows for the same 128 queries, so that a tile of the bias is read once for both. While one
group waits for its products the others take exponentials, of which there are many for the few channels of a head.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from axfold.ops.attention import gated_attention
from axfold.ops.triton import tiles
from axfold.ops.triton.attention import LEAST, LOG2_E, MOST
from axfold.ops.triton.common import sigmoid

_bring = (
    getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
)  # its name since Triton 3.8, and before

QUERIES = gl.constexpr(64)  # of a group of warps: the least that its products take
KEYS = gl.constexpr(64)
ROWS, PARTS = gl.constexpr(2), gl.constexpr(2)  # rows at once, and groups of queries for each
STAGES = gl.constexpr(4)  # tiles of keys on their way
GROUP = gl.constexpr(16)  # pairs of rows before others, with all heads and queries: they share the bias
REGISTERS = gl.constexpr(112)  # of a thread that computes


@triton.jit
def _place(tile, rows, q_blocks, HEADS: tl.constexpr):
    """(first row, head, block of queries) of a tile. Neighbours take the same bias for other rows."""
    group = GROUP * HEADS * q_blocks
    first = tile // group * GROUP
    within = tile - first * HEADS * q_blocks
    members = tl.minimum(tl.cdiv(rows, ROWS) - first, GROUP)
    rest = within // members
    return (first + within % members) * ROWS, rest // q_blocks, rest % q_blocks


@gluon.jit
def _load(
    q, k, v, gate, bias, tiles_of, barriers, sizes,
    HEADS: gl.constexpr, C: gl.constexpr, WIDTH: gl.constexpr, BIASED: gl.constexpr,
):  # fmt: skip
    """Bring what the others need, as soon as there is room for it."""
    q_tiles, gate_tiles, k_tiles, v_tiles, bias_tiles = tiles_of
    asked, answered, full, empty = barriers
    rows, queries, keys, tiles = sizes
    q_blocks, k_blocks = gl.cdiv(queries, QUERIES * PARTS), gl.cdiv(keys, KEYS)
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        turn = (tile - gl.program_id(0)) // gl.num_programs(0)
        row, head, block = _place(tile, rows, q_blocks, HEADS)
        slot = turn & 1
        mbarrier.wait(answered.index(slot), ((turn >> 1) & 1) ^ 1)
        mbarrier.expect(asked.index(slot), ROWS * PARTS * 2 * QUERIES * WIDTH * 2)
        for r in gl.static_range(ROWS):
            for part in gl.static_range(PARTS):
                at = gl.minimum(row + r, rows - 1) * queries + (block * PARTS + part) * QUERIES
                to = slot * (ROWS * PARTS) + r * PARTS + part
                _bring(q, [at, head * C], asked.index(slot), q_tiles.index(to))
                _bring(gate, [at, head * C], asked.index(slot), gate_tiles.index(to))
        for turn_k in range(k_blocks):
            # the last keys first: some of that tile may be missing
            block_k = gl.where(turn_k == 0, k_blocks, turn_k) - 1
            stage = step & (STAGES - 1)
            mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
            mbarrier.expect(
                full.index(stage), ROWS * 2 * KEYS * WIDTH * 2 + BIASED * PARTS * QUERIES * KEYS * 2
            )
            for r in gl.static_range(ROWS):
                at = gl.minimum(row + r, rows - 1) * keys + block_k * KEYS
                to = stage * ROWS + r
                _bring(k, [at, head * C], full.index(stage), k_tiles.index(to))
                _bring(v, [at, head * C], full.index(stage), v_tiles.index(to))
            if BIASED:
                for part in gl.static_range(PARTS):
                    at = head * queries + (block * PARTS + part) * QUERIES
                    to = stage * PARTS + part
                    of_keys = block_k * KEYS
                    _bring(bias, [at, of_keys], full.index(stage), bias_tiles.index(to))
            step += 1


@gluon.jit
def _attend(
    INDEX: gl.constexpr, out, wrong, tiles_of, barriers, sizes,
    HEADS: gl.constexpr, C: gl.constexpr, WIDTH: gl.constexpr, BIASED: gl.constexpr, BEHIND: gl.constexpr,
):  # fmt: skip
    """sigmoid(gate) * softmax(C^-1/2 q kT + bias) v for one group of queries after the other.

    Weights are 2^logit as they are; where that was wrong, `wrong` says so (ops.triton.attention tells why).
    """
    q_tiles, gate_tiles, k_tiles, v_tiles, bias_tiles = tiles_of
    asked, answered, full, empty = barriers
    rows, queries, keys, tiles = sizes
    LOGITS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    MIXED: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, MIXED, 2)
    ROW: gl.constexpr = INDEX // PARTS
    PART: gl.constexpr = INDEX % PARTS
    q_blocks, k_blocks = gl.cdiv(queries, QUERIES * PARTS), gl.cdiv(keys, KEYS)
    channel = gl.arange(0, WIDTH, gl.SliceLayout(0, MIXED))
    nothing = gl.zeros([QUERIES, KEYS], gl.float32, LOGITS)
    step = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        turn = (tile - gl.program_id(0)) // gl.num_programs(0)
        row, head, block = _place(tile, rows, q_blocks, HEADS)
        slot = turn & 1
        mbarrier.wait(asked.index(slot), (turn >> 1) & 1)
        q = q_tiles.index(slot * (ROWS * PARTS) + INDEX).load(MIXED).to(gl.float32) * (C**-0.5 * LOG2_E)
        if WIDTH > C:  # what follows is another head's
            q = gl.where((channel < C)[None, :], q, 0.0)
        q = gl.convert_layout(q.to(gl.bfloat16), gl.DotOperandLayout(0, LOGITS, 2))
        mixed = gl.zeros([QUERIES, WIDTH], gl.float32, MIXED)
        # while the weights of one tile of keys are made, their product with the values before is under way
        stage = step & (STAGES - 1)
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        k_tile = k_tiles.index(stage * ROWS + ROW).permute((1, 0))
        logits = warpgroup_mma(q, k_tile, nothing, use_acc=False, is_async=True)
        logits = warpgroup_mma_wait(0, deps=[logits])
        logits = _plus(logits, bias_tiles, stage * PARTS + PART, BIASED, LOGITS)
        key = (k_blocks - 1) * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, LOGITS))
        weights = gl.exp2(gl.where((key < keys)[None, :], logits, float("-inf")))
        total = _sums(weights)
        weights = gl.convert_layout(weights.to(gl.bfloat16), WEIGHTS)
        for _ in range(1, k_blocks):
            before = step & (STAGES - 1)
            step += 1
            stage = step & (STAGES - 1)
            mbarrier.wait(full.index(stage), step // STAGES & 1)
            k_tile = k_tiles.index(stage * ROWS + ROW).permute((1, 0))
            logits = warpgroup_mma(q, k_tile, nothing, use_acc=False, is_async=True)
            mixed = warpgroup_mma(weights, v_tiles.index(before * ROWS + ROW), mixed, is_async=True)
            logits = warpgroup_mma_wait(1, deps=[logits])
            logits = _plus(logits, bias_tiles, stage * PARTS + PART, BIASED, LOGITS)
            made = gl.exp2(logits)
            total += _sums(made)
            if BEHIND:  # named by the wait, they are made before it
                weights = gl.convert_layout(made.to(gl.bfloat16), WEIGHTS)
                mixed, weights = warpgroup_mma_wait(0, deps=[mixed, weights])
            else:
                mixed = warpgroup_mma_wait(0, deps=[mixed])
                weights = gl.convert_layout(made.to(gl.bfloat16), WEIGHTS)
            mbarrier.arrive(empty.index(before), count=1)
        stage = step & (STAGES - 1)
        mixed = warpgroup_mma(weights, v_tiles.index(stage * ROWS + ROW), mixed, is_async=True)
        mixed = warpgroup_mma_wait(0, deps=[mixed])
        mbarrier.arrive(empty.index(stage), count=1)
        step += 1
        whole = gl.convert_layout(gl.sum(total, 1), gl.SliceLayout(1, MIXED))
        opened = sigmoid(gate_tiles.index(slot * (ROWS * PARTS) + INDEX).load(MIXED).to(gl.float32))
        mbarrier.arrive(answered.index(slot), count=1)
        result = mixed * (1 / whole)[:, None] * opened
        query = (block * PARTS + PART) * QUERIES + gl.arange(0, QUERIES, gl.SliceLayout(1, MIXED))
        exists = (query < queries) & (row + ROW < rows)
        at = ((row + ROW).to(gl.int64) * queries + query)[:, None] * (HEADS * C) + head * C + channel[None, :]
        gl.store(out + at, result.to(gl.bfloat16), exists[:, None] & (channel < C)[None, :])
        fits = ((whole > LEAST) & (whole < MOST)) | ~exists
        gl.store(wrong + tile * (ROWS * PARTS) + INDEX, 1 - gl.min(fits.to(gl.int32), 0))


@gluon.jit
def _plus(logits, bias_tiles, at, BIASED: gl.constexpr, LOGITS: gl.constexpr):
    """logits + log2(e) bias for a tile of keys."""
    if BIASED:
        scale = gl.full([QUERIES, KEYS], LOG2_E, gl.float32, LOGITS)
        logits = gl.fma(bias_tiles.index(at).load(LOGITS).to(gl.float32), scale, logits)
    return logits


@gluon.jit
def _sums(x):
    """Of each row, what each thread holds of it: four numbers [rows, 4], for which nothing moves between threads."""
    return gl.sum(gl.sum(x.reshape([x.shape[0], x.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit(do_not_specialize=["rows", "queries", "keys", "tiles"])
def _kernel(
    q, k, v, gate, bias, out, wrong, rows, queries, keys, tiles,
    HEADS: gl.constexpr, C: gl.constexpr, WIDTH: gl.constexpr, BIASED: gl.constexpr, BEHIND: gl.constexpr,
):  # fmt: skip
    SLOTS: gl.constexpr = 2 * ROWS * PARTS
    q_tiles = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, QUERIES, WIDTH], q.layout)
    gate_tiles = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, QUERIES, WIDTH], gate.layout)
    k_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES * ROWS, KEYS, WIDTH], k.layout)
    v_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES * ROWS, KEYS, WIDTH], v.layout)
    if BIASED:
        bias_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES * PARTS, QUERIES, KEYS], bias.layout)
    else:
        bias_tiles = k_tiles
    asked = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    answered = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(asked.index(i), count=1)
        mbarrier.init(answered.index(i), count=ROWS * PARTS)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=ROWS * PARTS)
    fence_async_shared()
    tiles_of = (q_tiles, gate_tiles, k_tiles, v_tiles, bias_tiles)
    barriers = (asked, answered, full, empty)
    sizes = (rows, queries, keys, tiles)
    gl.warp_specialize(
        [
            (_load, (q, k, v, gate, bias, tiles_of, barriers, sizes, HEADS, C, WIDTH, BIASED)),
            (_attend, (0, out, wrong, tiles_of, barriers, sizes, HEADS, C, WIDTH, BIASED, BEHIND)),
            (_attend, (1, out, wrong, tiles_of, barriers, sizes, HEADS, C, WIDTH, BIASED, BEHIND)),
            (_attend, (2, out, wrong, tiles_of, barriers, sizes, HEADS, C, WIDTH, BIASED, BEHIND)),
            (_attend, (3, out, wrong, tiles_of, barriers, sizes, HEADS, C, WIDTH, BIASED, BEHIND)),
        ],
        [4, 4, 4, 4],
        [REGISTERS, REGISTERS, REGISTERS, REGISTERS],
    )


@triton.jit(
    do_not_specialize=[
        "rows",
        "queries",
        "keys",
        "at_q",
        "at_k",
        "at_v",
        "at_gate",
        "tiles",
        "by_head",
        "by_query",
    ]
)
def _again(
    q, k, v, gate, bias, wrong, out, rows, queries, keys, at_q, at_k, at_v, at_gate, tiles, by_head, by_query,
    H: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BIASED: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """The tiles of `_kernel` that were wrong, with a maximum running along. There are next to none: most programs look
    at MANY marks at a time and find nothing to do."""
    for first in range(tl.program_id(0) * MANY, tiles * (ROWS * PARTS), tl.num_programs(0) * MANY):
        mark = first + tl.arange(0, MANY)
        found = tl.load(wrong + mark, mark < tiles * (ROWS * PARTS), 0)
        if tl.max(found, 0) > 0:
            for i in range(first, tl.minimum(first + MANY, tiles * (ROWS * PARTS))):
                if tl.load(wrong + i) > 0:
                    _one_again(
                        q, k, v, gate, bias, out, i, rows, queries, keys, at_q, at_k, at_v, at_gate, by_head, by_query,
                        H, C, WIDTH, BIASED,
                    )  # fmt: skip


@triton.jit
def _one_again(
    q, k, v, gate, bias, out, i, rows, queries, keys, at_q, at_k, at_v, at_gate, by_head, by_query,
    H: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    q_blocks = tl.cdiv(queries, QUERIES * PARTS)
    tile, index = i // (ROWS * PARTS), i % (ROWS * PARTS)
    first, head, block = _place(tile, rows, q_blocks, H)
    row = first + index // PARTS
    query = (block * PARTS + index % PARTS) * QUERIES + tl.arange(0, QUERIES)
    channel, key = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    asked = (query < queries)[:, None] & (channel < C)[None, :]
    within_row = head * C + channel[None, :]
    place = (row.to(tl.int64) * queries + query)[:, None]
    q_tile = tl.load(q + place * at_q + within_row, asked, 0.0).to(tl.float32)
    q_tile = (q_tile * (C**-0.5 * LOG2_E)).to(q.dtype.element_ty)
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    for at in range(0, keys, KEYS):
        there = at + key < keys
        key_place = (row.to(tl.int64) * keys + at + key)[:, None]
        inside = there[:, None] & (channel < C)[None, :]
        k_tile = tl.load(k + key_place * at_k + within_row, inside, 0.0)
        v_tile = tl.load(v + key_place * at_v + within_row, inside, 0.0)
        logits = tl.dot(q_tile, tl.trans(k_tile))
        if BIASED:
            b_at = head * by_head + query.to(tl.int64)[:, None] * by_query + at + key[None, :]
            logits += LOG2_E * tl.load(bias + b_at, (query < queries)[:, None] & there[None, :], 0.0).to(
                tl.float32
            )
        logits = tl.where(there[None, :], logits, float("-inf"))
        new = tl.maximum(highest, tl.max(logits, 1))
        weights, shrink = tl.exp2(logits - new[:, None]), tl.exp2(highest - new)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(v.dtype.element_ty), v_tile, mixed * shrink[:, None])
        highest = new
    opened = sigmoid(tl.load(gate + place * at_gate + within_row, asked, 0.0).to(tl.float32))
    result = opened * (mixed / total[:, None])
    tl.store(out + place * (H * C) + within_row, result.to(out.dtype.element_ty), asked)


LEAST_QUERIES = 384
"""Of a call that is worth it: its descriptors take the CPU as long as some hundred queries take the GPU."""

LONG = ((2048, 4), (1024, 8))
"""(least keys, least heads) with which a product with the values is best left to go on: measured values, as data."""


def _why_not(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> str | None:
    given = [x for x in (q, k, v, gate, bias) if x is not None]
    if not q.is_cuda or tiles.gpu(q.device)[0] != 90:
        return "it needs a GPU of compute capability 9.0"
    if any(x.device != q.device for x in (mask, *given)):
        return "the tensors are on different devices"
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return "it has no backward"
    if any(x.dtype != torch.bfloat16 for x in given):
        return "it has bfloat16 alone"
    if any(mask.stride()):
        return "it hides no keys"
    if q.dim() != 4:
        return "it takes no batch axes"
    if q.shape[1] < LEAST_QUERIES:
        return f"under {LEAST_QUERIES} queries others are as fast"
    if q.shape[-1] not in (8, 16, 32):
        return f"heads have {q.shape[-1]} channels, not 8, 16 or 32"
    for x in (q, k, v, gate):
        position = x.stride(1)
        if x.stride()[1:] != (position, x.shape[-1], 1) or (
            len(x) > 1 and x.stride(0) != position * x.shape[1]
        ):
            return "positions are not evenly apart, or heads not side by side"
        if position % 8:
            return "positions are not a multiple of 16 bytes apart"
    return None


@gated_attention.backend("hopper", why_not=_why_not)
def gated_attention_hopper(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    behind: bool = False,
) -> Tensor:
    """One kernel, and one that looks whether anything is to be done again. What does not begin at a multiple of 16
    bytes is copied before, and a bias whose rows do not.

    behind: the product with the values goes on until the weights of the next keys are made
    """
    q, k, v, gate = (x.clone() if x.data_ptr() % 16 else x for x in (q, k, v, gate))
    rows, queries, heads, channels = q.shape
    keys, width = k.shape[1], max(channels, 16)
    out = q.new_empty(rows, queries, heads * channels)
    if not out.numel() or not keys:
        return out.zero_()
    if bias is not None:
        bias = _evenly(bias)
    count = triton.cdiv(rows, ROWS.value) * heads * triton.cdiv(queries, QUERIES.value * PARTS.value)
    wrong = torch.empty(count * ROWS.value * PARTS.value, dtype=torch.int32, device=q.device)
    asked, others = ((n, width) for n in (QUERIES.value, KEYS.value))
    k_from = _described(k, others)
    bias_from = k_from
    if bias is not None:
        flat = torch.as_strided(bias, (heads * queries, keys), (bias.stride(1), 1))
        bias_from = _descriptor(flat, (QUERIES.value, KEYS.value))
    _, multiprocessors = tiles.gpu(q.device)
    _kernel[(min(count, multiprocessors),)](
        _described(q, asked),
        k_from,
        _described(v, others),
        _described(gate, asked),
        bias_from,
        out,
        wrong,
        rows,
        queries,
        keys,
        count,
        HEADS=heads,
        C=channels,
        WIDTH=width,
        BIASED=bias is not None,
        BEHIND=behind,
        num_warps=4,
    )
    _again[(2 * multiprocessors,)](
        q,
        k,
        v,
        gate,
        bias,
        wrong,
        out,
        rows,
        queries,
        keys,
        *(x.stride(1) for x in (q, k, v, gate)),
        count,
        *((0, 0) if bias is None else bias.stride()[:2]),
        H=heads,
        C=channels,
        WIDTH=width,
        BIASED=bias is not None,
        MANY=32,
        num_warps=4,
    )
    return out


def _long_why_not(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> str | None:
    if (reason := _why_not(q, k, v, gate, mask, bias)) is not None:
        return reason
    if not any(k.shape[1] >= keys and k.shape[2] >= heads for keys, heads in LONG):
        return "rows are so short that products are better waited for"
    return None


@gated_attention.backend("hopper_long", why_not=_long_why_not)
def gated_attention_hopper_long(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The same for long rows, in another order. A backend of its own, so that it is checked as it is compiled."""
    return gated_attention_hopper(q, k, v, gate, mask, bias, behind=True)


def _described(x: Tensor, block: tuple[int, int]) -> Any:
    """[rows, positions, heads, channels] as [all positions, heads x channels]."""
    flat = torch.as_strided(x, (x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]), (x.stride(1), 1))
    return _descriptor(flat, block)


def _descriptor(x: Tensor, block: tuple[int, int]) -> Any:
    layout = gl.NVMMASharedLayout(swizzle_byte_width=min(2 * block[1], 128), element_bitwidth=16, rank=2)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block), layout)


def _evenly(bias: Tensor) -> Tensor:
    """The bias with rows that the copy engine takes: a multiple of 16 bytes apart, all heads' one after the other."""
    heads, queries, keys = bias.shape
    if (
        bias.stride(2) == 1
        and bias.stride(1) % 8 == 0
        and bias.stride(0) == queries * bias.stride(1)
        and bias.data_ptr() % 16 == 0
    ):
        return bias
    pitch = triton.cdiv(keys, 8) * 8
    return bias.new_empty(heads, queries, pitch)[..., :keys].copy_(bias)
