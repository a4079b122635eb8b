"""Rotations and translations of residues: supplement 1.1 and 1.8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Rigid:
    """Transformations x -> rotation x + translation, one for each element of the leading axes.

    rotation: (*b, 3, 3); translation: (*b, 3)
    """

    rotation: Tensor
    translation: Tensor

    def apply(self, points: Float[Tensor, "*b p 3"]) -> Float[Tensor, "*b p 3"]:
        """Local points of each transformation in the global frame."""
        return points @ self.rotation.transpose(-1, -2) + self.translation.unsqueeze(-2)

    def invert(self, points: Float[Tensor, "*b p 3"]) -> Float[Tensor, "*b p 3"]:
        """Global points in the local frame of each transformation."""
        return (points - self.translation.unsqueeze(-2)) @ self.rotation

    def compose(self, other: Rigid) -> Rigid:
        """First `other`, then this one."""
        moved = (self.rotation @ other.translation.unsqueeze(-1)).squeeze(-1)
        return Rigid(self.rotation @ other.rotation, moved + self.translation)

    def scale(self, factor: float) -> Rigid:
        """With translations in another unit."""
        return Rigid(self.rotation, self.translation * factor)


def from_three_points(
    negative_x: Float[Tensor, "*b 3"], origin: Float[Tensor, "*b 3"], xy_plane: Float[Tensor, "*b 3"]
) -> Rigid:
    """Frames by Gram-Schmidt, `negative_x` on the negative x axis: Algorithm 21, with AlphaFold's sign of x."""
    e0 = _normalise(origin - negative_x)
    e1 = xy_plane - origin
    e1 = _normalise(e1 - e0 * (e0 * e1).sum(-1, keepdim=True))
    return Rigid(torch.stack([e0, e1, torch.linalg.cross(e0, e1)], dim=-1), origin)


def _normalise(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-8).sqrt()


def rotation_of(quaternion: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """The rotation of a unit quaternion (a, b, c, d): supplement 1.8.3, equation 29 of Algorithm 23."""
    a, b, c, d = quaternion.unbind(-1)
    rows = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def turn(quaternion: Float[Tensor, "*b 4"], vector: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 4"]:
    """quaternion times (1, vector), normalised: Algorithm 23, lines 1 and 2."""
    a, v = quaternion[..., :1], quaternion[..., 1:]
    product = torch.cat(
        [-(v * vector).sum(-1, keepdim=True), a * vector + torch.linalg.cross(v, vector)], dim=-1
    )
    turned = quaternion + product
    return turned / torch.linalg.vector_norm(turned, dim=-1, keepdim=True)
