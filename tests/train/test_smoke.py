"""`axfold train --smoke`: its expected curve, of which a short prefix is made again."""

import math

import pytest

from axfold.train import smoke


def test_the_expected_curve_ends_above_nine_tenths():
    points = smoke.expected()
    assert [point.step for point in points] == list(range(1, smoke.STEPS + 1))
    scores = {point.step: point.lddt_ca for point in points if point.lddt_ca is not None}
    assert set(scores) == set(range(smoke.EVERY, smoke.STEPS + 1, smoke.EVERY))
    assert scores[smoke.EVERY] < 0.5
    assert scores[smoke.STEPS] > 0.9


def test_a_prefix_of_the_curve():
    """Rounding differs by machine, and grows with every step."""
    known = smoke.expected()
    for found, expected in zip(smoke.run(steps=4, every=10**9), known, strict=False):
        assert found.step == expected.step
        assert found.loss == pytest.approx(expected.loss, rel=1e-3)
        assert math.isfinite(found.loss)
    assert known[3].loss < known[0].loss
