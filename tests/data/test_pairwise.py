import numpy as np
import pytest

from axfold.data.pairwise import _SCORES, align
from axfold.residues import RESTYPES

PROTEIN = "MKVLITGGAGFIGSHLVDRLLEEGHEVVVLDNLSTGSKENIPEG"


def test_a_sequence_matches_itself():
    match = align(PROTEIN, PROTEIN)
    np.testing.assert_array_equal(match.pairs, np.arange(len(PROTEIN))[:, None].repeat(2, axis=1))
    assert match.expected < 1e-20


def test_a_piece_is_found_across_a_deletion():
    piece = PROTEIN[5:21] + PROTEIN[24:40]
    wanted = [(i, i - 5) for i in range(5, 21)] + [(i, i - 8) for i in range(24, 40)]
    np.testing.assert_array_equal(align(PROTEIN, "W" * 7 + piece).pairs, [(i, j + 7) for i, j in wanted])
    np.testing.assert_array_equal(align(piece, PROTEIN).pairs, [(j, i) for i, j in wanted])


def test_unrelated_sequences_are_expected_by_chance():
    rng = np.random.default_rng(0)
    expected = [
        align("".join(rng.choice(list(RESTYPES), 120)), "".join(rng.choice(list(RESTYPES), 150))).expected
        for _ in range(20)
    ]
    assert np.median(expected) > 0.05
    assert min(expected) > 1e-3


@pytest.mark.parametrize(("a", "b"), [("A", "W"), ("X", "X"), ("A", "")])
def test_nothing_alike(a, b):
    assert align(a, b).pairs.shape == (0, 2)


def test_ambiguous_letters():
    np.testing.assert_array_equal(align("WUBZW", "WCDEW").pairs[:, 0], range(5))


@pytest.mark.parametrize("seed", range(20))
def test_score_is_the_best_of_a_slow_search(seed):
    """The same recursion cell by cell, as Gotoh wrote it."""
    rng = np.random.default_rng(seed)
    a, b = ("".join(rng.choice(list("ARNWC"), rng.integers(1, 30))) for _ in range(2))
    assert align(a, b).score == _slow(a, b)


def _slow(a: str, b: str) -> int:
    code = {letter: RESTYPES.index(letter) for letter in RESTYPES}
    h, e, f = (np.full((len(a) + 1, len(b) + 1), start) for start in (0, -99, -99))
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            e[i, j] = max(h[i, j - 1] - 12, e[i, j - 1] - 1)
            f[i, j] = max(h[i - 1, j] - 12, f[i - 1, j] - 1)
            h[i, j] = max(0, h[i - 1, j - 1] + _SCORES[code[a[i - 1]], code[b[j - 1]]], e[i, j], f[i, j])
    return int(h.max())


@pytest.mark.parametrize("seed", range(20))
def test_pairs_have_the_score(seed):
    rng = np.random.default_rng(seed)
    a = rng.choice(list(RESTYPES), 60)
    b = np.delete(np.insert(a, 20, list("WWWW")), slice(40, 43))
    b[::7] = "G"
    a, b = "".join(a), "".join(b)
    match = align(a, b)
    score = sum(_SCORES[RESTYPES.index(a[i]), RESTYPES.index(b[j])] for i, j in match.pairs)
    steps = np.diff(match.pairs, axis=0) - 1
    assert (steps >= 0).all()
    score -= sum(11 + step for step in steps.ravel() if step)
    assert match.score == score
    assert match.expected == pytest.approx(0.041 * len(a) * len(b) * np.exp(-0.267 * score))
