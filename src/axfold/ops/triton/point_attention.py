"""Invariant point attention with one read of the pair representation, which is normalised on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.point_attention import invariant_point_attention, scale_of_points
from axfold.ops.triton import tiles
from axfold.ops.triton.common import EPSILON, INTERPRETED
from axfold.ops.triton.tiles import Tile

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["queries", "keys"])
def _scores(
    q,
    k,
    weight,
    out,
    queries,
    keys,
    C: tl.constexpr,
    P: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """out = q k - weight |q_points - k_points|² of one head; q and k are [h, C + P, residues], points last.

    Differences and not products of coordinates: those of residues far from the origin would cancel.
    """
    head = tl.program_id(2).to(tl.int64)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    asked, known = query < queries, key < keys
    q += head * (C + P) * queries + query
    k += head * (C + P) * keys + key
    product = tl.zeros((QUERIES, KEYS), tl.float32)
    squared = tl.zeros((QUERIES, KEYS), tl.float32)
    for c in tl.range(C):  # not unrolled: all loads at once would not fit into registers
        x, y = tl.load(q + c * queries, asked, 0.0), tl.load(k + c * keys, known, 0.0)
        product += x[:, None] * y[None, :]
    for c in tl.range(C, C + P):
        x, y = tl.load(q + c * queries, asked, 0.0), tl.load(k + c * keys, known, 0.0)
        apart = x[:, None] - y[None, :]
        squared += apart * apart
    product -= tl.load(weight + head) * squared
    at = (head * queries + query[:, None]) * keys + key[None, :]
    tl.store(out + at, product, asked[:, None] & known[None, :])


@triton.jit
def _product(x, y, z, PRECISION: tl.constexpr):
    """z + x y with x's numbers exact: those of bfloat16 meet float32's 24 bits as three parts of y."""
    if x.dtype == tl.bfloat16:
        high = y.to(tl.bfloat16)
        rest = y - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(x, high, tl.dot(x, middle, tl.dot(x, low, z)))
    return tl.dot(x.to(tl.float32), y, z, input_precision=PRECISION)


@triton.jit(do_not_specialize=["queries", "keys", "z_row", "z_key"])
def _attend(
    logits,
    z,
    norm_weight,
    norm_bias,
    bias_weight,
    bias_bias,
    mask,
    masks,
    pairs,
    queries,
    keys,
    z_row,
    z_key,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One residue i: the bias is added to its logits [h, i, n], and their softmax written in their place;
    pairs[i] = the average of norm(z[i]) for each head.

    The mean and the scale of the LayerNorm are applied to the results of both products, whose operand is z itself.
    """
    row = tl.program_id(0).to(tl.int64)
    head, channel, key = tl.arange(0, HEADS), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    far = key.to(tl.int64)
    scale = tl.load(norm_weight + channel, channel < C, 0.0)
    shift = tl.load(norm_bias + channel, channel < C, 0.0)
    inside = (head < H)[None, :] & (channel < C)[:, None]
    layer = tl.load(bias_weight + head[None, :] * C + channel[:, None], inside, 0.0) * 3**-0.5
    constant = tl.sum(layer * shift[:, None], 0) + tl.load(bias_bias + head, head < H, 0.0) * 3**-0.5
    layer = layer * scale[:, None]
    own = tl.load(mask + row)

    highest = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    means = tl.zeros((HEADS,), tl.float32)
    mixed = tl.zeros((WIDTH, HEADS), tl.float32)
    z += row * z_row + far[:, None] * z_key + channel[None, :]
    start = logits + (head.to(tl.int64)[None, :] * queries + row) * keys + far[:, None]
    layer_sum = tl.sum(layer, 0)
    for block in tl.range(0, tl.cdiv(keys, KEYS), num_stages=STAGES):
        first = block * KEYS
        known = first + key < keys
        narrow = tl.load(z + tl.cast(first, tl.int64) * z_key, known[:, None] & (channel < C)[None, :], 0.0)
        x = narrow.to(tl.float32)
        mean = tl.sum(x, 1) / C
        apart = tl.where((channel < C)[None, :], x - mean[:, None], 0.0)
        deviation = tl.rsqrt(tl.sum(apart * apart, 1) / C + EPSILON)

        here = known[:, None] & (head < H)[None, :]
        bias = _product(narrow, layer, tl.zeros((KEYS, HEADS), tl.float32), PRECISION)
        bias = (bias - mean[:, None] * layer_sum[None, :]) * deviation[:, None] + constant[None, :]
        present = own * tl.load(masks + first + key, known, 0.0)
        score = tl.load(start + first, here, 0.0) + bias - 1e5 * (1 - present)[:, None]
        tl.store(start + first, score, here)
        score = tl.where(known[:, None], score, float("-inf"))
        new = tl.maximum(highest, tl.max(score, 0))
        weights = tl.exp2((score - new[None, :]) * LOG2_E)
        shrink = tl.exp2((highest - new) * LOG2_E)
        highest = new
        total = total * shrink + tl.sum(weights, 0)
        weights *= deviation[:, None]
        means = means * shrink + tl.sum(weights * mean[:, None], 0)
        mixed = _product(tl.trans(narrow), weights, mixed * shrink[None, :], PRECISION)

    mixed = (mixed - means[None, :]) / total[None, :] * scale[:, None] + shift[:, None]
    tl.store(pairs + (row * H + head[None, :]) * C + channel[:, None], mixed, inside)
    tl.debug_barrier()  # what other threads have written is read now
    for block in tl.range(0, tl.cdiv(keys, KEYS)):
        first = block * KEYS
        here = (first + key < keys)[:, None] & (head < H)[None, :]
        score = tl.load(start + first, here, 0.0)
        tl.store(start + first, tl.exp2((score - highest[None, :]) * LOG2_E) / total[None, :], here)


