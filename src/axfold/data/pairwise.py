"""Local alignment of two protein sequences: which residues of a structure stand for which of the query."""

import math
from dataclasses import dataclass

import numpy as np

from axfold.residues import MSA_INDEX

# BLOSUM62 (Henikoff & Henikoff 1992), lower triangle in the order of RESTYPES.
_BLOSUM62 = """
 4
-1  5
-2  0  6
-2 -2  1  6
 0 -3 -3 -3  9
-1  1  0  0 -3  5
-1  0  0  2 -4  2  5
 0 -2  0 -1 -3 -2 -2  6
-2  0  1 -1 -3  0  0 -2  8
-1 -3 -3 -3 -1 -3 -3 -4 -3  4
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""
_SCORES = np.full((21, 21), -1, np.int32)  # X scores -1 with all
for _row, _line in enumerate(_BLOSUM62.strip().splitlines()):
    for _column, _score in enumerate(_line.split()):
        _SCORES[_row, _column] = _SCORES[_column, _row] = int(_score)

# BLAST's gap costs for BLOSUM62, and what is known of its scores with them (Altschul & Gish 1996).
_OPEN, _EXTEND = 12, 1  # of a gap's first residue and each further one
_LAMBDA, _K = 0.267, 0.041


@dataclass(frozen=True, eq=False)
class Match:
    """The best local alignment of two sequences.

    `pairs` (K, 2) int: indices of the residues that stand in one column, ascending. `expected`: how many
    alignments of this score two unrelated sequences of these lengths have on average (BLAST's E-value).
    """

    pairs: np.ndarray
    score: int
    expected: float


def align(a: str, b: str) -> Match:
    """Smith and Waterman's alignment with affine gaps (Gotoh 1982) and BLOSUM62, in time and memory O(len(a) len(b)).

    The letters are A to Z; ambiguous ones count as in `residues.MSA_INDEX`. The match is empty where nothing is alike.
    """
    codes_a, codes_b = (np.array([MSA_INDEX[letter] for letter in letters], np.int64) for letters in (a, b))
    score = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    slope = _EXTEND * np.arange(len(b) + 1)
    gap_in_b = np.full(len(b) + 1, -_OPEN)  # best score of an alignment that ends in a residue of a alone
    for i, code in enumerate(codes_a):
        gap_in_b = np.maximum(score[i] - _OPEN, gap_in_b - _EXTEND)
        row = np.maximum(gap_in_b, 0)
        row[1:] = np.maximum(row[1:], score[i, :-1] + _SCORES[code, codes_b])
        # A gap in a may begin after any column before: a running maximum, since two gaps never beat one.
        row[1:] = np.maximum(row[1:], np.maximum.accumulate(row + slope)[:-1] - slope[1:] - _OPEN + _EXTEND)
        score[i + 1] = row
    best = int(score.max())
    return Match(
        pairs=_trace(score, codes_a, codes_b),
        score=best,
        expected=_K * len(a) * len(b) * math.exp(-_LAMBDA * best),
    )


def _trace(score: np.ndarray, codes_a: np.ndarray, codes_b: np.ndarray) -> np.ndarray:
    """Pairs of the alignment that ends in the highest score."""
    i, j = np.unravel_index(score.argmax(), score.shape)
    pairs = []
    while score[i, j] > 0:
        if score[i, j] == score[i - 1, j - 1] + _SCORES[codes_a[i - 1], codes_b[j - 1]]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
            continue
        # Costs of gaps of 1, 2, ... residues that end here; one of them explains the score.
        up = score[i, j] == score[:i, j][::-1] - _OPEN - _EXTEND * np.arange(i)
        left = score[i, j] == score[i, :j][::-1] - _OPEN - _EXTEND * np.arange(j)
        if up.any():
            i -= 1 + int(up.argmax())
        else:
            j -= 1 + int(left.argmax())
    return np.array(pairs[::-1], np.int64).reshape(-1, 2)
