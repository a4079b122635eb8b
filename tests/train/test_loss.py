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
        name.removeprefix("pred/structure_module/").removeprefix("sidechains/"): torch.as_tensor(
            x, dtype=dtype
        )
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
    close(
        pseudo_beta(found.atom37, found.aatype) * beta_mask[:, None], true("pseudo_beta") * beta_mask[:, None]
    )


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


def test_clashes_are_found_in_blocks(own, monkeypatch):
    labels, structure = labels_of(own), structure_of(own)
    known = labels.atom14_exists, labels.aatype, labels.residue_index
    whole = loss.violations(structure.atom14, *known)
    monkeypatch.setattr(loss, "PAIRS", 48 * 14 * 100)  # of 672 rows
    found = loss.violations(structure.atom14, *known)
    close(found.clashes, whole.clashes)
    assert found.clashes_violated.equal(whole.clashes_violated)


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


# What a loss may depend on

SMALL = slice(3, 9)  # residues of both kinds of ambiguous and of other side chains


def cut(case: dict[str, np.ndarray], residues: slice) -> dict[str, np.ndarray]:
    """The case of a few residues alone."""
    axes = {"true_msa": 2, "bert_mask": 2, "resolution": None, "use_clamped_fape": None}

    def axis(name: str) -> int | None:
        if name.startswith("pred/structure_module/"):
            return 0 if "final_" in name else 1
        return axes.get(name, 1)

    wanted = {name: x for name, x in case.items() if not name.startswith(("loss/", "pred/pre", "pred/exp"))}
    return {
        name: x if axis(name) is None else x[(slice(None),) * axis(name) + (residues,)]  # type: ignore[operator]
        for name, x in wanted.items()
    }


def leaves(structure: Structure) -> list[torch.Tensor]:
    """What of a structure the losses read, and the network makes."""
    names = ("quaternion", "translation", "torsions", "unnormalised_torsions")
    layers = [layer[name] for layer in structure.layers for name in names]
    last = structure.layers[-1]
    return [*layers, last["frames_rotation"], last["frames_translation"], structure.atom14]


def rebuilt(like: Structure, tensors: list[torch.Tensor]) -> Structure:
    names = ("quaternion", "translation", "torsions", "unnormalised_torsions")
    *parts, rotation, translation, atom14 = tensors
    layers = [
        {**layer, **dict(zip(names, parts[4 * i : 4 * i + 4], strict=True))}
        for i, layer in enumerate(like.layers)
    ]
    layers[-1] |= {"frames_rotation": rotation, "frames_translation": translation}
    return replace(like, atom14=atom14, layers=tuple(layers))


def random_logits(shape: tuple[int, ...], n: int, sequences: int, heads: Heads, seed: int = 0) -> Logits:
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*shape, *sizes, generator=generator)

    return Logits(
        distogram=draw(n, n, heads.distogram_bins),
        masked_msa=draw(sequences, n, heads.masked_msa_classes),
        plddt=draw(n, heads.plddt_bins),
        resolved=draw(n, 37),
        aligned_error=draw(n, n, heads.aligned_error_bins),
    )


def together(structure: Structure, logits: Logits, labels: Labels) -> loss.Losses:
    return loss.losses(passed_with(structure), logits, labels, Heads(aligned_error=True), FINE_TUNING)


@pytest.mark.parametrize("term", ["backbone", "side_chains", "torsions", "torsion_norm", "violations"])
def test_gradients_are_finite_differences(own, term):
    case = cut(own, SMALL)
    labels, structure = labels_of(case, torch.float64), structure_of(case, torch.float64)
    structure = replace(structure, layers=structure.layers[-2:])
    start = [x.clone().requires_grad_() for x in leaves(structure)]
    if term == "violations":  # atoms of different residues so near that some clash
        start[-1] = (start[-1].detach() * 0.6).requires_grad_()
        found = loss.violations(start[-1], labels.atom14_exists, labels.aatype, labels.residue_index)
        assert found.clashes.any()
        assert found.bonds > 0

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        return loss.structure_terms(rebuilt(structure, list(tensors)), labels, FINE_TUNING)[term]

    assert torch.autograd.gradcheck(value, start, fast_mode=True, check_undefined_grad=False)


def test_gradients_of_the_heads_are_finite_differences(own):
    case = cut(own, slice(18, 21))
    labels, structure = labels_of(case, torch.float64), structure_of(case, torch.float64)
    logits = random_logits((), 3, labels.true_msa.shape[0], Heads())
    names = [field.name for field in fields(logits)]
    start = [getattr(logits, name).double().requires_grad_() for name in names]

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        return together(structure, Logits(**dict(zip(names, tensors, strict=True))), labels).total

    assert torch.autograd.gradcheck(value, start, fast_mode=True, check_undefined_grad=False)


