"""The transition: the hidden layer, four times as wide as the representation, stays on the chip."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.transition import transition
from axfold.ops.triton import float32, tiles
from axfold.ops.triton.common import normalize, place, why_not
from axfold.ops.triton.tiles import Tile


@triton.jit(do_not_specialize=["positions"])
def _kernel(
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
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = x + keep * (output W relu(expand W norm(x))), the hidden layer a chunk at a time; out may be x."""
    channel = tl.arange(0, C)
    chunk = tl.arange(0, CHUNK)
    row, position = place(tl.program_id(0), tl.cdiv(positions, BLOCK), BLOCK)
    exists = position < positions
    far = position.to(tl.int64)[:, None]
    source = x + row * x_row + far * x_position + channel[None, :]
    scale = tl.load(norm_weight + channel).to(tl.float32)
    shift = tl.load(norm_bias + channel).to(tl.float32)
    y = tl.load(source, exists[:, None], 0.0).to(tl.float32)
    y = normalize(y, scale, shift, C, 1).to(x.dtype.element_ty)
    expand_weight += chunk[None, :] * C + channel[:, None]
    output_weight += channel[None, :] * HIDDEN + chunk[:, None]
    update = tl.zeros((BLOCK, C), tl.float32)
    for start in tl.range(0, HIDDEN, CHUNK, num_stages=STAGES):
        hidden = tl.dot(y, tl.load(expand_weight + start * C), input_precision=PRECISION)
        hidden = tl.maximum(hidden + tl.load(expand_bias + start + chunk)[None, :], 0.0)
        layer = tl.load(output_weight + start)
        update = tl.dot(hidden.to(x.dtype.element_ty), layer, update, input_precision=PRECISION)
    update += tl.load(output_bias + channel)[None, :]
    if DROPOUT:
        kept = keep + row * keep_row + far * keep_position + channel[None, :] * keep_channel
        update *= tl.load(kept, exists[:, None], 0.0).to(tl.float32)
    update += tl.load(source, exists[:, None], 0.0)
    target = out + row * out_row + far * out_position + channel[None, :]
    tl.store(target, update.to(out.dtype.element_ty), exists[:, None])


def _why_not(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    keep: Tensor | None = None,
) -> str | None:
    if x.dim() > 3 and len(x):  # one member of a batch is as good as another
        return _why_not(x[0], norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias)
    if len(expand_weight) % 16:
        return "the hidden layer's width is no multiple of 16"
    layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
    return why_not(x, *layers, channels=x.shape[-1:])


@transition.backend("triton", why_not=_why_not)
def transition_triton(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    keep: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """One read and one write of x; a batch goes member by member."""
    layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
    if x.dim() > 3:
        each = [None] * len(x) if keep is None else list(keep.expand_as(x))
        new = [transition_triton(one, *layers, kept, tile) for one, kept in zip(x, each, strict=True)]
        return torch.stack(new) if torch.is_grad_enabled() else x
    rows, positions, c = x.shape
    hidden = len(expand_weight)
    out = torch.empty_like(x) if torch.is_grad_enabled() else x
    kept = None if keep is None else keep.expand_as(x)
    if x.dtype == torch.float32:
        layers = norm_weight, norm_bias, expand_weight, expand_bias, output_weight, output_bias
        return float32.transition(x, kept, *layers, out, tile)
    tile = tile or tiles.tile("transition", x)
    _kernel[(rows * triton.cdiv(positions, tile.positions),)](
        x,
        kept,
        norm_weight,
        norm_bias,
        expand_weight,
        expand_bias,
        output_weight,
        output_bias,
        out,
        positions,
        *x.stride()[:2],
        *((0, 0, 0) if kept is None else kept.stride()),
        *out.stride()[:2],
        DROPOUT=kept is not None,
        C=c,
        HIDDEN=hidden,
        BLOCK=tile.positions,
        CHUNK=min(tile.chunk, hidden & -hidden),
        STAGES=tile.stages,
        PRECISION=tiles.products(x.dtype),
        num_warps=tile.warps,
        maxnreg=tile.registers,
    )
    return out
