"""How well a network predicts known structures: its scores chain by chain, and their means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from math import isnan, nan
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from axfold import metrics
from axfold.model.alphafold import AlphaFold
from axfold.model.atoms import CA
from axfold.network import passes
from axfold.train.feed import Feed
from axfold.train.labels import Labels
from axfold.train.loss import alternative_is_better
from axfold.train.ranks import Ranks

_THREADS = 4  # that score while the device predicts
LENGTHS = (64, 128, 256)
"""Residues at which the classes of length end; the last has no end."""


@dataclass(frozen=True)
class Score:
    """Of one chain's prediction. All but `rmsd` (Å, C-alpha) and the last are from 0 to 1; NaN where undefined.

    lddt: over all atoms that are known, equal ones named as fits best; plddt: what the network expects of lddt_ca
    side_chains: whether they were given
    """

    length: float
    lddt_ca: float
    lddt: float
    gdt_ts: float
    gdt_ha: float
    tm: float
    rmsd: float
    plddt: float
    side_chains: float


NAMES = tuple(field.name for field in fields(Score))


@dataclass(frozen=True)
class _Predicted:
    """One chain on the host, without padding."""

    atom37: Tensor
    atom14: Tensor
    plddt: Tensor
    labels: Labels


def score(atom37: Tensor, atom14: Tensor, plddt: Tensor, labels: Labels) -> Score:
    """Of predicted positions (N, 37, 3) and (N, 14, 3), Å, and pLDDT (N,) from 0 to 1, on the CPU."""
    inside = labels.mask != 0
    known = labels.atom37_mask[..., CA] * labels.mask
    x, y = atom37[:, CA], labels.atom37[:, CA]
    exchange = alternative_is_better(atom14, labels)[..., None]
    true = torch.where(exchange[..., None], labels.alternative_atom14, labels.atom14)
    mask = torch.where(exchange, labels.alternative_atom14_mask, labels.atom14_mask)
    found = metrics.superposed(x, y, known)
    return Score(
        length=float(inside.sum()),
        lddt_ca=float(metrics.lddt(x[:, None], y[:, None], known[:, None])),
        lddt=float(metrics.lddt(atom14[inside], true[inside], mask[inside])),
        gdt_ts=found.gdt_ts,
        gdt_ha=found.gdt_ha,
        tm=found.tm,
        rmsd=metrics.rmsd(x, y, known) if known.sum() > 0 else nan,
        plddt=float(plddt[inside].mean()),
        side_chains=float(labels.backbone_only == 0),
    )


PAIRS = 1 << 18
"""As many pairs of residues are predicted at once, in several chains."""


def groups(sizes: Sequence[int], pairs: int = PAIRS) -> list[list[int]]:
    """Places of chains that are padded to the same size, so many together as `pairs` allows."""
    found: list[list[int]] = []
    for size in sorted(set(sizes)):
        alike = [place for place, own in enumerate(sizes) if own == size]
        count = max(pairs // size**2, 1)
        found += [alike[start : start + count] for start in range(0, len(alike), count)]
    return found


def validate(
    network: AlphaFold,
    examples: Dataset[Any],
    order: Sequence[Sequence[int]],
    stack: Callable[[Sequence[Any]], Any],
    ranks: Ranks,
    *,
    workers: int = 0,
    report: Callable[[float], None] = lambda share: None,
) -> dict[int, Score]:
    """Scores of the chains, by their places in `examples`; every process gets all of them.

    network: in evaluation. order: places of the chains that are predicted together; one alone has no batch axis, which
    is how a prediction runs. Their passes are those that `examples` brings.
    """
    mine = order[ranks.rank :: ranks.size]
    count = 1 + max((i for group in order for i in group), default=-1)
    table = torch.zeros(count, len(NAMES), dtype=torch.float64)
    plan = [list(group) for group in mine]
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        Feed(examples, plan, stack, ranks.device, workers=workers) as feed,
    ):
        waiting: list[tuple[int, Future[Score]]] = []
        for done, group in enumerate(plan):
            for place, chain in zip(group, _predict(network, next(feed), len(group)), strict=True):
                waiting.append(
                    (place, pool.submit(score, chain.atom37, chain.atom14, chain.plddt, chain.labels))
                )
            report((done + 1) / len(plan))
        for place, future in waiting:
            table[place] = torch.tensor(list(asdict(future.result()).values()), dtype=torch.float64)
    table = ranks.sum(table.to(ranks.device)).cpu()
    return {place: Score(*table[place].tolist()) for group in order for place in group}


def _predict(network: AlphaFold, example: Any, chains: int) -> Iterator[_Predicted]:
    *_, last = passes(network, ([features] for features in example.passes))
    with torch.inference_mode():
        shares = network.heads.confidence(last.structure.single).float().softmax(-1)
        centres = (torch.arange(shares.shape[-1], device=shares.device) + 0.5) / shares.shape[-1]
        plddt = (shares * centres).sum(-1)
    predicted = _Predicted(last.structure.atom37, last.structure.atom14, plddt, example.labels)
    on_host = _mapped(predicted, lambda x: x.cpu())
    for i in range(chains):
        yield on_host if chains == 1 else _mapped(on_host, itemgetter(i))


def _mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same dataclass of other tensors."""
    if isinstance(tree, Tensor):
        return change(tree)
    return type(tree)(**{field.name: _mapped(getattr(tree, field.name), change) for field in fields(tree)})


def mean(scores: Iterable[Score]) -> dict[str, float]:
    """Means of what is defined, and `chains`, their number."""
    scores = list(scores)
    means = {"chains": float(len(scores))}
    for name in NAMES:
        values = [x for s in scores if not isnan(x := getattr(s, name))]
        means[name] = sum(values) / len(values) if values else nan
    return means


def by_class(scores: Mapping[Any, Score]) -> dict[str, dict[str, float]]:
    """Means of all chains, of those with and without side chains, and of classes of length."""
    every = list(scores.values())
    classes = {
        "all": every,
        "full atom": [s for s in every if s.side_chains],
        "backbone": [s for s in every if not s.side_chains],
    }
    for low, high in zip((0, *LENGTHS), (*LENGTHS, None), strict=True):
        name = f"over {low} residues" if high is None else f"{low + 1} to {high} residues"
        classes[name] = [s for s in every if s.length > low and (high is None or s.length <= high)]
    return {name: mean(some) for name, some in classes.items() if some}
