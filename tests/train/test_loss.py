"""The losses against the numbers that DeepMind's code gave, and what they must not depend on."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from axfold import config
from axfold.config import FINE_TUNING, Heads
from axfold.model.alphafold import Pass
from axfold.model.atoms import pseudo_beta
from axfold.model.rigid import Rigid, rotation_of
from axfold.model.structure import Structure
from axfold.train import loss
from axfold.train.labels import Labels, label, pseudo_beta_mask
from axfold.train.loss import Logits

OWN = Path(__file__).parent / "near_native.npz"


def read(*paths: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            found |= dict(file)
    return found


@pytest.fixture(scope="module")
def own() -> dict[str, np.ndarray]:
    return read(OWN)


@pytest.fixture(scope="module")
def recorded(parity) -> dict[str, np.ndarray]:
    folder = parity / "cases" / "losses"
    return read(*(folder / f"{name}.npz" for name in ("inputs", "near_inputs", "near_outputs")))


def labels_of(case: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Labels:
    """Of the one protein, without a batch axis."""

    def real(name: str) -> torch.Tensor:
        return torch.as_tensor(case[name][0], dtype=dtype)

    def whole(name: str) -> torch.Tensor:
        return torch.as_tensor(case[name][0]).long()

    return label(
        whole("aatype"),
        whole("residue_index"),
        real("seq_mask"),
        real("all_atom_positions"),
        real("all_atom_mask"),
        real("resolution"),
        real("use_clamped_fape"),
        whole("true_msa"),
        real("bert_mask"),
    )


def structure_of(case: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Structure:
    predicted = {
        name.removeprefix("pred/structure_module/").removeprefix("sidechains/"): torch.as_tensor(x, dtype=dtype)
        for name, x in case.items()
        if name.startswith("pred/structure_module/")
    }
    frames = predicted["frames"]
    layers = tuple(
        {
            "quaternion": predicted["traj"][i, :, :4],
            "translation": predicted["traj"][i, :, 4:],
            "torsions": predicted["angles_sin_cos"][i],
            "unnormalised_torsions": predicted["unnormalized_angles_sin_cos"][i],
            "frames_rotation": frames[i, ..., :9].unflatten(-1, (3, 3)),
            "frames_translation": frames[i, ..., 9:],
            "atom14": predicted["atom_pos"][i],
        }
        for i in range(len(predicted["traj"]))
    )
    return Structure(
        predicted["final_atom_positions"],
        predicted["final_atom_mask"],
        predicted["final_atom14_positions"],
        torch.zeros(0),
        layers,
    )


def golden(case: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.as_tensor(case[f"loss/{name}"])


close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


def test_labels_are_deepminds(own):
    found = labels_of(own)

    def true(name: str) -> torch.Tensor:
        return torch.as_tensor(own[name][0])

    for ours, theirs, mask in (
        (found.atom14, "atom14_gt_positions", "atom14_gt_exists"),
        (found.alternative_atom14, "atom14_alt_gt_positions", "atom14_alt_gt_exists"),
    ):
        close(ours, true(theirs) * true(mask)[..., None])
    torch.testing.assert_close(found.atom14_mask, true("atom14_gt_exists"), rtol=0, atol=0)
    torch.testing.assert_close(found.alternative_atom14_mask, true("atom14_alt_gt_exists"), rtol=0, atol=0)
    exists = true("rigidgroups_gt_exists")
    torch.testing.assert_close(found.frames_mask, exists, rtol=0, atol=0)
    for ours, theirs in (
        (found.frames, "rigidgroups_gt_frames"),
        (found.alternative_frames, "rigidgroups_alt_gt_frames"),
    ):
        flat = torch.cat([ours.rotation.flatten(-2), ours.translation], dim=-1)
        close(flat * exists[..., None], true(theirs) * exists[..., None], atol=1e-5)
    affine = true("backbone_affine_tensor")
    mask = true("backbone_affine_mask")
    torch.testing.assert_close(found.backbone_mask, mask, rtol=0, atol=0)
    close(found.backbone.translation * mask[:, None], affine[:, 4:] * mask[:, None])
    rotation = rotation_of(affine[:, :4]) * mask[:, None, None]
    close(found.backbone.rotation * mask[:, None, None], rotation, atol=1e-5)
    torch.testing.assert_close(found.chi_mask, true("chi_mask"), rtol=0, atol=0)
    angles = true("chi_angles")
    chi = torch.stack([angles.sin(), angles.cos()], dim=-1) * found.chi_mask[..., None]
    close(found.chi * found.chi_mask[..., None], chi, atol=1e-5)
    beta_mask = pseudo_beta_mask(found)
    torch.testing.assert_close(beta_mask, true("pseudo_beta_mask"), rtol=0, atol=0)
    close(pseudo_beta(found.atom37, found.aatype) * beta_mask[:, None], true("pseudo_beta") * beta_mask[:, None])


def test_structure_losses_are_deepminds(own):
    labels, structure = labels_of(own), structure_of(own)
    terms = loss.structure_terms(structure, labels, FINE_TUNING)
    close(terms["side_chains"], golden(own, "structure_module/sidechain_fape"))
    close(terms["torsions"], golden(own, "structure_module/chi_loss"))
    close(terms["torsion_norm"], golden(own, "structure_module/angle_norm_loss"))
    last = loss.backbone_fape(loss.backbone_frames(structure.layers[-1]), labels)
    close(last, golden(own, "structure_module/fape"))
    together = sum(getattr(FINE_TUNING, name) * term for name, term in terms.items())
    close(together, golden(own, "structure_module/loss"))


def test_renaming_is_deepminds(own):
    labels = labels_of(own)
    better = loss.alternative_is_better(structure_of(own).atom14, labels)
    assert better.any()
    assert not better.all()
    torch.testing.assert_close(better.float(), golden(own, "structure_module/alt_naming_is_better"))


def test_violations_are_deepminds(own):
    labels, structure = labels_of(own), structure_of(own)
    found = loss.violations(structure.atom14, labels.atom14_exists, labels.aatype, labels.residue_index)
    true = partial(golden, own)
    prefix = "structure_module/violations/"
    close(found.bonds, true(f"{prefix}between_residues/bonds_c_n_loss_mean"))
    close(found.ca_c_n, true(f"{prefix}between_residues/angles_ca_c_n_loss_mean"))
    close(found.c_n_ca, true(f"{prefix}between_residues/angles_c_n_ca_loss_mean"))
    close(found.clashes, true(f"{prefix}between_residues/clashes_per_atom_loss_sum"))
    close(found.within, true(f"{prefix}within_residues/per_atom_loss_sum"))
    assert found.clashes.any()
    assert found.within.any()
    for ours, theirs in (
        (found.bonds_violated, "between_residues/connections_per_residue_violation_mask"),
        (found.clashes_violated, "between_residues/clashes_per_atom_clash_mask"),
        (found.within_violated, "within_residues/per_atom_violations"),
        (found.residues, "total_per_residue_violations_mask"),
    ):
        torch.testing.assert_close(ours.float(), true(prefix + theirs), rtol=0, atol=0)


def test_losses_by_residue_are_deepminds(own):
    labels, structure = labels_of(own), structure_of(own)
    predicted = structure.atom37[:, 1], labels.atom37[:, 1], labels.atom37_mask[:, 1]
    close(loss.lddt(*predicted), golden(own, "lddt_ca")[0])
    logits = torch.as_tensor(own["pred/predicted_lddt/logits"])
    close(loss.plddt(logits, structure.atom37, labels), golden(own, "predicted_lddt/loss"))
    logits = torch.as_tensor(own["pred/experimentally_resolved/logits"])
    found = loss.resolved(logits, labels.atom37_mask, labels.atom37_exists)
    close(found, golden(own, "experimentally_resolved/loss"))


def logits_of(case: dict[str, np.ndarray]) -> Logits:
    def logits(name: str) -> torch.Tensor:
        return torch.as_tensor(case[f"pred/{name}/logits"])

    return Logits(
        distogram=logits("distogram"),
        masked_msa=logits("masked_msa"),
        plddt=logits("predicted_lddt"),
        resolved=logits("experimentally_resolved"),
        aligned_error=logits("predicted_aligned_error"),
    )


def passed_with(structure: Structure) -> Pass:
    nothing = torch.zeros(0)
    return Pass(nothing, nothing, nothing, nothing, structure)


NAMES = {
    "distogram": "distogram",
    "masked_msa": "masked_msa",
    "plddt": "predicted_lddt",
    "resolved": "experimentally_resolved",
    "aligned_error": "predicted_aligned_error",
}


def test_all_losses_together_are_deepminds(recorded):
    labels, structure = labels_of(recorded), structure_of(recorded)
    heads = Heads(aligned_error=True)
    found = loss.losses(passed_with(structure), logits_of(recorded), labels, heads, FINE_TUNING)
    for ours, theirs in NAMES.items():
        close(found.terms[ours], golden(recorded, f"{theirs}/loss"))
    weighted = golden(recorded, "structure_module/loss") + sum(
        getattr(FINE_TUNING, ours) * golden(recorded, f"{theirs}/loss") for ours, theirs in NAMES.items()
    )
    close(found.total, weighted * 48**0.5)
    assert set(found.terms) <= {field.name for field in fields(config.Loss)}