def _why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_points: Tensor,
    k_points: Tensor,
    v_points: Tensor,
    point_weights: Tensor,
    z: Tensor,
    *others: Tensor,
) -> str | None:
    given = [q, k, v, q_points, k_points, v_points, point_weights, *others]
    if not (q.is_cuda or INTERPRETED):
        return "it needs a CUDA device"
    if any(x.device != q.device for x in (z, *given)):
        return "the tensors are on different devices"
    if tiles.gpu(q.device)[0] < 80:
        return "it needs a GPU of compute capability 8.0 or newer"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (z, *given)):
        return "it has no backward"
    if any(x.dtype != torch.float32 for x in given):
        return "it works in float32"
    if z.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes no pair representation of {z.dtype}"
    if INTERPRETED and z.dtype == torch.bfloat16:
        return "Triton's interpreter can't multiply bfloat16"
    if z.dim() != 3:
        return "it takes no batch axes"
    if z.stride(-1) != 1:
        return "channels are not contiguous"
    if z.shape[-1] > 256 or q.shape[1] > 64:
        return "it takes at most 256 channels and 64 heads"
    return None


@invariant_point_attention.backend("triton", why_not=_why_not)
def invariant_point_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_points: Tensor,
    k_points: Tensor,
    v_points: Tensor,
    point_weights: Tensor,
    z: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    bias_weight: Tensor,
    bias_bias: Tensor,
    mask: Tensor,
    masks: Tensor,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits are held, and become the weights in their place; nothing else of their size is."""
    queries, keys, c_z = z.shape
    heads, c = q.shape[1:]
    dims = 3 * q_points.shape[-2]
    weight = 0.5 * scale_of_points(point_weights, q_points.shape[-2])
    # [h, c + 3 p, residues]: a program reads a channel of its residues at once
    by_channel = [
        torch.cat([x, points.flatten(-2)], dim=-1).movedim(0, -1).contiguous()
        for x, points in ((q * (3 * c) ** -0.5, q_points), (k, k_points))
    ]
    logits = q.new_empty(heads, queries, keys)
    _scores[(triton.cdiv(keys, 64), triton.cdiv(queries, 64), heads)](
        *by_channel, weight, logits, queries, keys, C=c, P=dims, QUERIES=64, KEYS=64, num_warps=4
    )
    pairs = q.new_empty(queries, heads, c_z)
    # numbers of float16 are multiplied as float32's
    like = z.new_empty(0, c_z, dtype=torch.float32) if z.dtype == torch.float16 else z
    tile = tile or tiles.tile("invariant_point_attention", like)
    _attend[(queries,)](
        logits,
        z,
        norm_weight,
        norm_bias,
        bias_weight,
        bias_bias,
        mask.contiguous(),
        masks.contiguous(),
        pairs,
        queries,
        keys,
        *z.stride()[:2],
        H=heads,
        HEADS=max(16, triton.next_power_of_2(heads)),
        C=c_z,
        WIDTH=max(16, triton.next_power_of_2(c_z)),
        KEYS=tile.positions,
        STAGES=tile.stages,
        PRECISION="ieee",  # the parts of products on tensor cores don't fit into registers, and it is soon done
        num_warps=tile.warps,
    )
    both = torch.cat([v, v_points.flatten(-2)], dim=-1).transpose(0, 1)
    mixed = torch.matmul(logits, both).transpose(0, 1)
    values, points = mixed.split([c, mixed.shape[-1] - c], dim=-1)
    return values, points.unflatten(-1, (-1, 3)), pairs