def test_padding_changes_nothing(own):
    """Of 20 residues the last 6 are padding, whose predictions, labels and logits are nonsense."""
    kept, heads = 14, Heads(aligned_error=True)
    short, long = cut(own, slice(0, kept)), cut(own, slice(0, 20))
    long["seq_mask"] = long["seq_mask"].copy()
    long["seq_mask"][:, kept:] = 0
    long["bert_mask"] = long["bert_mask"].copy()
    long["bert_mask"][..., kept:] = 0
    sequences = long["true_msa"].shape[1]
    logits = random_logits((), 20, sequences, heads)
    few = Logits(
        distogram=logits.distogram[:kept, :kept],
        masked_msa=logits.masked_msa[:, :kept],
        plddt=logits.plddt[:kept],
        resolved=logits.resolved[:kept],
        aligned_error=logits.aligned_error[:kept, :kept],
    )
    expected = together(structure_of(short), few, labels_of(short))

    structure = structure_of(long)
    tensors = [x.clone() for x in leaves(structure)]
    for x in tensors:
        x[kept:] = 7 * torch.randn_like(x[kept:])
        x.requires_grad_()
    all_logits = {
        field.name: getattr(logits, field.name).clone().requires_grad_() for field in fields(logits)
    }
    found = together(rebuilt(structure, tensors), Logits(**all_logits), labels_of(long))
    for name, term in expected.terms.items():
        close(found.terms[name], term, msg=lambda message, name=name: f"{name}: {message}")
    close(found.total, expected.total)
    found.total.backward()
    for x in tensors:
        assert x.grad is not None
        assert not x.grad[kept:].any()
        assert x.grad[:kept].isfinite().all()
    for name, x in all_logits.items():
        outside = torch.ones_like(x, dtype=torch.bool)
        outside[tuple(slice(size) for size in getattr(few, name).shape)] = False
        assert not x.grad[outside].any(), name
        assert x.grad.any(), name


def test_atoms_that_were_not_seen_have_no_influence(own):
    case = dict(own)
    missing = case["all_atom_mask"] == 0
    missing[0, 7] = True  # one residue more
    case["all_atom_mask"] = np.where(missing, 0, case["all_atom_mask"]).astype(np.float32)
    logits = random_logits((), 48, 24, Heads())
    results = []
    for value in (0, 50):
        noise = value * np.random.default_rng(0).standard_normal(case["all_atom_positions"].shape)
        positions = np.where(missing[..., None], noise, own["all_atom_positions"]).astype(np.float32)
        labels = labels_of(case | {"all_atom_positions": positions})
        results.append(together(structure_of(own), logits, labels))
    assert results[0].terms.keys() == results[1].terms.keys()
    for name, term in results[0].terms.items():
        torch.testing.assert_close(term, results[1].terms[name], rtol=0, atol=0)
    assert (results[0].total - together(structure_of(own), logits, labels_of(own)).total).abs() > 1e-4


