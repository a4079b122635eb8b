"""Which residues of a chain or a complex are trained on: supplement 1.2.8, and 7.2 of AlphaFold-Multimer's paper.

Functions return the indices of the residues that are kept, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INTERFACE = 15.0
"""Å between C-alpha atoms of different chains, below which they are at an interface (AlphaFold-Multimer 7.2)."""


def contiguous(length: int, size: int, rng: np.random.Generator, *, clamped: bool) -> np.ndarray:
    """A stretch of `size` residues, or all where there are fewer: supplement 1.2.8.

    Where the loss is not clamped, stretches near the beginning are likelier.
    """
    spare = max(length - size, 0)
    last = spare if clamped else spare - int(rng.integers(spare + 1))
    start = int(rng.integers(last + 1))
    return np.arange(start, min(start + size, length))


def contiguous_of_chains(lengths: Sequence[int], size: int, rng: np.random.Generator) -> np.ndarray:
    """A stretch of each chain, together at most `size` residues: AlphaFold-Multimer, Algorithm 1.

    Chains are met in random order; each gets what is drawn between what it must have, so that all `size` are used, and
    what is left.
    """
    starts = np.cumsum([0, *lengths])
    kept, added, remaining = [], 0, int(starts[-1])
    for chain in rng.permutation(len(lengths)):
        n = lengths[chain]
        remaining -= n
        most = min(size - added, n)
        least = min(n, max(0, size - added - remaining))
        taken = int(rng.integers(least, most + 1))
        added += taken
        start = int(starts[chain] + rng.integers(n - taken + 1))
        kept.append(np.arange(start, start + taken))
    return np.sort(np.concatenate(kept))


def spatial(
    ca: np.ndarray, seen: np.ndarray, chain: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """The `size` residues nearest to a random one at an interface: AlphaFold-Multimer, Algorithm 2.

    ca: (N, 3) Å; seen: (N,) where the atom is known, residues without it are last; chain: (N,) whose residue it is.
    Without an interface any residue that was seen is the middle. Residues equally near are taken in their order.
    """
    n = len(ca)
    if n <= size:
        return np.arange(n)
    known = np.flatnonzero(seen)
    if not len(known):
        return np.arange(size)
    squared = np.square(ca[known, None] - ca[None, known]).sum(-1)
    between = (squared < INTERFACE**2) & (chain[known, None] != chain[None, known])
    middles = np.flatnonzero(between.any(axis=1))
    middle = rng.choice(middles if len(middles) else len(known))
    distance = np.full(n, np.inf)
    distance[known] = np.sqrt(squared[middle])
    order = np.argsort(distance + 1e-3 * np.arange(n), kind="stable")
    return np.sort(order[:size])
