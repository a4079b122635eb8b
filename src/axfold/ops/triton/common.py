"""What the kernels on representations [rows, positions, channels] share."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from axfold.ops.triton import tiles

EPSILON = tl.constexpr(1e-5)  # of every LayerNorm in AlphaFold
LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED: bool = triton.knobs.runtime.interpret  # on the CPU, to test without a GPU
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def place(tile, blocks, BLOCK: tl.constexpr):
    """(row, positions in it) of a tile; a row has `blocks` of them. The row has 64 bits, for offsets."""
    row = tile // blocks
    return tl.cast(row, tl.int64), (tile - row * blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def normalize(x, weight, bias, CHANNELS: tl.constexpr, AXIS: tl.constexpr):
    """LayerNorm over the whole of an axis, all in float32."""
    x = standardize(x, CHANNELS, AXIS)
    return x * tl.expand_dims(weight, 1 - AXIS) + tl.expand_dims(bias, 1 - AXIS)


@triton.jit
def standardize(x, CHANNELS: tl.constexpr, AXIS: tl.constexpr):
    """LayerNorm without weight and bias: mean 0 and variance 1."""
    centered = x - tl.expand_dims(tl.sum(x, AXIS) / CHANNELS, AXIS)
    variance = tl.sum(centered * centered, AXIS) / CHANNELS
    return centered * tl.expand_dims(tl.rsqrt(variance + EPSILON), AXIS)


@triton.jit
def after_norm(layer, bias, norm_weight, norm_bias):
    """The layer [out, in] and bias that make of standardized numbers what these make of normalised ones.

    A program that keeps its weights saves a product and a sum an element, and the registers of both.
    """
    wide = layer.to(tl.float32)
    bias = bias.to(tl.float32) + tl.sum(wide * norm_bias[None, :], 1)
    return (wide * norm_weight[None, :]).to(layer.dtype), bias


@triton.jit
def sigmoid(x, shift=0.0):
    """1 / (1 + exp(-x - shift)) in float32, in four instructions: Triton's own division and exponential take twelve.

    `shift` is the bias of the product x: added here it costs nothing, and no registers are filled with it beforehand.
    """
    if _INTERPRETED:
        return tl.sigmoid(x + shift)
    return tl.inline_asm_elementwise(
        """{
        .reg .f32 t;
        ex2.approx.ftz.f32 t, $1;
        add.ftz.f32 t, t, 0f3F800000;
        rcp.approx.ftz.f32 $0, t;
        }""",
        "=f,f",
        [x * -LOG2_E + shift * -LOG2_E],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


def extents(x: Tensor) -> tuple[int, ...]:
    """Members of the batch, rows, positions and channels of x; without a batch axis there is one."""
    return tuple(x.shape) if x.dim() == 4 else (1, *x.shape)


def strides(x: Tensor) -> tuple[int, ...]:
    """Of members, rows and positions, and of what axes follow but the last.

    Kernels take the members of a batch along the second axis of their grid.
    """
    return x.stride()[:-1] if x.dim() == 4 else (0, *x.stride()[:-1])


def strides_of_mask(mask: Tensor) -> tuple[int, ...]:
    """Of members, rows and positions of a mask, which has no channels."""
    return mask.stride() if mask.dim() == 3 else (0, *mask.stride())


def strides_of_keep(keep: Tensor | None) -> tuple[int, ...]:
    """Of members, rows, positions and channels of what dropout multiplies with, expanded."""
    if keep is None:
        return 0, 0, 0, 0
    return keep.stride() if keep.dim() == 4 else (0, *keep.stride())


def by_row(mask: Tensor) -> Tensor:
    """The mask [rows, n] of all members of a batch; one that hides nothing stays a single number."""
    if mask.dim() == 2:
        return mask
    rows = mask.shape[0] * mask.shape[1]
    return mask.flatten(0, 1) if any(mask.stride()) else mask[0, 0].expand(rows, -1)


def recorded(*tensors: Tensor | None) -> bool:
    """Whether a gradient of any of them is recorded."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def why_not(x: Tensor, *parameters: Tensor | None, channels: tuple[int, ...]) -> str | None:
    """Why the kernels can't take x [*b, i, n, c] with these parameters; `channels` are the sizes of the layers."""
    given = [p for p in parameters if p is not None]
    if not (x.is_cuda or INTERPRETED):
        return "it needs a CUDA device"
    if tiles.gpu(x.device)[0] < 80:
        return "Triton uses no tensor cores of GPUs before compute capability 8.0"
    if recorded(x, *given) and x.dtype == torch.float32:
        return "it has no backward in float32"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {x.dtype}"
    if any(p.dtype != x.dtype or p.device != x.device for p in given):
        return "parameters have another dtype or device than the representation"
    if x.dim() == 4 and x.dtype == torch.float32:
        return "it takes no batch axes in float32"
    if x.dim() not in (3, 4):
        return "it takes one batch axis at most"
    if x.stride(-1) != 1 or not all(p.is_contiguous() for p in given):
        return "channels are not contiguous"
    if any(c < 16 or c > 256 or c & (c - 1) for c in channels):
        return f"channels are not powers of two from 16 to 256: {', '.join(map(str, channels))}"
    return None
