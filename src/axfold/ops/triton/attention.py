"""Gated attention that never holds the logits: FlashAttention's scheme, with a bias that all rows share."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.attention import gated_attention
from axfold.ops.triton import tf32, tiles
from axfold.ops.triton.common import INTERPRETED, by_row, recorded

HIDDEN = tl.constexpr(-(2.0**30))
"""Logit of a masked key: `MASKED`'s, as a power of two, whose product with log2(e) is exact in float32."""
NO_KEYS = tl.constexpr(-1.0)
"""Logit of all keys of a row that has none, where the sum of its weights is kept."""
LOG2_E = tl.constexpr(1.4426950408889634)
LEAST, MOST = tl.constexpr(2.0**-96), tl.constexpr(2.0**96)
"""Of a sum of weights 2^logit as they are: beyond, some may have left the numbers that float32 has."""

FLOAT16 = tl.constexpr(65504.0)
"""Its largest number."""


@dataclass(frozen=True)
class Tile:
    """Queries and keys that a program takes at once, its warps, and the stages of its loads.

    There are at least 16 queries a warp, and 16 keys. So many `rows` go before others, with all their heads and
    queries: their keys and values stay in the cache while each tile of the bias serves all of them. `registers` is the
    most that a thread gets, so that several programs find room on a multiprocessor.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    rows: int = 32
    registers: int | None = None


# numbers -> (least compute capability, most channels of a head, tile); the first that fits is taken
TILES: dict[str, tuple[tuple[int, int, Tile], ...]] = {
    "half": (
        (100, 64, Tile(128, 64, 8, 3, registers=128)),
        (90, 16, Tile(128, 64, 4, 3)),
        (90, 32, Tile(64, 64, 4, 3, registers=128)),
        (90, 64, Tile(128, 64, 8, 3, registers=128)),
        (0, 64, Tile(64, 64, 4, 2)),
    ),
    "fp16": ((90, 64, Tile(128, 64, 8, 3)), (0, 64, Tile(64, 64, 4, 2))),
    "float32": (
        (90, 32, Tile(128, 64, 8, 2)),
        (90, 64, Tile(128, 32, 8, 2)),
        (0, 32, Tile(64, 32, 4, 2)),
        (0, 64, Tile(64, 16, 4, 2)),
    ),
}


@triton.jit
def _in_rows(x, QUERIES: tl.constexpr, KEYS: tl.constexpr, WARPS: tl.constexpr, BITS: tl.constexpr):
    """The tile [queries, keys] of numbers that `_tile_bias` has put in the order in which threads hold logits."""
    if BITS == 32:
        x = tl.reshape(x, (QUERIES // (16 * WARPS), KEYS // 16, 2, WARPS, 8, 4, 2, 2))
        x = tl.permute(x, (0, 3, 6, 4, 1, 2, 5, 7))
    else:
        x = tl.reshape(x, (QUERIES // (16 * WARPS), KEYS // 16, WARPS, 8, 4, 2, 2, 2))
        x = tl.permute(x, (0, 2, 6, 3, 1, 5, 4, 7))
    return tl.reshape(x, (QUERIES, KEYS))


@triton.jit(do_not_specialize=["queries", "keys", "by_head", "by_query", "by_key"])
def _tile_bias(
    bias,
    tiled,
    queries,
    keys,
    by_head,
    by_query,
    by_key,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """Bias [heads, queries, keys] as tiles, one after the other, with the keys that are missing in the last hidden.

    In a tile stand first the numbers that the first thread of a product on tensor cores holds, 16 bytes of each
    thread in turn: so a thread's share of the bias is read in few, whole instructions and moved to no other thread.
    The axes' bits, slowest first: query 16 x WARPS and up, key 16 and up, query 16 and up (the warp), query 4-1, key
    4-2 (the lane), key 8, query 8, key 1 (in 16-bit numbers; in 32-bit ones key 8 stands before the warp).
    """
    q_block, k_block, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query = q_block * QUERIES + tl.arange(0, QUERIES)
    key = k_block * KEYS + tl.arange(0, KEYS)
    at = query.to(tl.int64)[:, None] * by_query + key.to(tl.int64)[None, :] * by_key
    inside = (query < queries)[:, None] & (key < keys)[None, :]
    x = tl.load(bias + head.to(tl.int64) * by_head + at, inside, 0.0).to(tl.float32)
    x = tl.where((key < keys)[None, :], x, float("-inf")).to(tiled.dtype.element_ty)
    x = tl.reshape(x, (QUERIES // (16 * WARPS), WARPS, 2, 8, KEYS // 16, 2, 4, 2))
    if tiled.dtype.element_ty == tl.float32:
        x = tl.permute(x, (0, 4, 5, 1, 3, 6, 2, 7))
    else:
        x = tl.permute(x, (0, 4, 1, 3, 6, 5, 2, 7))
    tile = (head.to(tl.int64) * tl.num_programs(0) + q_block) * tl.num_programs(1) + k_block
    place = tl.arange(0, QUERIES * KEYS)
    tl.store(tiled + tile * (QUERIES * KEYS) + place, tl.reshape(x, (QUERIES * KEYS,)))


@triton.jit
def _over_keys(
    q_tile,
    k_from,
    v_from,
    bias_from,
    limit_from,
    keys,
    k_step,
    v_step,
    inside,
    RUNNING: tl.constexpr,
    BIASED: tl.constexpr,
    LIMITED: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
):
    """(sum of the weights, weights times v, the largest logit) over all keys, with weights 2^logits; where a maximum
    is RUNNING along in units of the largest of them, else it is not looked for."""
    key = tl.arange(0, KEYS)
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    k_blocks = tl.cdiv(keys, KEYS)
    tl.assume(k_blocks > 0)  # or the compiler lets a product wait for the one before
    for block in tl.range(0, k_blocks, num_stages=STAGES):
        present = (block * KEYS + key < keys)[:, None] & inside
        k_tile, v_tile = tl.load(k_from, present, 0.0), tl.load(v_from, present, 0.0)
        logits = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        if BIASED:
            x = tl.load(bias_from)
            if x.dtype == tl.int32:  # two bfloat16
                x = tl.join(x << 16, x & -65536).to(tl.float32, bitcast=True)
            logits += _in_rows(x, QUERIES, KEYS, WARPS, BITS).to(tl.float32) * LOG2_E
        if LIMITED:
            logits = tl.minimum(logits, tl.load(limit_from)[None, :])
        if RUNNING:
            new = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp2(logits - new[:, None])
            shrink = tl.exp2(highest - new)
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None]
            highest = new
        else:
            weights = tl.exp2(logits)
            total += tl.sum(weights, 1)
        mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed, input_precision=PRECISION)
        k_from += k_step
        v_from += v_step
        limit_from += KEYS
        bias_from += SIZE
    return total, mixed, highest


@triton.jit
def row_and_tile(rows, tiles, GROUP: tl.constexpr):
    """Of this program, where each row has so many tiles: GROUP rows take the same tile one after the other."""
    program = tl.program_id(0)
    first = program // (GROUP * tiles) * GROUP
    within, members = program - first * tiles, tl.minimum(rows - first, GROUP)
    return (first + within % members).to(tl.int64), within // members


@triton.jit(
    do_not_specialize=[
        *("rows", "queries", "keys", "q_row", "q_query", "q_head", "k_row", "k_key", "k_head"),
        *("v_row", "v_key", "v_head", "gate_row", "gate_query", "gate_head", "limit_row", "each"),
    ]
)
def _attend(
    q,
    k,
    v,
    gate,
    bias,
    limits,
    scales,
    out,
    logsum,
    rows,
    queries,
    keys,
    q_row,
    q_query,
    q_head,
    k_row,
    k_key,
    k_head,
    v_row,
    v_key,
    v_head,
    gate_row,
    gate_query,
    gate_head,
    limit_row,
    each,
    ALIGNED: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BIASED: tl.constexpr,
    LIMITED: tl.constexpr,
    KEPT: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    RUNNING: tl.constexpr,
    BITS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """out = sigmoid(gate) * softmax(min(C^-1/2 q kT + bias, limits)) v for QUERIES queries of one row and head.

    A softmax is usually taken relative to its largest logit, so that no exponential leaves the numbers there are;
    to know that one, while the tiles go by, costs a fifth of the time. The exponentials of all but extreme logits are
    numbers of float32 as they are. So they are taken so, and the sum tells whether it was right; else the tile is done
    again with a maximum RUNNING along, from the beginning in float16, which has few numbers.

    Strides are in units of ALIGNED numbers, which tells the compiler how wide the loads may be. Programs that follow
    one another take the same tiles of the bias, for one of GROUP rows after the other.

    The numbers of the bias have so many BITS. SCALED: k and v are float16, and stand for so many times their numbers as
    `scales` [k or v, rows, heads] says.

    Where it is KEPT for a backward, `logsum` [rows, H, queries] is the logarithm of the sum of the weights, both to
    the base 2; of a row without keys as if its logits were -1 (`NO_KEYS`), for beside HIDDEN it would be rounded off.
    """
    q_blocks, k_blocks = tl.cdiv(queries, QUERIES), tl.cdiv(keys, KEYS)
    row, tile = row_and_tile(rows, H * q_blocks, GROUP)  # of queries, for one head after the other
    head = tile // q_blocks
    query = (tile % q_blocks) * QUERIES + tl.arange(0, QUERIES)
    key = tl.arange(0, KEYS)
    channel = tl.arange(0, WIDTH)[None, :]
    asked = (query < queries)[:, None] & (channel < C)

    q_at = (row * q_row + head * q_head + query.to(tl.int64) * q_query) * ALIGNED
    k_at = (row * k_row + head * k_head + key.to(tl.int64) * k_key) * ALIGNED
    v_at = (row * v_row + head * v_head + key.to(tl.int64) * v_key) * ALIGNED
    gate_at = (row * gate_row + head * gate_head + query.to(tl.int64) * gate_query) * ALIGNED
    k_from, v_from = k + k_at[:, None] + channel, v + v_at[:, None] + channel
    k_step, v_step = k_key.to(tl.int64) * (KEYS * ALIGNED), v_key.to(tl.int64) * (KEYS * ALIGNED)
    limit_from = limits + row * limit_row + key
    SIZE: tl.constexpr = QUERIES * KEYS * BITS // bias.dtype.element_ty.primitive_bitwidth
    own = (row.to(tl.int32) // each).to(tl.int64) * (
        H * q_blocks
    ) + tile  # the bias is that of the row's protein
    bias_from = bias + own * k_blocks * SIZE + tl.arange(0, SIZE)

    q_tile = tl.load(q + q_at[:, None] + channel, asked, 0.0).to(tl.float32)
    q_tile *= C**-0.5 * LOG2_E
    if SCALED:
        q_tile *= tl.load(scales + row * H + head)
        q_tile = tl.minimum(tl.maximum(q_tile, -FLOAT16), FLOAT16)  # TF32 is off by more in such logits
    q_tile = q_tile.to(k.dtype.element_ty)
    total, mixed, highest = _over_keys(
        q_tile, k_from, v_from, bias_from, limit_from, keys, k_step, v_step, channel < C, RUNNING,
        BIASED, LIMITED, QUERIES, KEYS, WIDTH, WARPS, STAGES, PRECISION, SIZE, BITS,
    )  # fmt: skip
    if not RUNNING:
        fits = (total > LEAST) & (total < MOST)
        if tl.min(fits.to(tl.int32), 0) == 0:
            total, mixed, highest = _over_keys(
                q_tile, k_from, v_from, bias_from, limit_from, keys, k_step, v_step, channel < C, True,
                BIASED, LIMITED, QUERIES, KEYS, WIDTH, WARPS, STAGES, PRECISION, SIZE, BITS,
            )  # fmt: skip

    if KEPT:
        largest = highest
        if not RUNNING:  # unless the tile was done again, the sum is as it is
            largest = tl.where(highest == float("-inf"), 0.0, highest)
        sums = tl.where(largest <= HIDDEN, NO_KEYS, largest) + tl.log2(total)
        tl.store(logsum + (row * H + head) * queries + query, sums, query < queries)
    open_gate = tl.sigmoid(tl.load(gate + gate_at[:, None] + channel, asked, 0.0).to(tl.float32))
    if SCALED:
        open_gate *= tl.load(scales + (rows + row) * H + head)
    result = (open_gate * (mixed / total[:, None])).to(out.dtype.element_ty)
    tl.store(out + (row * queries + query)[:, None] * (H * C) + head * C + channel, result, asked)


def _why_not(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, mask: Tensor, bias: Tensor | None = None
) -> str | None:
    given = [x for x in (q, k, v, gate, bias) if x is not None]
    if not (q.is_cuda or INTERPRETED):
        return "it needs a CUDA device"
    if any(x.device != q.device for x in (mask, *given)):
        return "the tensors are on different devices"
    if q.is_cuda and tiles.gpu(q.device)[0] < 80:
        return "it needs a GPU of compute capability 8.0 or newer"
    if recorded(*given) and q.dtype == torch.float32:
        return "it has no backward in float32"
    if recorded(*given) and (q.shape[-2] & (q.shape[-2] - 1) or q.shape[-2] * q.shape[-1] > 256):
        return "its backward takes a power of two of heads, with at most 256 channels in all"
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {q.dtype}"
    if INTERPRETED and q.dtype == torch.bfloat16:
        return "Triton's interpreter can't multiply bfloat16"
    if any(x.dtype != q.dtype for x in given):
        return "the tensors have different dtypes"
    if q.dim() != 4 and not (
        q.dim() == 5 and all(x.stride(0) == x.shape[1] * x.stride(1) for x in (q, k, v, gate))
    ):
        return "it takes one batch axis at most, that goes on where the rows end"
    if q.shape[-1] not in (8, 16, 32, 64):
        return f"heads have {q.shape[-1]} channels, not 8, 16, 32 or 64"
    if any(x.stride(-1) != 1 for x in (q, k, v, gate)):
        return "channels are not contiguous"
    return None


@gated_attention.backend("triton", why_not=_why_not)
def gated_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """One kernel, and before it one that lays out the bias (a copy of it is the only memory used beside the result).

    In float32 with products as short as TF32's also one that takes keys and values to float16: half of their memory.
    """
    if q.dim() == 5:
        members = [x.flatten(0, 1) for x in (q, k, v, gate)]
        return gated_attention_triton(*members, by_row(mask), bias, tile).unflatten(0, q.shape[:2])
    if recorded(q, k, v, gate, bias):
        from axfold.ops.triton import attention_backward  # which needs what is here

        return attention_backward.gated_attention(q, k, v, gate, mask, bias, tile)
    return attend(q, k, v, gate, mask, bias, tile)


def laid_out(bias: Tensor, queries: int, keys: int, tile: Tile) -> Tensor:
    """The bias [*b, heads, queries, keys] as `_tile_bias` puts it; two numbers of bfloat16 in one."""
    bias = bias.flatten(0, -3)
    blocks = triton.cdiv(queries, tile.queries), triton.cdiv(keys, tile.keys)
    tiled = bias.new_empty(len(bias) * blocks[0] * blocks[1], tile.queries * tile.keys)
    _tile_bias[(*blocks, len(bias))](
        bias,
        tiled,
        queries,
        keys,
        *bias.stride(),
        QUERIES=tile.queries,
        KEYS=tile.keys,
        WARPS=tile.warps,
    )
    return tiled.view(torch.int32) if bias.dtype == torch.bfloat16 else tiled


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    tile: Tile | None = None,
    logsum: Tensor | None = None,
) -> Tensor:
    """The attention; `logsum` [rows, heads, queries] in float32 is filled for a backward.

    A bias [b, heads, queries, keys] is that of one protein after the other, which have as many rows each.
    """
    rows, queries, heads, channels = q.shape
    keys = k.shape[1]
    out = q.new_empty(rows, queries, heads * channels)
    if not out.numel() or not keys:
        return out.zero_()
    tile = tile or tile_for(q)
    scales = None
    if tiles.in_float16(q.dtype):
        (k, v), scales = tf32.halves(k, v)
    blocks = triton.cdiv(queries, tile.queries), triton.cdiv(keys, tile.keys)
    tiled = None if bias is None else laid_out(bias, queries, keys, tile)
    limits = None
    masked = any(mask.stride())
    if masked or (tiled is None and keys % tile.keys):  # the tiled bias hides the keys that are missing
        limits = mask.new_full(
            (rows if masked else 1, blocks[1] * tile.keys), -torch.inf, dtype=torch.float32
        )
        limits[:, :keys] = torch.where(mask == 0, HIDDEN.value, torch.inf) if masked else torch.inf
        limits = limits.expand(rows, -1)
    vector = 16 // k.element_size()
    strides = [stride for x in (q, k, v, gate) for stride in (x.stride(0), x.stride(1), x.stride(2))]
    aligned = vector if all(stride % vector == 0 for stride in strides) else 1
    _attend[(rows * heads * blocks[0],)](
        q,
        k,
        v,
        gate,
        q if tiled is None else tiled,
        q if limits is None else limits,
        q if scales is None else scales,
        out,
        logsum,
        rows,
        queries,
        keys,
        *(stride // aligned for stride in strides),
        0 if limits is None else limits.stride(0),
        rows_of_each(rows, bias),
        ALIGNED=aligned,
        H=heads,
        C=channels,
        WIDTH=max(channels, 16),
        BIASED=bias is not None,
        LIMITED=limits is not None,
        KEPT=logsum is not None,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        WARPS=tile.warps,
        STAGES=tile.stages,
        PRECISION=tiles.products(k.dtype),
        GROUP=tile.rows,
        RUNNING=k.dtype == torch.float16,
        BITS=8 * q.element_size(),
        SCALED=scales is not None,
        maxnreg=tile.registers,
        num_warps=tile.warps,
    )
    return out


def rows_of_each(rows: int, bias: Tensor | None) -> int:
    """How many rows have one bias."""
    return rows if bias is None or bias.dim() == 3 else rows // len(bias)


def tile_for(q: Tensor) -> Tile:
    """The tile for queries [..., c]."""
    capability, _ = tiles.gpu(q.device)
    table = TILES[tiles.numbers(q.dtype)]
    return next(tile for least, most, tile in table if capability >= least and q.shape[-1] <= most)
