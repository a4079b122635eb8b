from pathlib import Path

import numpy as np
import pytest

from axfold import residues

RECORDED = {
    "ATOM14_TO_ATOM37": "RESTYPE_ATOM14_TO_ATOM37",
    "ATOM37_TO_ATOM14": "RESTYPE_ATOM37_TO_ATOM14",
    "ATOM14_MASK": "restype_atom14_mask",
    "ATOM37_MASK": "restype_atom37_mask",
    "ATOM14_GROUP": "restype_atom14_to_rigid_group",
    "ATOM14_POSITIONS": "restype_atom14_rigid_group_positions",
    "CHI_ATOMS": "chi_atom_indices",
    "CHI_PI_PERIODIC": "chi_pi_periodic",
}


@pytest.fixture(scope="module")
def recorded():
    path = Path(__file__).parent / "data/cases/data_constants/residue_constants.npz"
    return np.load(path, allow_pickle=False)


@pytest.mark.parametrize(("table", "key"), RECORDED.items(), ids=str)
def test_table_is_deepminds(recorded, table, key):
    np.testing.assert_array_equal(getattr(residues, table), recorded[key])


def test_exchanged_atoms_are_deepminds(recorded):
    renamed = recorded["RENAMING_MATRICES"].argmax(axis=1)
    np.testing.assert_array_equal(residues.ATOM14_EXCHANGED[:20], renamed[:20])
    ambiguous = np.arange(14) != residues.ATOM14_EXCHANGED
    np.testing.assert_array_equal(ambiguous, recorded["RESTYPE_ATOM14_IS_AMBIGUOUS"] != 0)


def test_names_are_deepminds(recorded):
    assert list(residues.ATOM_TYPES) == list(recorded["atom_types"])
    assert list(residues.RESTYPES_WITH_X) == list(recorded["restypes_with_x"])


def test_frames_are_deepminds(recorded):
    np.testing.assert_allclose(
        residues.GROUP_FRAMES, recorded["restype_rigid_group_default_frame"], rtol=0, atol=1e-7
    )


def test_chi_mask_is_deepminds(recorded):
    np.testing.assert_array_equal(residues.CHI_MASK[:20], recorded["chi_angles_mask"])
    assert not residues.CHI_MASK[20].any()


def test_tables_have_one_kind_of_number():
    for name in [*RECORDED, "CHI_MASK", "GROUP_FRAMES"]:
        assert getattr(residues, name).dtype in (np.float32, np.int64), name


def test_group_frames_are_rotations():
    frames = residues.GROUP_FRAMES[residues.GROUP_FRAMES.any(axis=(2, 3))]
    rotation = frames[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(1, 2), np.eye(3)[None].repeat(len(rotation), 0), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)


def test_bonds_along_the_side_chain_have_the_length_of_bonds():
    for residue in range(20):
        for k in range(int(residues.CHI_MASK[residue].sum())):
            bond = np.linalg.norm(residues.GROUP_FRAMES[residue, 4 + k, :3, 3]) if k else 1.5
            assert 1.3 < bond < 1.9, (residues.RESTYPES[residue], k)


def test_layouts_invert_each_other():
    for residue in range(21):
        there = np.flatnonzero(residues.ATOM14_MASK[residue])
        wide = residues.ATOM14_TO_ATOM37[residue, there]
        np.testing.assert_array_equal(residues.ATOM37_TO_ATOM14[residue, wide], there)
        assert residues.ATOM37_MASK[residue].sum() == len(there)


def test_letters():
    assert residues.RESTYPE_INDEX["A"] == 0
    assert residues.RESTYPE_INDEX["V"] == 19
    assert {residues.RESTYPE_INDEX[letter] for letter in "BJOUXZ"} == {20}
    assert [residues.MSA_INDEX[letter] for letter in "BJOUXZ-"] == [3, 20, 20, 4, 20, 6, 21]
    assert residues.RESTYPE_1TO3["W"] == "TRP"
    assert residues.RESTYPE_3TO1["MET"] == "M"
