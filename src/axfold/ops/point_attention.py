"""Invariant point attention between its projections and its output: Algorithm 22, lines 7 to 11."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from axfold.ops import small
from axfold.ops.op import Op


@Op
def invariant_point_attention(
    q: Float[Tensor, "*b i h c"],
    k: Float[Tensor, "*b n h c"],
    v: Float[Tensor, "*b n h c"],
    q_points: Float[Tensor, "*b i h p 3"],
    k_points: Float[Tensor, "*b n h p 3"],
    v_points: Float[Tensor, "*b n h p_v 3"],
    point_weights: Float[Tensor, " h"],
    z: Float[Tensor, "*b i n c_z"],
    norm_weight: Float[Tensor, " c_z"],
    norm_bias: Float[Tensor, " c_z"],
    bias_weight: Float[Tensor, "h c_z"],
    bias_bias: Float[Tensor, " h"],
    mask: Float[Tensor, "*b i"],
    masks: Float[Tensor, "*b n"],
) -> tuple[Float[Tensor, "*b i h c"], Float[Tensor, "*b i h p_v 3"], Float[Tensor, "*b i h c_z"]]:
    """Averages of the values, of their points and of the normalised pairs, for each residue i and head.

    The weights are a softmax over the residues n of w_L (c^-1/2 q k + bias(norm(z)) - w_C |q_points - k_points|²),
    where softplus(point_weights) is w_C but for its constant. All points are in the global frame. z may have a narrower
    type than the others, which then are what it is normalised in. `mask` and `masks` are 0 where there is no residue.
    """
    z = F.layer_norm(z.to(norm_weight.dtype), norm_weight.shape, norm_weight, norm_bias)
    # w_L, and w_C with it: each of the three terms gives a third of the logits' variance
    logits = torch.einsum("...ihc,...jhc->...hij", q * (3 * q.shape[-1]) ** -0.5, k)
    x, y = (points.movedim(-3, -4).flatten(-2) for points in (q_points, k_points))  # (*b, h, n, p 3)
    if torch.compiler.is_compiling():  # what a compiler sees through; it never makes the differences
        squared = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    else:
        squared = SquaredDistances.apply(x, y)
    weight = scale_of_points(point_weights, q_points.shape[-2])
    logits = logits - 0.5 * weight[:, None, None] * squared
    logits = logits + 3**-0.5 * F.linear(z, bias_weight, bias_bias).movedim(-1, -3)
    logits = logits - 1e5 * (1 - mask.unsqueeze(-1) * masks.unsqueeze(-2)).unsqueeze(-3)
    weights = logits.softmax(dim=-1)
    values = torch.einsum("...hij,...jhc->...ihc", weights, v)
    points = torch.einsum("...hij,...jhpx->...ihpx", weights, v_points)
    pairs = torch.einsum("...hij,...ijc->...ihc", weights, z)
    return values, points, pairs


def scale_of_points(point_weights: Float[Tensor, " h"], points: int) -> Float[Tensor, " h"]:
    """What half of the squared distances is multiplied with: line 7."""
    return F.softplus(point_weights) * (3 * points * 9 / 2) ** -0.5


class SquaredDistances(torch.autograd.Function):
    """|x_i - y_j|² of vectors x (*b, i, d) and y (*b, j, d): (*b, i, j), by differences, which round the least.

    `torch.cdist` takes a GPU ten times as long for a few coordinates, and its backward too. This one is products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        squared = (x[..., :, None, 0] - y[..., None, :, 0]).square_()
        for i in range(1, x.shape[-1]):  # a coordinate at a time: no difference of all is ever there
            difference = x[..., :, None, i] - y[..., None, :, i]
            squared.addcmul_(difference, difference)
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        to_x = grad.sum(-1, keepdim=True) * x - grad @ y
        to_y = grad.sum(-2).unsqueeze(-1) * y - grad.mT @ x
        return 2 * to_x, 2 * to_y


@invariant_point_attention.like
def _small(
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
) -> small.Smalls:
    asked, known = ((n, q.shape[-2]) for n in (small.ROWS, small.POSITIONS))
    c, p, p_v = q.shape[-1], q_points.shape[-2], v_points.shape[-2]
    return (
        *(small.normal(x, *who, c) for x, who in ((q, asked), (k, known), (v, known))),
        *(
            small.normal(x, *who, n, 3)
            for x, who, n in ((q_points, asked, p), (k_points, known, p), (v_points, known, p_v))
        ),
        *small.parameters([point_weights]),
        small.normal(z, small.ROWS, small.POSITIONS, z.shape[-1]),
        *small.parameters([norm_weight, norm_bias, bias_weight, bias_bias]),
        small.mask(mask, small.ROWS),
        small.mask(masks, small.POSITIONS),
    )
