"""Which chain an example is made of: the filters and weights of supplement 1.2.5, and an order that can be resumed.

Nothing is remembered from one example to the next: what stands at position i depends on the seed and i alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from axfold.config import Sampling
from axfold.errors import InputError
from axfold.train.store import EXPERIMENTAL, Row

_ORDER, _RECYCLES, _EXAMPLE = range(3)  # what a random stream is for


def stream(seed: int, purpose: int, position: int) -> np.random.Generator:
    """Random numbers for one purpose (`_ORDER`, ...) at one position."""
    return np.random.default_rng([seed, purpose, position])


def refused(row: Row, sampling: Sampling) -> str | None:
    """Why a chain is not trained on (supplement 1.2.5), or None. A structure without resolution is not coarse."""
    if row.resolution >= sampling.coarsest_resolution:
        return f"its resolution is {sampling.coarsest_resolution:g} Å or coarser"
    if row.commonest > sampling.commonest_share:
        return f"one residue type is more than {sampling.commonest_share:.0%} of it"
    return None


def weights(
    rows: Sequence[Row],
    split: str = "train",
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    shares: Mapping[str, float] | None = None,
) -> np.ndarray:
    """How probable each chain is; they add up to 1. Chains of other splits and refused ones have 0.

    Within a set a chain weighs by its length, and by the inverse of how many chains its cluster has there (1.2.5).
    `shares` are those of the sets; by default predictions have `sampling.distillation`, as many each, and where there
    are only experiments or only predictions those have all. Raises InputError where nothing is left.
    """
    used = [row.split == split and refused(row, sampling) is None for row in rows]
    sizes = Counter(
        (row.set, row.cluster or f"\0{row.name}") for row, use in zip(rows, used, strict=True) if use
    )
    found = np.zeros(len(rows))
    for place, (row, use) in enumerate(zip(rows, used, strict=True)):
        if use:
            length = max(min(row.length, sampling.longest), sampling.shortest) / sampling.longest
            found[place] = length / sizes[row.set, row.cluster or f"\0{row.name}"]
    sets = sorted({name for name, _ in sizes})
    if not sets:
        raise InputError(
            f"The store has no chain of the split {split} that passes the filters of supplement 1.2.5."
        )
    if shares is None:
        shares = _shares(sets, sampling.distillation)
    elif unknown := sorted(name for name in shares if name not in sets):
        raise InputError(f"The store's split {split} has no set {unknown[0]}; it has {', '.join(sets)}.")
    for name in sets:
        of_set = np.array([row.set == name for row in rows])
        found[of_set] *= shares.get(name, 0.0) / found[of_set].sum()
    return found / found.sum()


def _shares(sets: Sequence[str], distillation: float) -> dict[str, float]:
    predicted = [name for name in sets if name != EXPERIMENTAL]
    if len(predicted) == len(sets):
        distillation = 1.0
    shares = {name: distillation / len(predicted) for name in predicted}
    return {EXPERIMENTAL: 1.0 - sum(shares.values()), **shares}


class Order:
    """`order[i]` is the place of the chain at position i, for any i, by `weights`.

    Positions come in epochs of as many as there are chains with a weight. In each a chain of weight w is met w times
    their number, rounded up or down: chances are those of independent draws, and what an epoch holds varies less.
    """

    def __init__(self, weights: np.ndarray, seed: int):
        self.chains = np.flatnonzero(weights)
        self._limits = np.cumsum(weights[self.chains])
        self._limits /= self._limits[-1]
        self._seed = seed
        self._epoch = -1
        self._drawn = self.chains  # of the epoch that was asked for last

    def __len__(self) -> int:
        """Positions in an epoch."""
        return len(self.chains)

    def __getitem__(self, position: int) -> int:
        epoch, at = divmod(position, len(self.chains))
        if epoch != self._epoch:
            rng = stream(self._seed, _ORDER, epoch)
            n = len(self.chains)
            points = (rng.permutation(n) + rng.random()) / n
            self._drawn = self.chains[np.searchsorted(self._limits, points, side="right").clip(max=n - 1)]
            self._epoch = epoch
        return int(self._drawn[at])


def recycles(seed: int, batch: int, most: int) -> int:
    """How often the batch of that number is recycled: 0 to `most`, all equally likely (supplement 1.10)."""
    return int(stream(seed, _RECYCLES, batch).integers(most + 1))


def example(seed: int, position: int) -> np.random.Generator:
    """All else that is random in the example at `position`."""
    return stream(seed, _EXAMPLE, position)
