from pathlib import Path

import numpy as np
import pytest

from axfold import residues, stereochemistry


@pytest.fixture(scope="module")
def recorded():
    path = Path(__file__).parent / "data/cases/data_constants/residue_constants.npz"
    return np.load(path, allow_pickle=False)


def test_bounds_are_deepminds(recorded):
    lower, upper = stereochemistry.distance_bounds(deviations=12, overlap=1.5)
    np.testing.assert_allclose(lower, recorded["atom14_dists_bounds/lower_bound"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(upper, recorded["atom14_dists_bounds/upper_bound"], rtol=1e-6, atol=0)
    narrow, wide = stereochemistry.distance_bounds(deviations=11, overlap=1.5)
    bonded = (upper > 0) & (upper < 1e9)
    deviation = np.where(bonded, narrow - lower, 0)
    np.testing.assert_allclose(deviation, recorded["atom14_dists_bounds/stddev"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.where(bonded, upper - wide, 0), deviation, rtol=0, atol=1e-6)


def test_ideal_residues_are_within_the_bounds():
    """Atoms of one rigid group, whose distances no torsion changes, but for the bounds of clashes."""
    lower, upper = stereochemistry.distance_bounds(deviations=12, overlap=1.5)
    for residue in range(20):
        at, group = residues.ATOM14_POSITIONS[residue], residues.ATOM14_GROUP[residue]
        same = (group[:, None] == group) & (upper[residue] > 0)
        distance = np.linalg.norm(at[:, None] - at, axis=-1)
        assert (distance[same] > lower[residue][same]).all(), residues.RESTYPES[residue]
        assert (distance[same] < upper[residue][same]).all(), residues.RESTYPES[residue]
