"""What training minimises: supplement 1.9, Algorithms 26 to 28, as AlphaFold's released code has them.

Every loss has one number for each protein of a batch. Half precision is widened to float32 first. What the masks leave
out has no influence, as long as it is finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from axfold import config, ops, stereochemistry
from axfold.model.alphafold import AlphaFold, Pass
from axfold.model.atoms import CA, C, N, lookup, pseudo_beta
from axfold.model.rigid import Rigid, rotation_of
from axfold.model.structure import Structure
from axfold.residues import ATOM14_EXCHANGED, RESTYPE_INDEX
from axfold.train.labels import Labels, pseudo_beta_mask

USED_GROUPS = (0, 3, 4, 5, 6, 7)  # of the rigid groups: pre-omega and phi move no heavy atom
PAIRS = 1 << 22  # of atoms that are looked through for clashes at once
SULFUR = 5  # column of the 14-atom layout that holds the sulfur of cysteine


@dataclass(frozen=True)
class Logits:
    """Of the heads, R residues and S sequences: supplement 1.9.6 to 1.9.10.

    distogram: (*b, R, R, bins); masked_msa: (*b, S, R, classes); plddt: (*b, R, bins); resolved: (*b, R, 37)
    aligned_error: (*b, R, R, bins), or None where the network lacks that head
    """

    distogram: Tensor
    masked_msa: Tensor
    plddt: Tensor
    resolved: Tensor
    aligned_error: Tensor | None


@dataclass(frozen=True)
class Losses:
    """total: (*b), to be minimised: the weighted sum of the terms, times the root of the length (supplement 1.9).

    terms: each loss (*b) by its name in `config.Loss`, as it is before its weight; those of weight 0 are not computed
    """

    total: Tensor
    terms: dict[str, Tensor]


def losses(passed: Pass, logits: Logits, labels: Labels, heads: config.Heads, weights: config.Loss) -> Losses:
    """All losses of a pass together: supplement 1.9, equation 7."""
    structure = passed.structure
    terms = structure_terms(structure, labels, weights)
    terms["distogram"] = distogram(logits.distogram, labels, heads)
    terms["masked_msa"] = masked_msa(logits.masked_msa, labels.true_msa, labels.msa_masked)
    fine = (labels.resolution >= weights.finest_resolution) & (
        labels.resolution <= weights.coarsest_resolution
    )
    terms["plddt"] = plddt(logits.plddt, structure.atom37, labels) * fine
    if weights.resolved:
        told = fine & (labels.backbone_only == 0)
        terms["resolved"] = resolved(logits.resolved, labels.atom37_mask, labels.atom37_exists) * told
    if weights.aligned_error and logits.aligned_error is not None:
        frames = backbone_frames(structure.layers[-1])
        terms["aligned_error"] = aligned_error(logits.aligned_error, frames, labels, heads) * fine
    total = sum((getattr(weights, name) * term for name, term in terms.items()), start=torch.zeros(()))
    return Losses(total * labels.mask.sum(-1).sqrt(), terms)


def head_logits(network: AlphaFold, passed: Pass) -> Logits:
    """What `losses` needs of the heads."""
    heads = network.heads
    return Logits(
        distogram=heads.distogram(passed.pair),
        masked_msa=heads.masked_msa(passed.msa),
        plddt=heads.confidence(passed.structure.single),
        resolved=heads.resolved(passed.single),
        aligned_error=heads.aligned_error(passed.pair) if heads.aligned_error is not None else None,
    )


def structure_terms(structure: Structure, labels: Labels, weights: config.Loss) -> dict[str, Tensor]:
    """The losses of the structure module, by their names in `config.Loss`."""
    limits = {"clamp": weights.clamp, "length_scale": weights.length_scale}
    layers, last = structure.layers, structure.layers[-1]
    by_layer = [backbone_fape(backbone_frames(layer), labels, **limits) for layer in layers]
    frames = Rigid(last["frames_rotation"], last["frames_translation"])
    torsions = [torsion_loss(layer["torsions"], labels) for layer in layers]
    norms = [torsion_norm(layer["unnormalised_torsions"], labels.mask) for layer in layers]
    terms = {
        "backbone": torch.stack(by_layer).mean(0),
        "side_chains": side_chain_fape(frames, structure.atom14, labels, **limits),
        "torsions": torch.stack(torsions).mean(0),
        "torsion_norm": torch.stack(norms).mean(0),
    }
    if weights.violations:
        found = violations(
            structure.atom14,
            labels.atom14_exists,
            labels.aatype,
            labels.residue_index,
            bond_tolerance=weights.bond_tolerance,
            overlap_tolerance=weights.overlap_tolerance,
        )
        terms["violations"] = found.loss(labels.atom14_exists)
    return terms


def backbone_frames(layer: dict[str, Tensor]) -> Rigid:
    """(*b, n), Å, of a layer of the structure module."""
    return Rigid(rotation_of(_wide(layer["quaternion"])), _wide(layer["translation"]))


# Frame aligned point error


def aligned_distances(
    frames: Rigid,
    points: Float[Tensor, "*b p 3"],
    true_frames: Rigid,
    true_points: Float[Tensor, "*b p 3"],
) -> Float[Tensor, "*b f p"]:
    """How far each point (Å) is from where it should be, seen from each frame: Algorithm 28, lines 1 to 3.

    frames, true_frames: (*b, f)
    """
    off = seen_from(frames, points) - seen_from(true_frames, true_points)
    return (off.square().sum(-1) + 1e-4).sqrt()


def seen_from(frames: Rigid, points: Float[Tensor, "*b p 3"]) -> Float[Tensor, "*b f p 3"]:
    """Every point in every frame (*b, f): Algorithm 28, lines 1 and 2."""
    points = _wide(points).unsqueeze(-3).expand(*frames.translation.shape[:-1], -1, -1)
    return Rigid(_wide(frames.rotation), _wide(frames.translation)).invert(points)


def mean_error(
    distances: Float[Tensor, "*b f p"],
    frames_mask: Float[Tensor, "*b f"],
    points_mask: Float[Tensor, "*b p"],
    *,
    clamp: float | None,
    length_scale: float,
) -> Float[Tensor, "*b"]:
    """The mean of `aligned_distances` (Å) up to `clamp`, in units of `length_scale`: Algorithm 28, lines 4 and 5."""
    pairs = frames_mask.sum(-1) * points_mask.sum(-1)
    return _error_sum(distances, frames_mask, points_mask, clamp) / (length_scale * (1e-4 + pairs))


def _error_sum(distances: Tensor, frames_mask: Tensor, points_mask: Tensor, clamp: float | None) -> Tensor:
    if clamp is not None:
        distances = distances.clamp(max=clamp)
    return (distances * frames_mask.unsqueeze(-1) * points_mask.unsqueeze(-2)).sum((-1, -2))


def backbone_fape(
    frames: Rigid, labels: Labels, *, clamp: float = 10.0, length_scale: float = 10.0
) -> Float[Tensor, "*b"]:
    """FAPE of the C-alpha atoms from the backbone's frames (*b, n): Algorithm 20, line 17, and Algorithm 28.

    `labels.clamped` mixes it from a clamped and an unclamped one (supplement 1.11.5).
    """
    true, mask = labels.backbone, labels.backbone_mask
    distances = aligned_distances(frames, frames.translation, true, true.translation)
    clamped, whole = (
        mean_error(distances, mask, mask, clamp=limit, length_scale=length_scale) for limit in (clamp, None)
    )
    return clamped * labels.clamped + whole * (1 - labels.clamped)


def side_chain_fape(
    frames: Rigid,
    atom14: Float[Tensor, "*b n 14 3"],
    labels: Labels,
    *,
    clamp: float = 10.0,
    length_scale: float = 10.0,
) -> Float[Tensor, "*b"]:
    """FAPE of all atoms (Å) from the frames of all rigid groups (*b, n, 8): Algorithm 20, line 28.

    Equal atoms are named as fits best (Algorithm 26). Always clamped. Errors of all pairs never exist at once.
    """
    exchange = alternative_is_better(atom14, labels)
    true_atoms = torch.where(exchange[..., None, None], labels.alternative_atom14, labels.atom14)
    atoms_mask = torch.where(exchange[..., None], labels.alternative_atom14_mask, labels.atom14_mask)
    true_rotation = torch.where(
        exchange[..., None, None, None], labels.alternative_frames.rotation, labels.frames.rotation
    )
    points, true_points, points_mask = (
        atom14.flatten(-3, -2),
        true_atoms.flatten(-3, -2),
        atoms_mask.flatten(-2),
    )

    def used(x: Tensor, axis: int) -> Tensor:
        """Of the groups along an axis, side by side with those of the other residues."""
        return torch.stack([x.select(axis, group) for group in USED_GROUPS], axis).flatten(axis - 1, axis)

    errors = ops.frame_error(
        used(_wide(frames.rotation), -3),
        used(_wide(frames.translation), -2),
        _wide(points),
        used(true_rotation, -3),
        used(labels.frames.translation, -2),
        true_points,
        used(labels.frames_mask, -1),
        points_mask,
        clamp,
    )
    pairs = labels.frames_mask.sum((-1, -2)) * points_mask.sum(-1)
    return errors / (length_scale * (1e-4 + pairs))


@torch.no_grad()
def alternative_is_better(atom14: Float[Tensor, "*b n 14 3"], labels: Labels) -> Bool[Tensor, "*b n"]:
    """Residues whose equal atoms fit better under each other's names: Algorithm 26.

    What counts is the distances from them to all atoms whose names are certain.
    """
    columns = _exchanged_columns(atom14.device)
    own = torch.arange(14, device=atom14.device)
    ambiguous = (lookup("ATOM14_EXCHANGED", labels.aatype, torch.long) != own).to(labels.atom14_mask.dtype)
    rows = (labels.atom14_mask * ambiguous).index_select(-1, columns).flatten(-2)
    certain = (labels.atom14_mask * (1 - ambiguous)).flatten(-2)

    def points(positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = _wide(positions)
        return positions.index_select(-2, columns).flatten(-3, -2), positions.flatten(-3, -2)

    def misfit(true: Tensor) -> Tensor:
        off = ops.distance_error(*points(atom14), *points(true), certain) * rows
        return off.unflatten(-1, (-1, len(columns))).sum(-1)

    return misfit(labels.alternative_atom14) < misfit(labels.atom14)


@cache
def _exchanged_columns(device: torch.device) -> Tensor:
    """Of the 14 atoms' columns those that hold an atom with an equal one in any residue type."""
    columns = [c for c in range(14) if (ATOM14_EXCHANGED[:, c] != c).any()]
    return torch.tensor(columns, device=device)


