"""How near a structure is to the true one: lDDT, GDT, TM-score, RMSD.

Positions are in Å; masks are 1 where an atom is known.

lDDT needs no superposition. GDT and TM-score are maxima over superpositions, which are looked for as usual: from those
of many fragments on, by superposing again and again what has come near. They never exceed the true maximum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

GDT_TS = (1.0, 2.0, 4.0, 8.0)
"""Å: the total score is the mean share of residues within these."""
GDT_HA = (0.5, 1.0, 2.0, 4.0)
_FRAGMENTS = 16  # at most, of each length, evenly along the chain
_ROUNDS = 12  # of superposing what is near; they rarely take more than eight
_SHORTEST = 4  # residues of a fragment


@torch.no_grad()
def lddt(
    positions: Float[Tensor, "*b n a 3"],
    true: Float[Tensor, "*b n a 3"],
    mask: Float[Tensor, "*b n a"],
    *,
    radius: float = 15.0,
) -> Float[Tensor, "*b"]:
    """Local distance difference test over all atoms of the mask, from 0 to 1: Mariani et al. (2013).

    The share of the true distances under `radius` between atoms of different residues that are kept within 0.5, 1, 2
    and 4 Å. With one atom a residue it is lDDT-Cα. Without any such distance it is NaN.
    """
    n, a = mask.shape[-2:]
    residue = torch.arange(n, device=mask.device).repeat_interleave(a)
    other = residue[:, None] != residue
    found, known = (
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        for x in (positions.flatten(-3, -2).float(), true.flatten(-3, -2).float())
    )
    flat = mask.flatten(-2) != 0
    counted = (known < radius) & other & flat.unsqueeze(-1) & flat.unsqueeze(-2)
    off = (found - known).abs()
    kept = torch.stack([((off < t) & counted).sum((-1, -2)) for t in (0.5, 1.0, 2.0, 4.0)]).sum(0)
    return kept.double() / (4 * counted.sum((-1, -2)).double())


@torch.no_grad()
def superposition(
    points: Float[Tensor, "*b n 3"], true: Float[Tensor, "*b n 3"], weights: Float[Tensor, "*b n"]
) -> tuple[Float[Tensor, "*b 3 3"], Float[Tensor, "*b 3"]]:
    """Rotation and translation that bring the points onto the true ones, by weighted least squares: Kabsch (1976).

    x -> x @ rotation.T + translation
    """
    share = (weights / weights.sum(-1, keepdim=True).clamp(min=1e-12)).unsqueeze(-1)
    centre, aim = (points * share).sum(-2), (true * share).sum(-2)
    covariance = ((points - centre.unsqueeze(-2)) * share).mT @ (true - aim.unsqueeze(-2))
    u, _, vt = torch.linalg.svd(covariance)
    sign = torch.ones_like(centre)
    sign[..., 2] = torch.linalg.det(u @ vt).sign()  # no mirror image
    rotation = (vt.mT * sign.unsqueeze(-2)) @ u.mT
    return rotation, aim - (rotation @ centre.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def rmsd(points: Float[Tensor, "n 3"], true: Float[Tensor, "n 3"], mask: Float[Tensor, " n"]) -> float:
    """Root mean square distance, Å, after the best superposition."""
    x, y = (p[mask != 0].double() for p in (points, true))
    rotation, translation = superposition(x, y, torch.ones_like(x[:, 0]))
    return float((x @ rotation.T + translation - y).square().sum(-1).mean().sqrt())


@dataclass(frozen=True)
class Superposed:
    """Scores of C-alpha atoms, from 0 to 1."""

    tm: float
    gdt_ts: float
    gdt_ha: float


@torch.no_grad()
def superposed(
    points: Float[Tensor, "n 3"],
    true: Float[Tensor, "n 3"],
    mask: Float[Tensor, " n"],
    length: int | None = None,
) -> Superposed:
    """TM-score (Zhang and Skolnick 2004) and GDT (Zemla 2003) over the residues of the mask, on the CPU.

    length: residues of the whole chain, of which those of the mask are a part
    """
    x, y = (p[mask != 0].double().cpu() for p in (points, true))
    n = len(x)
    if n < 3:
        nothing = float("nan")
        return Superposed(nothing, nothing, nothing)
    whole = length or n
    scale = tm_scale(whole)
    cutoffs = sorted({*GDT_TS, *GDT_HA})
    best_tm, best_share = 0.0, dict.fromkeys(cutoffs, 0.0)
    for reach in (min(max(scale, 4.5), 8.0), *cutoffs):
        chosen = _fragments(n)
        for _ in range(_ROUNDS):
            rotation, translation = superposition(x, y, chosen.double())
            off = (x @ rotation.mT + translation.unsqueeze(-2) - y).square().sum(-1).sqrt()
            best_tm = max(best_tm, float((1 / (1 + (off / scale).square())).mean(-1).max()))
            for cutoff in cutoffs:
                best_share[cutoff] = max(best_share[cutoff], float((off <= cutoff).double().mean(-1).max()))
            near = off <= torch.maximum(
                off.new_tensor(reach), off.topk(3, largest=False).values[..., -1:]
            )  # three residues at least
            if near.equal(chosen):
                break
            chosen = near.unique(dim=0)  # many fragments lead to the same
    ts, ha = (sum(best_share[c] for c in some) / len(some) for some in (GDT_TS, GDT_HA))
    share = n / whole
    return Superposed(best_tm * share, ts * share, ha * share)


def tm_scale(n: int) -> float:
    """d0, Å, of a chain of n residues: at least 0.5."""
    return max(1.24 * (n - 15) ** (1 / 3) - 1.8, 0.5) if n > 15 else 0.5


def _fragments(n: int) -> Bool[Tensor, "s n"]:
    """The chain, its halves, quarters and so on, as sets of residues."""
    rows, length = [], n
    place = torch.arange(n)
    while True:
        starts = torch.linspace(0, n - length, min(_FRAGMENTS, n - length + 1)).round().long()
        rows.append((place >= starts[:, None]) & (place < starts[:, None] + length))
        if length <= _SHORTEST:
            return torch.cat(rows)
        length = max(length // 2, _SHORTEST)
