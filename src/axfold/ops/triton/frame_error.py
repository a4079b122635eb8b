"""Errors of points seen from frames, and of distances, which never exist in memory: each program sums up its own."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops.frame_error import EPSILON, distance_error, frame_error
from axfold.ops.triton.common import INTERPRETED, recorded

_EPSILON = tl.constexpr(EPSILON)
FRAMES, POINTS = 2, 128
"""That a program has at once, of the frames that are its own, or of the points: a few numbers a thread."""


@triton.jit
def _frame(rotation, translation, at, exists):
    """Nine numbers of the rotation and three of the translation of some frames."""
    r, t = rotation + at * 9, translation + at * 3
    return (
        tl.load(r, exists, 0.0), tl.load(r + 1, exists, 0.0), tl.load(r + 2, exists, 0.0),
        tl.load(r + 3, exists, 0.0), tl.load(r + 4, exists, 0.0), tl.load(r + 5, exists, 0.0),
        tl.load(r + 6, exists, 0.0), tl.load(r + 7, exists, 0.0), tl.load(r + 8, exists, 0.0),
        tl.load(t, exists, 0.0), tl.load(t + 1, exists, 0.0), tl.load(t + 2, exists, 0.0),
    )  # fmt: skip


@triton.jit
def _point(points, at, exists):
    p = points + at * 3
    return tl.load(p, exists, 0.0), tl.load(p + 1, exists, 0.0), tl.load(p + 2, exists, 0.0)


@triton.jit
def _seen(frame, point):
    """Of points from frames: the differences from the origin, and the same in the frame's axes."""
    r00, r01, r02, r10, r11, r12, r20, r21, r22, t0, t1, t2 = frame
    x, y, z = point
    x, y, z = x - t0, y - t1, z - t2
    return x, y, z, x * r00 + y * r10 + z * r20, x * r01 + y * r11 + z * r21, x * r02 + y * r12 + z * r22


@triton.jit
def _errors(frame, point, true_frame, true_point):
    """The differences from the origin, the error in the frame's axes, and its length."""
    x, y, z, a, b, c = _seen(frame, point)
    _, _, _, true_a, true_b, true_c = _seen(true_frame, true_point)
    a, b, c = a - true_a, b - true_b, c - true_c
    return x, y, z, a, b, c, tl.sqrt(a * a + b * b + c * c + _EPSILON)


@triton.jit(do_not_specialize=["frames", "points"])
def _sum(
    rotation,
    translation,
    position,
    true_rotation,
    true_translation,
    true_position,
    frames_mask,
    points_mask,
    out,
    frames,
    points,
    clamp,
    FRAMES: tl.constexpr,
    POINTS: tl.constexpr,
):
    """out[protein, block of frames] = the sum of their errors."""
    protein = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)[:, None]
    here = protein * frames + frame
    own = _frame(rotation, translation, here, frame < frames)
    true = _frame(true_rotation, true_translation, here, frame < frames)
    total = tl.zeros((FRAMES, POINTS), tl.float32)
    for start in tl.range(0, points, POINTS):
        point = start + tl.arange(0, POINTS)[None, :]
        at = protein * points + point
        found = _point(position, at, point < points)
        wanted = _point(true_position, at, point < points)
        _, _, _, _, _, _, distance = _errors(own, found, true, wanted)
        total += tl.minimum(distance, clamp) * tl.load(points_mask + at, point < points, 0.0)
    total *= tl.load(frames_mask + here, frame < frames, 0.0)
    tl.store(out + protein * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))