def test_a_batch_is_its_proteins(own):
    cases = [cut(own, slice(start, start + 12)) for start in (0, 18)]
    logits = random_logits((2,), 12, 24, Heads())
    both_labels = [labels_of(case) for case in cases]
    both = [structure_of(case) for case in cases]
    single = [
        together(structure, Logits(**{f.name: getattr(logits, f.name)[i] for f in fields(logits)}), labels)
        for i, (structure, labels) in enumerate(zip(both, both_labels, strict=True))
    ]
    stacked = rebuilt(both[0], [torch.stack(x) for x in zip(*map(leaves, both), strict=True)])
    stacked = replace(stacked, atom37=torch.stack([x.atom37 for x in both]))

    def stack(values: list) -> object:
        if isinstance(values[0], Rigid):
            return Rigid(*(torch.stack([getattr(x, n) for x in values]) for n in ("rotation", "translation")))
        return torch.stack(values)

    labels = Labels(**{f.name: stack([getattr(x, f.name) for x in both_labels]) for f in fields(Labels)})
    found = together(stacked, logits, labels)
    close(found.total, torch.stack([x.total for x in single]))
    for name, term in found.terms.items():
        close(term, torch.stack([x.terms[name] for x in single]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(own, dtype):
    labels, structure = labels_of(own), structure_of(own)
    logits = random_logits((), 48, 24, Heads())
    half = Logits(**{f.name: getattr(logits, f.name).to(dtype) for f in fields(logits)})
    wide = Logits(**{f.name: getattr(half, f.name).float() for f in fields(logits)})
    rough = rebuilt(structure, [x.to(dtype) for x in leaves(structure)])
    same = rebuilt(structure, [x.float() for x in leaves(rough)])
    found, expected = together(rough, half, labels), together(same, wide, labels)
    for name, term in expected.terms.items():
        assert found.terms[name].dtype == torch.float32, name
        close(found.terms[name], term, msg=lambda message, name=name: f"{name}: {message}")


def test_confidence_learns_from_good_structures_alone(own):
    case = cut(own, slice(0, 8))
    logits = random_logits((), 8, 24, Heads())
    for resolution, counts in ((0.0, False), (0.05, False), (1.5, True), (3.0, True), (3.5, False)):
        labels = replace(labels_of(case), resolution=torch.tensor(resolution))
        found = together(structure_of(case), logits, labels).terms
        for name in ("plddt", "resolved", "aligned_error"):
            assert bool(found[name]) == counts, (name, resolution)
        assert found["distogram"] > 0


def test_what_was_seen_of_a_backbone_is_not_learned(own):
    structure, labels = structure_of(own), labels_of(own)
    logits = random_logits((), len(labels.aatype), labels.true_msa.shape[-2], Heads(aligned_error=True))
    labels = replace(labels, resolution=torch.tensor(2.0))
    whole = together(structure, logits, labels).terms
    backbone = together(structure, logits, replace(labels, backbone_only=torch.tensor(1.0))).terms
    assert whole["resolved"] > 0
    assert backbone["resolved"] == 0
    assert all(torch.equal(backbone[name], whole[name]) for name in whole if name != "resolved")


def test_names_of_equal_atoms_do_not_matter(own):
    labels, structure = labels_of(own), structure_of(own)
    exchanged = replace(
        labels,
        atom14=labels.alternative_atom14,
        atom14_mask=labels.alternative_atom14_mask,
        alternative_atom14=labels.atom14,
        alternative_atom14_mask=labels.atom14_mask,
        frames=labels.alternative_frames,
        alternative_frames=labels.frames,
    )
    last = structure.layers[-1]
    frames = Rigid(last["frames_rotation"], last["frames_translation"])
    found, other = (loss.side_chain_fape(frames, structure.atom14, x) for x in (labels, exchanged))
    close(found, other)


def test_initial_training_has_fewer_terms(own):
    labels, structure = labels_of(own), structure_of(own)
    logits = replace(random_logits((), 48, 24, Heads()), aligned_error=None)
    found = loss.losses(passed_with(structure), logits, labels, Heads(), config.Loss())
    assert set(found.terms) == {
        *("backbone", "side_chains", "torsions", "torsion_norm", "distogram", "masked_msa", "plddt")
    }


def test_clamping_limits_far_errors(own):
    labels, structure = labels_of(own), structure_of(own)
    frames = loss.backbone_frames(structure.layers[-1])
    away = Rigid(frames.rotation, frames.translation * 20)
    clamped, whole = (
        loss.backbone_fape(away, replace(labels, clamped=torch.tensor(share))) for share in (1.0, 0.0)
    )
    assert clamped <= 1
    assert whole > 2
    mixed = loss.backbone_fape(away, replace(labels, clamped=torch.tensor(0.25)))
    close(mixed, 0.25 * clamped + 0.75 * whole)


def test_a_gap_and_a_disulfide_are_no_violations():
    """Two cysteines: far along the chain no peptide bond is missing, and near sulfurs are bonded."""
    aatype = torch.tensor([4, 4])
    exists = torch.zeros(2, 14)
    exists[:, loss.SULFUR] = 1
    positions = torch.zeros(2, 14, 3)
    positions[1, :, 0] = 2.0  # Å, between the sulfurs
    assert not loss.violations(positions, exists, aatype, torch.tensor([1, 40])).residues.any()
    exists[:, 1], positions[:, 1, 1], positions[1, 1, 0] = 1, 10.0, 1.0  # and C-alpha atoms 1 Å apart
    found = loss.violations(positions, exists, aatype, torch.tensor([1, 40]))
    assert found.residues.all()
    close(found.clashes[:, 1], torch.full((2,), 1.7 + 1.7 - 1.5 - 1.0))
    assert not found.bonds_violated.any()


def test_one_residue_has_losses(own):
    case = cut(own, slice(0, 1))
    found = together(structure_of(case), random_logits((), 1, 24, Heads()), labels_of(case))
    assert all(term.isfinite() for term in found.terms.values())
