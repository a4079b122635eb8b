"""What is known of a protein whose structure was determined: what losses compare a prediction with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from axfold import residues
from axfold.model.atoms import CA, CB, C, N, O, lookup, torsions_of_atom37
from axfold.model.rigid import Rigid, from_three_points


@dataclass(frozen=True)
class Labels:
    """One protein, or several as a batch; N residues, S sequences. Floats are of one type; masks are 1 or 0; Å.

    What the masks leave out may be anything finite. An alternative is the same structure with the names of equal
    atoms exchanged (supplement Table 3).

    aatype, residue_index: (*b, N); mask: (*b, N), 0 for padding
    atom37: (*b, N, 37, 3); atom37_mask: (*b, N, 37)
    atom14, alternative_atom14: (*b, N, 14, 3); atom14_mask, alternative_atom14_mask: (*b, N, 14)
    frames, alternative_frames: of the rigid groups, (*b, N, 8); frames_mask: (*b, N, 8)
    chi: (*b, N, 4, 2) sin and cos of the side chain's torsions; chi_mask: (*b, N, 4)
    resolution: (*b), Å, 0 where it isn't known (NMR) or is a prediction's (self-distillation)
    clamped: (*b), the share of the clamped backbone FAPE in the loss, usually 0 or 1 (supplement 1.11.5)
    true_msa: (*b, S, N) residue types; msa_masked: (*b, S, N), 1 where the network is to guess them
    backbone_only: (*b), 1 where side chains were never given: which atoms the experiment saw isn't known then
    """

    aatype: Tensor
    residue_index: Tensor
    mask: Tensor
    atom37: Tensor
    atom37_mask: Tensor
    atom14: Tensor
    atom14_mask: Tensor
    alternative_atom14: Tensor
    alternative_atom14_mask: Tensor
    frames: Rigid
    alternative_frames: Rigid
    frames_mask: Tensor
    chi: Tensor
    chi_mask: Tensor
    resolution: Tensor
    clamped: Tensor
    true_msa: Tensor
    msa_masked: Tensor
    backbone_only: Tensor

    @property
    def atom14_exists(self) -> Tensor:
        """(*b, N, 14) 1 for the atoms that the residues have, seen by the experiment or not."""
        return lookup("ATOM14_MASK", self.aatype, self.mask.dtype) * self.mask[..., None]

    @property
    def atom37_exists(self) -> Tensor:
        """(*b, N, 37), the same."""
        return lookup("ATOM37_MASK", self.aatype, self.mask.dtype) * self.mask[..., None]

    @property
    def backbone(self) -> Rigid:
        """(*b, N), the frames of N, CA and C."""
        return Rigid(self.frames.rotation[..., 0, :, :], self.frames.translation[..., 0, :])

    @property
    def backbone_mask(self) -> Tensor:
        return self.frames_mask[..., 0]


def label(
    aatype: Int[Tensor, "*b n"],
    residue_index: Int[Tensor, "*b n"],
    mask: Float[Tensor, "*b n"],
    atom37: Float[Tensor, "*b n 37 3"],
    atom37_mask: Float[Tensor, "*b n 37"],
    resolution: Float[Tensor, "*b"],
    clamped: Float[Tensor, "*b"],
    true_msa: Int[Tensor, "*b s n"],
    msa_masked: Float[Tensor, "*b s n"],
    backbone_only: Float[Tensor, "*b"] | None = None,
) -> Labels:
    """Everything that follows from the positions (Å) and masks of a structure's atoms. Arguments are as in `Labels`."""
    atom37_mask = atom37_mask * mask[..., None]
    index = lookup("ATOM14_TO_ATOM37", aatype, torch.long)
    atom14_mask = atom37_mask.gather(-1, index) * lookup("ATOM14_MASK", aatype, atom37_mask.dtype)
    atom14 = atom37.gather(-2, index[..., None].expand(*index.shape, 3)) * atom14_mask[..., None]
    exchanged = lookup("ATOM14_EXCHANGED", aatype, torch.long)
    frames, alternative, frames_mask = group_frames(atom37, atom37_mask, aatype)
    torsions, _, defined = torsions_of_atom37(atom37, atom37_mask, aatype)
    return Labels(
        aatype=aatype,
        residue_index=residue_index,
        mask=mask,
        atom37=atom37,
        atom37_mask=atom37_mask,
        atom14=atom14,
        atom14_mask=atom14_mask,
        alternative_atom14=atom14.gather(-2, exchanged[..., None].expand(*exchanged.shape, 3)),
        alternative_atom14_mask=atom14_mask.gather(-1, exchanged),
        frames=frames,
        alternative_frames=alternative,
        frames_mask=frames_mask,
        chi=torsions[..., 3:, :],
        chi_mask=defined[..., 3:],
        resolution=resolution,
        clamped=clamped,
        true_msa=true_msa,
        msa_masked=msa_masked,
        backbone_only=torch.zeros_like(resolution) if backbone_only is None else backbone_only,
    )