# Torsions


def torsion_loss(torsions: Float[Tensor, "*b n 7 2"], labels: Labels) -> Float[Tensor, "*b"]:
    """Squared distance of (sin, cos) from the true ones or, where equal, their half turn: Algorithm 27, lines 3 and 4.

    As AlphaFold's code has it, of the side chain's torsions alone.
    """
    found = _wide(torsions)[..., 3:, :]
    turned = 1 - 2 * lookup("CHI_PI_PERIODIC", labels.aatype, found.dtype)[..., None]
    error, alternative = ((found - true).square().sum(-1) for true in (labels.chi, labels.chi * turned))
    return _masked_mean(torch.minimum(error, alternative), labels.chi_mask, (-1, -2))


def torsion_norm(unnormalised: Float[Tensor, "*b n 7 2"], mask: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """How far (sin, cos) are from having length 1: Algorithm 27, lines 1 and 5."""
    length = (_wide(unnormalised).square().sum(-1) + 1e-6).sqrt()
    return _masked_mean((length - 1).abs().mean(-1), mask, (-1,))


# Heads


def distogram(
    logits: Float[Tensor, "*b n n bins"], labels: Labels, heads: config.Heads
) -> Float[Tensor, "*b"]:
    """Cross-entropy of the bins of distances between pseudo-beta atoms: supplement 1.9.8."""
    beta, mask = pseudo_beta(labels.atom37, labels.aatype), pseudo_beta_mask(labels)
    squared = (beta.unsqueeze(-2) - beta.unsqueeze(-3)).square().sum(-1)
    edges = torch.linspace(
        heads.distogram_min,
        heads.distogram_max,
        heads.distogram_bins - 1,
        device=beta.device,
        dtype=beta.dtype,
    )
    errors = cross_entropy(logits, torch.bucketize(squared, edges.square()))
    return _masked_mean(errors, mask.unsqueeze(-1) * mask.unsqueeze(-2), (-1, -2), 1e-6)


def masked_msa(
    logits: Float[Tensor, "*b s n classes"],
    true_msa: Int[Tensor, "*b s n"],
    masked: Float[Tensor, "*b s n"],
) -> Float[Tensor, "*b"]:
    """Cross-entropy of the residue types that were masked: supplement 1.9.9."""
    return _masked_mean(cross_entropy(logits, true_msa), masked, (-1, -2), 1e-8)


def plddt(
    logits: Float[Tensor, "*b n bins"], atom37: Float[Tensor, "*b n 37 3"], labels: Labels
) -> Float[Tensor, "*b"]:
    """Cross-entropy of the bins of lDDT-Cα of the predicted positions (Å): supplement 1.9.6."""
    bins = logits.shape[-1]
    mask = labels.atom37_mask[..., CA]
    score = lddt(atom37[..., CA, :], labels.atom37[..., CA, :], mask)
    errors = cross_entropy(logits, (score * bins).floor().long().clamp(max=bins - 1))
    return _masked_mean(errors, mask, (-1,), 1e-8)


@torch.no_grad()
def lddt(
    points: Float[Tensor, "*b n 3"], true_points: Float[Tensor, "*b n 3"], mask: Float[Tensor, "*b n"]
) -> Float[Tensor, "*b n"]:
    """The share of true distances under 15 Å that are kept, averaged over tolerances of 0.5, 1, 2 and 4 Å, by point."""
    found, true = (_distances(x, x, 1e-10) for x in (_wide(points), _wide(true_points)))
    counted = (true < 15) * mask.unsqueeze(-1) * mask.unsqueeze(-2)
    counted = counted * (1 - torch.eye(mask.shape[-1], dtype=counted.dtype, device=counted.device))
    off = (found - true).abs()
    kept = torch.stack([(off < tolerance).to(off.dtype) for tolerance in (0.5, 1.0, 2.0, 4.0)]).mean(0)
    # Scores are often where two bins of pLDDT meet, and rounding decides: in the order of AlphaFold's code
    return 1 / (1e-10 + counted.sum(-1)) * (1e-10 + (counted * kept).sum(-1))


def aligned_error(
    logits: Float[Tensor, "*b n n bins"], frames: Rigid, labels: Labels, heads: config.Heads
) -> Float[Tensor, "*b"]:
    """Cross-entropy of the bins of each C-alpha's error seen from each backbone frame (*b, n): supplement 1.9.7.

    A residue has no error in its own frame, and is in the first bin there.
    """
    true, mask = labels.backbone, labels.backbone_mask
    with torch.no_grad():
        found, wanted = (seen_from(x, x.translation) for x in (frames, true))
        squared = (found - wanted).square().sum(-1)
        edges = torch.linspace(
            0,
            heads.aligned_error_max,
            heads.aligned_error_bins - 1,
            device=squared.device,
            dtype=squared.dtype,
        )
        bins = torch.bucketize(squared, edges.square())
    errors = cross_entropy(logits, bins)
    return _masked_mean(errors, mask.unsqueeze(-1) * mask.unsqueeze(-2), (-1, -2), 1e-8)


def resolved(
    logits: Float[Tensor, "*b n 37"], seen: Float[Tensor, "*b n 37"], exists: Float[Tensor, "*b n 37"]
) -> Float[Tensor, "*b"]:
    """Cross-entropy of which of the atoms that exist were seen by the experiment: supplement 1.9.10."""
    wide = _wide(logits)
    errors = functional.binary_cross_entropy_with_logits(wide, seen.to(wide.dtype), reduction="none")
    return _masked_mean(errors, exists, (-1, -2), 1e-8)


# Violations


@dataclass(frozen=True)
class Violations:
    """Of ideal geometry: supplement 1.9.11.

    bonds, ca_c_n, c_n_ca: (*b) means over the peptide bonds: of lengths (Å) and of cosines of both angles
    clashes, within: (*b, n, 14) sums by atom, Å: with atoms of other residues, and within the residue
    bonds_violated: (*b, n); clashes_violated, within_violated: (*b, n, 14): where a tolerance is exceeded
    """

    bonds: Tensor
    ca_c_n: Tensor
    c_n_ca: Tensor
    clashes: Tensor
    within: Tensor
    bonds_violated: Tensor
    clashes_violated: Tensor
    within_violated: Tensor

    def loss(self, exists: Float[Tensor, "*b n 14"]) -> Float[Tensor, "*b"]:
        """Together, the sums by atom divided by the number of atoms that exist."""
        by_atom = (self.clashes + self.within).sum((-1, -2)) / (1e-6 + exists.sum((-1, -2)))
        return self.bonds + self.ca_c_n + self.c_n_ca + by_atom

    @property
    def residues(self) -> Tensor:
        """(*b, n) residues with any violation."""
        return self.bonds_violated | self.clashes_violated.any(-1) | self.within_violated.any(-1)


def violations(
    atom14: Float[Tensor, "*b n 14 3"],
    exists: Float[Tensor, "*b n 14"],
    aatype: Int[Tensor, "*b n"],
    residue_index: Int[Tensor, "*b n"],
    *,
    bond_tolerance: float = 12.0,
    overlap_tolerance: float = 1.5,
) -> Violations:
    """What of predicted positions (Å) is no possible geometry: supplement 1.9.11.

    bond_tolerance: standard deviations that bonds and angles may be off
    overlap_tolerance: Å that other atoms may be nearer than their radii add up to
    """
    atom14 = _wide(atom14)
    bonds, cosines_c, cosines_n, bonds_violated = _peptide_bonds(
        atom14, exists, aatype, residue_index, bond_tolerance
    )
    clashes, clashes_violated = _clashes(atom14, exists, aatype, residue_index, overlap_tolerance)
    within, within_violated = _within(atom14, exists, aatype, bond_tolerance, overlap_tolerance)
    return Violations(
        bonds, cosines_c, cosines_n, clashes, within, bonds_violated, clashes_violated, within_violated
    )


def _peptide_bonds(
    atom14: Tensor, exists: Tensor, aatype: Tensor, residue_index: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ca, c, next_n, next_ca = (
        atom14[..., :-1, CA, :],
        atom14[..., :-1, C, :],
        atom14[..., 1:, N, :],
        atom14[..., 1:, CA, :],
    )
    has_ca, has_c, has_n, has_next_ca = (
        exists[..., :-1, CA],
        exists[..., :-1, C],
        exists[..., 1:, N],
        exists[..., 1:, CA],
    )
    bonded = has_c * has_n * (residue_index[..., 1:] - residue_index[..., :-1] == 1)
    proline = (aatype[..., 1:] == RESTYPE_INDEX["P"]).to(atom14.dtype)
    usual, special = stereochemistry.C_N_LENGTH, stereochemistry.C_N_LENGTH_PROLINE
    mean, deviation = (a + (b - a) * proline for a, b in zip(usual, special, strict=True))

    to_ca, to_n, on_to_ca = ca - c, next_n - c, next_ca - next_n
    c_ca_length, c_n_length, n_ca_length = (
        (x.square().sum(-1) + 1e-6).sqrt() for x in (to_ca, to_n, on_to_ca)
    )
    cosine_c = (to_ca * to_n).sum(-1) / (c_ca_length * c_n_length)
    cosine_n = (-to_n * on_to_ca).sum(-1) / (c_n_length * n_ca_length)
    mean_c, deviation_c = stereochemistry.CA_C_N_COSINE
    mean_n, deviation_n = stereochemistry.C_N_CA_COSINE
    losses, violated = [], torch.zeros_like(bonded, dtype=torch.bool)
    for value, expected, limit, mask in (
        (c_n_length, mean, tolerance * deviation, bonded),
        (cosine_c, mean_c, tolerance * deviation_c, bonded * has_ca),
        (cosine_n, mean_n, tolerance * deviation_n, bonded * has_next_ca),
    ):
        error = ((value - expected).square() + 1e-6).sqrt()
        losses.append(_masked_mean((error - limit).relu(), mask, (-1,), 1e-6))
        violated = violated | ((error > limit) & (mask != 0))
    both = functional.pad(violated, (0, 1)) | functional.pad(violated, (1, 0))
    return *losses, both  # type: ignore[return-value]


def _clashes(
    atom14: Tensor, exists: Tensor, aatype: Tensor, residue_index: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """By atom (*b, n, 14) the overlaps with atoms of other residues beyond the tolerance, and whether there are any.

    Gradients are recorded for the pairs that overlap alone, which are few; all pairs never exist at once.
    """
    shape = exists.shape
    n = shape[-2]
    positions = atom14.reshape(-1, n * 14, 3)
    radius = _radii(atom14.device, atom14.dtype)[aatype.long()].reshape(-1, n * 14)
    with torch.no_grad():
        exists = exists.reshape(-1, n * 14) != 0
        residue = residue_index.reshape(-1, n).repeat_interleave(14, dim=-1)
        column = torch.arange(14, device=exists.device).repeat(n)
        size = max(PAIRS // (n * 14), 1)
        found = []
        for start in range(0, n * 14, size):
            rows = slice(start, start + size)
            gap = residue.unsqueeze(-2) - residue[:, rows].unsqueeze(
                -1
            )  # of the column's residue from the row's
            limit = radius[:, rows].unsqueeze(-1) + radius.unsqueeze(-2) - tolerance
            near = _distances(positions[:, rows], positions, 1e-10) < limit
            near &= exists[:, rows].unsqueeze(-1) & exists.unsqueeze(-2) & (gap > 0)
            near &= ~((gap == 1) & (column[rows] == C)[:, None] & (column == N))  # peptide bonds
            # disulfide bonds: AlphaFold's code takes every residue's atom in the sulfur's column for one
            near &= ~((column[rows] == SULFUR)[:, None] & (column == SULFUR))
            found.append(near.nonzero() + near.new_tensor([0, start, 0], dtype=torch.long))
        protein, one, other = torch.cat(found).unbind(-1)
    distance = ((positions[protein, one] - positions[protein, other]).square().sum(-1) + 1e-10).sqrt()
    overlap = (radius[protein, one] + radius[protein, other] - tolerance - distance).relu()
    by_atom, violated = torch.zeros_like(radius), torch.zeros_like(exists)
    for atom in (one, other):
        by_atom = by_atom.index_put((protein, atom), overlap, accumulate=True)
        violated[protein, atom] = True
    return by_atom.reshape(shape), violated.reshape(shape)


def _within(
    atom14: Tensor, exists: Tensor, aatype: Tensor, deviations: float, overlap: float
) -> tuple[Tensor, Tensor]:
    """By atom (*b, n, 14) how far its distances in the residue are out of bounds, and whether any are.

    Each pair counts twice for each of its atoms, as in AlphaFold's code.
    """
    bounds = _bounds(deviations, overlap, atom14.device, atom14.dtype)
    lower, upper = (bound[aatype.long()] for bound in bounds)
    different = 1 - torch.eye(14, dtype=atom14.dtype, device=atom14.device)
    pairs = exists.unsqueeze(-1) * exists.unsqueeze(-2) * different
    distance = ((atom14.unsqueeze(-2) - atom14.unsqueeze(-3)).square().sum(-1) + 1e-10).sqrt()
    loss = pairs * ((lower - distance).relu() + (distance - upper).relu())
    violated = (pairs != 0) & ((distance < lower) | (distance > upper))
    return loss.sum(-2) + loss.sum(-1), violated.any(-1) | violated.any(-2)


@cache
def _bounds(
    deviations: float, overlap: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    lower, upper = stereochemistry.distance_bounds(deviations, overlap)
    return torch.as_tensor(lower, device=device, dtype=dtype), torch.as_tensor(
        upper, device=device, dtype=dtype
    )


@cache
def _radii(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(stereochemistry.ATOM14_RADIUS, device=device, dtype=dtype)


# What several of them need


def cross_entropy(logits: Float[Tensor, "*b classes"], target: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """-log of the share that the softmax of the logits gives to each target."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return -logits.log_softmax(-1, dtype=wide).gather(-1, target.long().unsqueeze(-1)).squeeze(-1)


def _masked_mean(values: Tensor, mask: Tensor, axes: tuple[int, ...], epsilon: float = 1e-10) -> Tensor:
    return (values * mask).sum(axes) / (mask.sum(axes) + epsilon)


def _distances(one: Tensor, other: Tensor, epsilon: float) -> Tensor:
    """(*b, i, j) of points (*b, i, 3) and (*b, j, 3), for use without gradients."""
    exact = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
    return (exact.square() + epsilon).sqrt()


def _wide(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
