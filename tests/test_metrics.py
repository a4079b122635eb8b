"""Scores of structures, by values that are known."""

import math

import pytest
import torch

from axfold import metrics


def chain(n: int, seed: int = 0) -> torch.Tensor:
    """(n, 3) Å, a random walk with steps as between C-alpha atoms."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=-1)
    return torch.cumsum(3.8 * steps, dim=0)


def turned(points: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """The same, rotated and moved far away."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=g))
    return points @ (q * torch.linalg.det(q)).T + 30 * torch.randn(3, generator=g)


@pytest.mark.parametrize("n", [3, 4, 17, 63, 150])
def test_a_moved_structure_is_perfect(n):
    true, mask = chain(n), torch.ones(n)
    found = metrics.superposed(turned(true), true, mask)
    assert (found.tm, found.gdt_ts, found.gdt_ha) == pytest.approx((1, 1, 1), abs=1e-6)
    assert metrics.rmsd(turned(true), true, mask) == pytest.approx(0, abs=1e-4)
    assert float(metrics.lddt(turned(true)[:, None], true[:, None], mask[:, None])) == 1


def test_a_mirror_image_is_not():
    true, mask = chain(60), torch.ones(60)
    mirrored = true * torch.tensor([1.0, 1.0, -1.0])
    assert metrics.rmsd(mirrored, true, mask) > 3
    assert metrics.superposed(mirrored, true, mask).tm < 0.6
    assert (
        float(metrics.lddt(mirrored[:, None], true[:, None], mask[:, None])) == 1
    )  # it knows distances alone


def test_rmsd_of_a_known_displacement():
    """Two points 2 Å apart in place of 1 Å, and a third in the middle."""
    true = torch.tensor([[-0.5, 0, 0], [0.5, 0, 0], [0.0, 0, 0]])
    assert metrics.rmsd(2 * turned(true, 3), true, torch.ones(3)) == pytest.approx(
        math.sqrt(2 * 0.25 / 3), abs=1e-4
    )


def test_half_a_chain_that_fits_is_half():
    n = 60
    true = chain(n)
    moved = torch.cat([true[: n // 2], true[n // 2 :] + torch.tensor([500.0, 0, 0])])
    found = metrics.superposed(turned(moved), true, torch.ones(n))
    assert (found.gdt_ts, found.gdt_ha) == (0.5, 0.5)
    assert found.tm == pytest.approx(0.5, abs=1e-3)


def test_gdt_counts_each_cutoff():
    """Of ten residues one is off by 0.7 Å, one by 1.5, one by 3, one by 6, one by 50; six are where they should be."""
    true = 40 * torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    found = true.clone()
    found[:5, 0] += torch.tensor([0.7, 1.5, 3.0, 6.0, 50.0])
    got = metrics.superposed(found, true, torch.ones(11))
    counts = {0.5: 6, 1: 7, 2: 8, 4: 9, 8: 10}
    assert got.gdt_ts >= sum(counts[c] for c in (1, 2, 4, 8)) / 44 - 1e-9
    assert got.gdt_ha >= sum(counts[c] for c in (0.5, 1, 2, 4)) / 44 - 1e-9
    assert got.gdt_ts <= 10 / 11


def test_tm_score_of_one_superposition_is_the_formula():
    n = 100
    scale = 1.24 * (n - 15) ** (1 / 3) - 1.8
    assert metrics.tm_scale(n) == pytest.approx(scale)
    assert metrics.tm_scale(15) == metrics.tm_scale(4) == 0.5
    true = chain(n)
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(2))
    found = metrics.superposed(turned(true + noise), true, torch.ones(n)).tm
    identity = float((1 / (1 + noise.double().square().sum(-1) / scale**2)).mean())
    assert identity - 1e-3 <= found <= identity + 0.05


def test_no_superposition_of_many_is_better():
    """The search against ten thousand superpositions of random triples."""
    n = 24
    true = chain(n)
    found = true + 2.5 * torch.randn(n, 3, generator=torch.Generator().manual_seed(4))
    got = metrics.superposed(found, true, torch.ones(n))
    g = torch.Generator().manual_seed(5)
    chosen = torch.zeros(10_000, n, dtype=torch.float64)
    chosen.scatter_(1, torch.rand(10_000, n, generator=g).argsort(1)[:, :4], 1.0)
    rotation, translation = metrics.superposition(found.double(), true.double(), chosen)
    off = (found.double() @ rotation.mT + translation[:, None] - true).norm(dim=-1)
    tm = (1 / (1 + (off / metrics.tm_scale(n)) ** 2)).mean(-1).max()
    assert got.tm >= float(tm) - 0.02
    for cutoffs, score in ((metrics.GDT_TS, got.gdt_ts), (metrics.GDT_HA, got.gdt_ha)):
        best = sum(float((off <= c).double().mean(-1).max()) for c in cutoffs) / 4
        assert score >= best - 0.04


def test_lddt_of_known_distances():
    """Three atoms in a line, 5 and 10 Å; the last moves by 1.5 Å: of three distances two change, within 2 and 4 Å."""
    true = torch.tensor([[0.0, 0, 0], [5.0, 0, 0], [10.0, 0, 0]])[:, None]
    found = true.clone()
    found[2, 0, 0] += 1.5
    mask = torch.ones(3, 1)
    assert float(metrics.lddt(found, true, mask)) == pytest.approx((4 + 2 + 2) / 12)
    far = true.clone()
    far[2, 0, 0] = 20.0  # no distance under 15 Å but its own to the second, which is 15
    assert float(metrics.lddt(found, far, mask)) == 1
    mask[2] = 0
    assert float(metrics.lddt(found, true, mask)) == 1
    mask[1] = 0
    assert math.isnan(float(metrics.lddt(found, true, mask)))


def test_lddt_leaves_out_distances_within_a_residue():
    g = torch.Generator().manual_seed(0)
    true = chain(20)[:, None] + torch.randn(20, 3, 3, generator=g)
    found = true.clone()
    found[4, 1, 0] += 0.4  # within every tolerance
    mask = torch.ones(20, 3)
    assert float(metrics.lddt(found, true, mask)) == 1
    alone = torch.zeros(20, 3)
    alone[4] = 1
    assert math.isnan(float(metrics.lddt(found, true, alone)))
    both = torch.stack([found, true + torch.randn(20, 3, 3, generator=g)])
    batch = metrics.lddt(both, torch.stack([true, true]), mask.expand(2, 20, 3))
    assert batch[0] == 1
    assert batch[1] == metrics.lddt(both[1], true, mask)


def test_a_chain_of_two_has_no_superposition():
    found = metrics.superposed(chain(2), chain(2), torch.ones(2))
    assert math.isnan(found.tm)
