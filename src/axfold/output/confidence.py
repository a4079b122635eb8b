"""From the logits of the confidence heads to pLDDT, PAE and pTM (supplement 1.9.6, 1.9.7).

Everything of the aligned error works on a block of rows of the pair, so that its logits need never exist whole:

    rows = [aligned_error(block, edges) for block in blocks]
    score = max(tm_by_alignment(block, edges, n_res).max() for block in blocks)

A prediction takes both from `model.heads.AlignedError.expected`, on the device; here they are in float64.
"""

from collections.abc import Mapping

import numpy as np

CATEGORIES: Mapping[str, float] = {"H": 90.0, "M": 70.0, "L": 50.0, "D": 0.0}
"""The AlphaFold database's classes of pLDDT with their lower bounds: high, medium, low, disordered."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64 and safe for large logits."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def plddt(logits: np.ndarray) -> np.ndarray:
    """(N, bins) logits -> (N,) expected lDDT-Cα, 0 to 100 (Algorithm 29); the bins cut 0 to 1 evenly."""
    bins = logits.shape[-1]
    return softmax(logits) @ (100 * (np.arange(bins) + 0.5) / bins)


def category(score: float) -> str:
    """The AlphaFold database's letter for a pLDDT: H (90 or more), M (70), L (50) or D."""
    return next(letter for letter, bound in CATEGORIES.items() if score >= bound)


def error_edges(bins: int = 64, maximum: float = 31.0) -> np.ndarray:
    """(bins - 1,) Å, where the bins of the aligned error meet; the last bin is open (supplement 1.9.7)."""
    return np.linspace(0.0, maximum, bins - 1)


def error_centers(edges: np.ndarray) -> np.ndarray:
    """(bins,) Å, the error that each bin stands for; the last is the largest error that can be expressed."""
    width = edges[1] - edges[0]
    return np.append(edges, edges[-1] + width) + width / 2


def aligned_error(logits: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Expected aligned error (PAE), Å: (rows, N, bins) logits -> (rows, N).

    Entry (i, j) is the error of residue j when predicted and true structure are aligned on residue i.
    """
    return softmax(logits) @ error_centers(edges)


def tm_terms(edges: np.ndarray, n_res: int) -> np.ndarray:
    """(bins,) what a pair with the error of each bin adds to the TM-score of a protein of `n_res` residues."""
    scale = 1.24 * np.cbrt(max(n_res, 19) - 15) - 1.8  # Å; shorter proteins are scored as 19 residues
    return 1 / (1 + (error_centers(edges) / scale) ** 2)


def tm_by_alignment(
    logits: np.ndarray,
    edges: np.ndarray,
    n_res: int,
    *,
    asym_id: np.ndarray | None = None,
    row_asym_id: np.ndarray | None = None,
) -> np.ndarray:
    """The expected TM-score when aligned on each residue of a block: (rows, N, bins) logits -> (rows,).

    n_res: residues of the protein, which set the scale d0 of the TM-score (supplement 1.9.7).
    asym_id (N,), row_asym_id (rows,): chains of all residues and of the block's; where they are given, only pairs
    of different chains count (ipTM: Evans et al. 2021), and a row without any scores 0.
    """
    terms = softmax(logits) @ tm_terms(edges, n_res)
    if asym_id is None or row_asym_id is None:
        return terms.mean(axis=-1)
    counted = row_asym_id[:, None] != asym_id[None, :]
    return (terms * counted).sum(axis=-1) / (1e-8 + counted.sum(axis=-1))


def ptm(logits: np.ndarray, edges: np.ndarray, asym_id: np.ndarray | None = None) -> float:
    """Predicted TM-score of (N, N, bins) logits: that of the best alignment; with `asym_id` (N,) the ipTM."""
    scores = tm_by_alignment(logits, edges, len(logits), asym_id=asym_id, row_asym_id=asym_id)
    return float(scores.max())
