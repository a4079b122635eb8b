"""Which residues stay."""

import numpy as np
import pytest

from axfold.train import crop

RNG = np.random.default_rng


def starts(length, size, *, clamped, draws=20_000):
    rng = RNG(0)
    return np.array([crop.contiguous(length, size, rng, clamped=clamped)[0] for _ in range(draws)])


@pytest.mark.parametrize("clamped", [True, False])
@pytest.mark.parametrize(("length", "size"), [(1, 1), (17, 64), (64, 64), (1000, 64)])
def test_a_stretch_has_the_size_there_is(length, size, clamped):
    for seed in range(20):
        kept = crop.contiguous(length, size, RNG(seed), clamped=clamped)
        assert len(kept) == min(length, size)
        assert kept[0] >= 0
        assert kept[-1] < length
        assert (np.diff(kept) == 1).all()


def test_stretches_of_clamped_examples_start_anywhere():
    counts = np.bincount(starts(20, 16, clamped=True))
    np.testing.assert_allclose(counts / counts.sum(), 1 / 5, atol=0.015)


def test_stretches_of_others_start_near_the_beginning():
    # supplement 1.2.8: uniform up to n - x, where x is uniform from 0 to n = 4
    wanted = np.array([sum(1 / (4 - x + 1) for x in range(5) if start <= 4 - x) / 5 for start in range(5)])
    counts = np.bincount(starts(20, 16, clamped=False), minlength=5)
    np.testing.assert_allclose(counts / counts.sum(), wanted, atol=0.015)


def test_stretches_of_chains_use_all_the_room():
    lengths = (30, 5, 50, 1)
    owner = np.repeat(np.arange(4), lengths)
    met = np.zeros(4)
    for seed in range(200):
        kept = crop.contiguous_of_chains(lengths, 40, RNG(seed))
        assert len(kept) == 40
        for chain in range(4):
            own = kept[owner[kept] == chain]
            assert (np.diff(own) == 1).all()
            met[chain] += len(own)
    assert (met > 0).all()


def test_a_complex_that_fits_is_whole():
    np.testing.assert_array_equal(crop.contiguous_of_chains((3, 4), 10, RNG(0)), np.arange(7))
    np.testing.assert_array_equal(
        crop.spatial(np.zeros((7, 3)), np.ones(7), np.array([0] * 3 + [1] * 4), 10, RNG(0)), np.arange(7)
    )


def complex_of_two():
    """Two chains along x, of which only the beginnings are near each other."""
    ca = np.zeros((80, 3))
    ca[:40, 0] = 4 * np.arange(40)
    ca[40:, 0] = -8 - 4 * np.arange(40)
    return ca, np.repeat([0, 1], 40)


def test_a_spatial_crop_is_what_is_nearest_to_a_residue_at_the_interface():
    ca, chain = complex_of_two()
    for seed in range(20):
        kept = crop.spatial(ca, np.ones(80), chain, 20, RNG(seed))
        assert len(kept) == 20
        # the interface is within two residues of the beginnings: 20 residues about it lie within 12 of either
        assert {0, 40} <= set(kept)
        assert max(kept[kept < 40]) <= 12
        assert max(kept[kept >= 40] - 40) <= 12


def test_a_spatial_crop_leaves_out_what_was_not_seen_while_it_can():
    ca, chain = complex_of_two()
    seen = np.ones(80)
    seen[[1, 41]] = 0
    ca[[1, 41]] = 0
    kept = crop.spatial(ca, seen, chain, 20, RNG(0))
    assert not {1, 41} & set(kept)
    assert len(crop.spatial(ca, seen, chain, 79, RNG(0))) == 79
    assert len(crop.spatial(ca, np.zeros(80), chain, 20, RNG(0))) == 20


def test_without_an_interface_any_residue_is_the_middle():
    ca, chain = complex_of_two()
    ca[40:, 0] -= 1000
    middles = {int(np.median(crop.spatial(ca, np.ones(80), chain, 9, RNG(seed)))) for seed in range(60)}
    assert len(middles) > 20
