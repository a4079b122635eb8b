"""Errors of points seen from frames, and of distances between points: sums over all pairs of them, which are many."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from axfold.ops import small
from axfold.ops.op import Op

EPSILON = 1e-4  # Å², of the distance from a point to where it should be; Algorithm 28, line 3
_PAIRS = 1 << 22  # of frames and points that the definition looks at at once


@Op
def frame_error(
    rotation: Float[Tensor, "*b f 3 3"],
    translation: Float[Tensor, "*b f 3"],
    points: Float[Tensor, "*b p 3"],
    true_rotation: Float[Tensor, "*b f 3 3"],
    true_translation: Float[Tensor, "*b f 3"],
    true_points: Float[Tensor, "*b p 3"],
    frames_mask: Float[Tensor, "*b f"],
    points_mask: Float[Tensor, "*b p"],
    clamp: float = 10.0,
) -> Float[Tensor, "*b"]:
    """The sum over frames and points of how far a point is from where it should be, up to `clamp` (Å): Algorithm 28.

    A point is seen from a frame as rotationT (point - translation). Frames go some at a time, and with gradients they
    are computed again.
    """
    frames = max(_PAIRS // max(points[..., 0].numel(), 1), 1)
    each = (x.split(frames, dim=axis) for x, axis in (
        (rotation, -3), (translation, -2), (true_rotation, -3), (true_translation, -2), (frames_mask, -1),
    ))  # fmt: skip

    def error_sum(
        rotation: Tensor,
        translation: Tensor,
        points: Tensor,
        true_rotation: Tensor,
        true_translation: Tensor,
        frames_mask: Tensor,
    ) -> Tensor:
        seen = (points.unsqueeze(-3) - translation.unsqueeze(-2)) @ rotation
        wanted = (true_points.unsqueeze(-3) - true_translation.unsqueeze(-2)) @ true_rotation
        distance = ((seen - wanted).square().sum(-1) + EPSILON).sqrt().clamp(max=clamp)
        return (distance * frames_mask.unsqueeze(-1) * points_mask.unsqueeze(-2)).sum((-1, -2))

    errors = [
        checkpoint(
            error_sum,
            turn,
            shift,
            points,
            *true,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in it is random
        )
        for turn, shift, *true in zip(*each, strict=True)
    ]
    return torch.stack(errors).sum(0)


@frame_error.like
def _small_frames(
    rotation: Tensor,
    translation: Tensor,
    points: Tensor,
    true_rotation: Tensor,
    true_translation: Tensor,
    true_points: Tensor,
    frames_mask: Tensor,
    points_mask: Tensor,
    clamp: float = 10.0,
) -> small.Smalls:
    frames = small.normal(rotation, small.ROWS, 3, 3), small.normal(translation, small.ROWS, 3)
    known = small.normal(points, small.POSITIONS, 3)
    masks = (small.Small((n,), points.dtype, "mask") for n in (small.ROWS, small.POSITIONS))
    return *frames, known, *frames, known, *masks


@Op
def distance_error(
    rows: Float[Tensor, "*b r 3"],
    points: Float[Tensor, "*b p 3"],
    true_rows: Float[Tensor, "*b r 3"],
    true_points: Float[Tensor, "*b p 3"],
    points_mask: Float[Tensor, "*b p"],
) -> Float[Tensor, "*b r"]:
    """For each row the sum over points of how wrong its distance from them is: Algorithm 26. It has no gradient."""

    def distances(one: Tensor, other: Tensor) -> Tensor:
        exact = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
        return (exact.square() + 1e-10).sqrt()

    with torch.no_grad():
        off = (distances(rows, points) - distances(true_rows, true_points)).square()
        return ((off + 1e-10).sqrt() * points_mask.unsqueeze(-2)).sum(-1)


@distance_error.like
def _small_distances(
    rows: Tensor, points: Tensor, true_rows: Tensor, true_points: Tensor, points_mask: Tensor
) -> small.Smalls:
    asked, known = small.normal(rows, small.ROWS, 3), small.normal(points, small.POSITIONS, 3)
    return asked, known, asked, known, small.Small((small.POSITIONS,), points.dtype, "mask")