def group_frames(
    positions: Float[Tensor, "*b n 37 3"], mask: Float[Tensor, "*b n 37"], aatype: Int[Tensor, "*b n"]
) -> tuple[Rigid, Rigid, Float[Tensor, "*b n 8"]]:
    """Frames of the rigid groups of a known structure, those with equal atoms exchanged, and which are defined.

    The inverse of `model.atoms.frames_of_torsions`: the bond that ends in the origin points along x, and the atom
    that defines the torsion lies in the xy plane (supplement 1.8.4). Pre-omega and phi move no heavy atom, and are
    never defined.
    """
    chi = lookup("CHI_ATOMS", aatype, torch.long)[..., 1:]
    unused = chi.new_zeros(*aatype.shape, 3)
    backbone = chi.new_tensor([C, CA, N]).expand_as(unused)
    psi = chi.new_tensor([CA, C, O]).expand_as(unused)
    atoms = torch.cat([torch.stack([backbone, unused, unused, psi], dim=-2), chi], dim=-2)  # (*b, n, 8, 3)
    flat = atoms.flatten(-2)
    points = positions.gather(-2, flat[..., None].expand(*flat.shape, 3)).unflatten(-2, (8, 3))
    known = mask.gather(-1, flat).unflatten(-1, (8, 3)).prod(-1)
    groups = torch.ones_like(known[..., :4]) * known.new_tensor([1.0, 0.0, 0.0, 1.0])
    groups = groups * (aatype != residues.RESTYPE_INDEX["X"])[..., None]
    defined = known * torch.cat([groups, lookup("CHI_MASK", aatype, known.dtype)], dim=-1)

    first, origin, plane = points.unbind(-2)
    mirrored = torch.zeros_like(defined, dtype=torch.bool)
    mirrored[..., 0] = True  # the backbone's x axis points from CA to C, which comes first
    frames = from_three_points(torch.where(mirrored[..., None], 2 * origin - first, first), origin, plane)
    identity = torch.eye(3, dtype=positions.dtype, device=positions.device)
    frames = Rigid(
        torch.where(defined[..., None, None] != 0, frames.rotation, identity),
        frames.translation * defined[..., None],
    )
    ambiguous = lookup("CHI_PI_PERIODIC", aatype, positions.dtype)
    turned = torch.cat([torch.ones_like(ambiguous), 1 - 2 * ambiguous], dim=-1)  # by pi, about x
    signs = torch.stack([torch.ones_like(turned), turned, turned], dim=-1)
    return frames, Rigid(frames.rotation * signs[..., None, :], frames.translation), defined


def pseudo_beta_mask(labels: Labels) -> Tensor:
    """(*b, N) 1 where the atom that `model.atoms.pseudo_beta` takes is known."""
    glycine = labels.aatype == residues.RESTYPE_INDEX["G"]
    return torch.where(glycine, labels.atom37_mask[..., CA], labels.atom37_mask[..., CB])