@triton.jit(do_not_specialize=["frames", "points"])
def _to_frames(
    rotation,
    translation,
    position,
    true_rotation,
    true_translation,
    true_position,
    frames_mask,
    points_mask,
    grad,
    to_rotation,
    to_translation,
    frames,
    points,
    clamp,
    FRAMES: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Gradients of rotations and translations; `grad` [protein] is that of the sums."""
    protein = tl.program_id(1).to(tl.int64)
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)[:, None]
    here = protein * frames + frame
    exists = frame < frames
    own = _frame(rotation, translation, here, exists)
    true = _frame(true_rotation, true_translation, here, exists)
    zero = tl.zeros((FRAMES, POINTS), tl.float32)
    g00, g01, g02, g10, g11, g12, g20, g21, g22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    ga, gb, gc = zero, zero, zero
    for start in tl.range(0, points, POINTS):
        point = start + tl.arange(0, POINTS)[None, :]
        at = protein * points + point
        found = _point(position, at, point < points)
        wanted = _point(true_position, at, point < points)
        x, y, z, a, b, c, distance = _errors(own, found, true, wanted)
        share = tl.where(distance <= clamp, tl.load(points_mask + at, point < points, 0.0) / distance, 0.0)
        a, b, c = a * share, b * share, c * share
        ga, gb, gc = ga + a, gb + b, gc + c
        g00, g01, g02 = g00 + x * a, g01 + x * b, g02 + x * c
        g10, g11, g12 = g10 + y * a, g11 + y * b, g12 + y * c
        g20, g21, g22 = g20 + z * a, g21 + z * b, g22 + z * c
    scale = tl.load(grad + protein) * tl.load(frames_mask + here, exists, 0.0)
    r00, r01, r02, r10, r11, r12, r20, r21, r22, _, _, _ = own
    a, b, c = tl.sum(ga, 1)[:, None] * scale, tl.sum(gb, 1)[:, None] * scale, tl.sum(gc, 1)[:, None] * scale
    t = to_translation + here * 3
    tl.store(t, -(r00 * a + r01 * b + r02 * c), exists)
    tl.store(t + 1, -(r10 * a + r11 * b + r12 * c), exists)
    tl.store(t + 2, -(r20 * a + r21 * b + r22 * c), exists)
    r = to_rotation + here * 9
    tl.store(r, tl.sum(g00, 1)[:, None] * scale, exists)
    tl.store(r + 1, tl.sum(g01, 1)[:, None] * scale, exists)
    tl.store(r + 2, tl.sum(g02, 1)[:, None] * scale, exists)
    tl.store(r + 3, tl.sum(g10, 1)[:, None] * scale, exists)
    tl.store(r + 4, tl.sum(g11, 1)[:, None] * scale, exists)
    tl.store(r + 5, tl.sum(g12, 1)[:, None] * scale, exists)
    tl.store(r + 6, tl.sum(g20, 1)[:, None] * scale, exists)
    tl.store(r + 7, tl.sum(g21, 1)[:, None] * scale, exists)
    tl.store(r + 8, tl.sum(g22, 1)[:, None] * scale, exists)


@triton.jit(do_not_specialize=["frames", "points"])
def _to_points(
    rotation,
    translation,
    position,
    true_rotation,
    true_translation,
    true_position,
    frames_mask,
    points_mask,
    grad,
    to_position,
    frames,
    points,
    clamp,
    POINTS: tl.constexpr,
):
    """Gradients of POINTS points."""
    protein = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    at = protein * points + point
    found = _point(position, at, point < points)
    wanted = _point(true_position, at, point < points)
    gx, gy, gz = (
        tl.zeros((POINTS,), tl.float32),
        tl.zeros((POINTS,), tl.float32),
        tl.zeros((POINTS,), tl.float32),
    )
    for frame in tl.range(0, frames):
        here = protein * frames + frame
        own = _frame(rotation, translation, here, True)
        true = _frame(true_rotation, true_translation, here, True)
        _, _, _, a, b, c, distance = _errors(own, found, true, wanted)
        share = tl.where(distance <= clamp, tl.load(frames_mask + here) / distance, 0.0)
        a, b, c = a * share, b * share, c * share
        r00, r01, r02, r10, r11, r12, r20, r21, r22, _, _, _ = own
        gx += r00 * a + r01 * b + r02 * c
        gy += r10 * a + r11 * b + r12 * c
        gz += r20 * a + r21 * b + r22 * c
    scale = tl.load(grad + protein) * tl.load(points_mask + at, point < points, 0.0)
    p = to_position + at * 3
    tl.store(p, gx * scale, point < points)
    tl.store(p + 1, gy * scale, point < points)
    tl.store(p + 2, gz * scale, point < points)


@triton.jit(do_not_specialize=["rows", "points"])
def _distance_errors(
    row_position,
    position,
    true_row_position,
    true_position,
    points_mask,
    out,
    rows,
    points,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """out[protein, row] = the sum over points of how wrong their distances are."""
    protein = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    here = protein * rows + row
    x, y, z = _point(row_position, here, row < rows)
    true_x, true_y, true_z = _point(true_row_position, here, row < rows)
    total = tl.zeros((ROWS, POINTS), tl.float32)
    for start in tl.range(0, points, POINTS):
        point = start + tl.arange(0, POINTS)[None, :]
        at = protein * points + point
        a, b, c = _point(position, at, point < points)
        true_a, true_b, true_c = _point(true_position, at, point < points)
        a, b, c = x - a, y - b, z - c
        true_a, true_b, true_c = true_x - true_a, true_y - true_b, true_z - true_c
        off = tl.sqrt(a * a + b * b + c * c + 1e-10)
        off -= tl.sqrt(true_a * true_a + true_b * true_b + true_c * true_c + 1e-10)
        total += tl.sqrt(off * off + 1e-10) * tl.load(points_mask + at, point < points, 0.0)
    tl.store(out + here, tl.sum(total, 1)[:, None], row < rows)


def _why_not(*args: Tensor | float) -> str | None:
    tensors = [x for x in args if isinstance(x, Tensor)]
    if not (tensors[0].is_cuda or INTERPRETED):
        return "it needs a CUDA device"
    if any(x.dtype != torch.float32 or x.device != tensors[0].device for x in tensors):
        return "it takes float32, on one device"
    if not all(x.numel() for x in tensors):
        return "there are no numbers"
    return None


def _why_not_frames(
    rotation: Tensor, translation: Tensor, points: Tensor, *others: Tensor | float
) -> str | None:
    if any(isinstance(x, Tensor) and x.requires_grad for x in others):
        return "what is true has no gradient here"
    return _why_not(rotation, translation, points, *others)


@frame_error.backend("triton", why_not=_why_not_frames)
def frame_error_triton(
    rotation: Tensor,
    translation: Tensor,
    points: Tensor,
    true_rotation: Tensor,
    true_translation: Tensor,
    true_points: Tensor,
    frames_mask: Tensor,
    points_mask: Tensor,
    clamp: float = 10.0,
) -> Tensor:
    """One kernel, and two for the gradients; nothing is kept but the arguments."""
    true = true_rotation, true_translation, true_points, frames_mask, points_mask
    return _FrameError.apply(rotation, translation, points, *true, clamp)


class _FrameError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *tensors, clamp = args
        given = [x.contiguous() for x in tensors]
        frames, points = given[1].shape[-2], given[2].shape[-2]
        blocks, proteins = triton.cdiv(frames, FRAMES), given[2].shape[:-2].numel()
        out = given[0].new_empty(proteins, blocks)
        _sum[(blocks, proteins)](
            *given, out, frames, points, clamp, FRAMES=FRAMES, POINTS=POINTS, num_warps=4
        )
        ctx.save_for_backward(*given)
        ctx.clamp = clamp
        return out.sum(-1).view(given[2].shape[:-2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        outs = [torch.empty_like(x) for x in given[:3]]
        frames, points = given[1].shape[-2], given[2].shape[-2]
        proteins = given[2].shape[:-2].numel()
        numbers = frames, points, ctx.clamp
        grad = grad.contiguous()
        _to_frames[(triton.cdiv(frames, FRAMES), proteins)](
            *given, grad, *outs[:2], *numbers, FRAMES=FRAMES, POINTS=POINTS, num_warps=4
        )
        _to_points[(triton.cdiv(points, POINTS), proteins)](
            *given, grad, outs[2], *numbers, POINTS=POINTS, num_warps=4
        )
        return *outs, *[None] * 6


def _why_not_distances(*args: Tensor) -> str | None:
    return "it has no gradient" if recorded(*args) else _why_not(*args)


@distance_error.backend("triton", why_not=_why_not_distances)
def distance_error_triton(
    rows: Tensor, points: Tensor, true_rows: Tensor, true_points: Tensor, points_mask: Tensor
) -> Tensor:
    """One kernel, and no distance in memory."""
    given = [x.detach().contiguous() for x in (rows, points, true_rows, true_points, points_mask)]
    out = given[0].new_empty(rows.shape[:-1])
    numbers = rows.shape[-2], points.shape[-2]
    grid = triton.cdiv(numbers[0], FRAMES), rows.shape[:-2].numel()
    _distance_errors[grid](*given, out, *numbers, ROWS=FRAMES, POINTS=POINTS, num_warps=4)
    return out
