"""Atoms of residues from frames and torsion angles, and back: Algorithms 24 and 25, supplement 1.2.9 and 1.9.1."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axfold import residues
from axfold.model.rigid import Rigid, from_three_points

N, CA, C, CB, O = (residues.ATOM_INDEX[name] for name in ("N", "CA", "C", "CB", "O"))  # noqa: E741


_TABLES: dict[str, Tensor] = {}  # a dictionary and no cached function: what torch.compile makes reads it too


def _table(name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    key = f"{name} {device} {dtype}"
    if key not in _TABLES:
        with torch.inference_mode(False):  # gradients may be recorded later
            _TABLES[key] = torch.as_tensor(getattr(residues, name), device=device, dtype=dtype)
    return _TABLES[key]


def lookup(name: str, aatype: Int[Tensor, "*b"], dtype: torch.dtype) -> Tensor:
    """The rows of a table of `residues` for these residue types: (*b, ...)."""
    return _table(name, aatype.device, dtype)[aatype.long()]


def frames_of_torsions(
    backbone: Rigid, torsions: Float[Tensor, "*b n 7 2"], aatype: Int[Tensor, "*b n"]
) -> Rigid:
    """Frames (*b, n, 8) of the rigid groups of atoms from (sin, cos) of the torsions: Algorithm 24, lines 2 to 10.

    The groups are backbone, pre-omega, phi, psi and chi 1 to 4; each chi's frame builds on the one before.
    """
    default = lookup("GROUP_FRAMES", aatype, torsions.dtype)
    frames = Rigid(default[..., :3, :3], default[..., :3, 3])
    identity = torch.stack(
        [torch.zeros_like(torsions[..., :1, 0]), torch.ones_like(torsions[..., :1, 0])], -1
    )
    sin, cos = torch.cat([identity, torsions], dim=-2).unbind(-1)
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    about_x = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]  # Algorithm 25
    turned = frames.rotation @ torch.stack([torch.stack(row, dim=-1) for row in about_x], dim=-2)
    parts = [Rigid(turned[..., g, :, :], frames.translation[..., g, :]) for g in range(8)]
    for chi in (5, 6, 7):
        parts[chi] = parts[chi - 1].compose(parts[chi])
    parts = [backbone.compose(part) for part in parts]
    return Rigid(
        torch.stack([part.rotation for part in parts], dim=-3),
        torch.stack([part.translation for part in parts], dim=-2),
    )


def atom14_of_frames(frames: Rigid, aatype: Int[Tensor, "*b n"]) -> Float[Tensor, "*b n 14 3"]:
    """Positions of the up to 14 atoms of each residue: Algorithm 24, line 11. Missing atoms are at the origin."""
    dtype = frames.translation.dtype
    group = lookup("ATOM14_GROUP", aatype, torch.long)
    rotation = frames.rotation.gather(-3, group[..., None, None].expand(*group.shape, 3, 3))
    translation = frames.translation.gather(-2, group[..., None].expand(*group.shape, 3))
    local = lookup("ATOM14_POSITIONS", aatype, dtype)
    placed = (rotation @ local.unsqueeze(-1)).squeeze(-1) + translation
    return placed * lookup("ATOM14_MASK", aatype, dtype).unsqueeze(-1)


def atom37_of_atom14(
    positions: Float[Tensor, "*b n 14 3"], aatype: Int[Tensor, "*b n"]
) -> tuple[Float[Tensor, "*b n 37 3"], Float[Tensor, "*b n 37"]]:
    """Positions in the order of `residues.ATOM_TYPES`, and which of them the residue has."""
    index = lookup("ATOM37_TO_ATOM14", aatype, torch.long)
    mask = lookup("ATOM37_MASK", aatype, positions.dtype)
    return positions.gather(-2, index[..., None].expand(*index.shape, 3)) * mask.unsqueeze(-1), mask


def pseudo_beta(
    positions: Float[Tensor, "*b n 37 3"], aatype: Int[Tensor, "*b n"]
) -> Float[Tensor, "*b n 3"]:
    """C-beta, of glycine C-alpha."""
    glycine = (aatype == residues.RESTYPE_INDEX["G"]).unsqueeze(-1)
    return torch.where(glycine, positions[..., CA, :], positions[..., CB, :])


def torsions_of_atom37(
    positions: Float[Tensor, "*b n 37 3"], mask: Float[Tensor, "*b n 37"], aatype: Int[Tensor, "*b n"]
) -> tuple[Float[Tensor, "*b n 7 2"], Float[Tensor, "*b n 7 2"], Float[Tensor, "*b n 7"]]:
    """(sin, cos) of the torsions, the same with ambiguous chis turned by pi, and which are defined.

    A torsion with a missing atom is (1, 0). AlphaFold's released code leaves there what rounding makes of
    degenerate frames, which nothing can reproduce.
    """
    aatype = aatype.clamp(max=20)
    previous = torch.cat([torch.zeros_like(positions[..., :1, :, :]), positions[..., :-1, :, :]], dim=-3)
    previous_mask = torch.cat([torch.zeros_like(mask[..., :1, :]), mask[..., :-1, :]], dim=-2)
    backbone = [  # pre-omega, phi, psi
        [(previous, CA), (previous, C), (positions, N), (positions, CA)],
        [(previous, C), (positions, N), (positions, CA), (positions, C)],
        [(positions, N), (positions, CA), (positions, C), (positions, O)],
    ]
    masks = {id(previous): previous_mask, id(positions): mask}
    atoms = torch.stack([torch.stack([x[..., at, :] for x, at in torsion], -2) for torsion in backbone], -3)
    defined = torch.stack(
        [torch.stack([masks[id(x)][..., at] for x, at in torsion], -1).prod(-1) for torsion in backbone], -1
    )

    chi = lookup("CHI_ATOMS", aatype, torch.long).flatten(-2)
    chi_atoms = positions.gather(-2, chi[..., None].expand(*chi.shape, 3)).unflatten(-2, (4, 4))
    chi_defined = mask.gather(-1, chi).unflatten(-1, (4, 4)).prod(-1) * lookup("CHI_MASK", aatype, mask.dtype)
    atoms = torch.cat([atoms, chi_atoms], dim=-3)
    defined = torch.cat([defined, chi_defined], dim=-1)

    first, second, third, fourth = atoms.unbind(-2)
    relative = from_three_points(second, third, first).invert(fourth.unsqueeze(-2)).squeeze(-2)
    sin_cos = relative[..., [2, 1]]
    sin_cos = sin_cos / (sin_cos.square().sum(-1, keepdim=True) + 1e-8).sqrt()
    mirror = sin_cos.new_tensor(
        [1, 1, -1, 1, 1, 1, 1]
    )  # psi is measured to the oxygen, opposite to the next N
    sin_cos = sin_cos * mirror[:, None]
    ambiguous = lookup("CHI_PI_PERIODIC", aatype, sin_cos.dtype)
    turned = torch.cat([torch.ones_like(ambiguous[..., :3]), 1 - 2 * ambiguous], dim=-1)
    alternative = sin_cos * turned[..., None]
    undefined = sin_cos.new_tensor([1.0, 0.0])
    known = defined[..., None] != 0
    return torch.where(known, sin_cos, undefined), torch.where(known, alternative, undefined), defined


def ca_distance_change(
    old: Float[Tensor, "n 37 3"], new: Float[Tensor, "n 37 3"], mask: Float[Tensor, " n"]
) -> float:
    """Root mean square change (Å) of the distances between the C-alpha atoms that `mask` counts.

    What recycling stops by, as AlphaFold-Multimer does (config: recycle_early_stop_tolerance).
    """
    exact = "donot_use_mm_for_euclid_dist"
    before, after = (torch.cdist(x[:, CA], x[:, CA], compute_mode=exact) for x in (old, new))
    pairs = mask[:, None] * mask[None, :]
    return float((((before - after).square() * pairs).sum() / pairs.sum()).sqrt())
