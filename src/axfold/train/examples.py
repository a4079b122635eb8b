"""Examples to train on: features of a random piece of a chain for each pass of recycling, and its labels.

An example depends on the seed, its position and the store alone: any process can make it, at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from axfold import residues
from axfold.config import Data, Sampling
from axfold.data import pipelines, steps
from axfold.data.features import FEATURES, Features
from axfold.data.templates import TemplateFeatures
from axfold.model.rigid import Rigid
from axfold.train import crop as crops
from axfold.train import sampling as orders
from axfold.train.labels import Labels, label
from axfold.train.store import EXPERIMENTAL, Chain, Store

_N, _CA, _C, _CB = (residues.ATOM_INDEX[name] for name in ("N", "CA", "C", "CB"))
_READ = tuple(name for name, feature in FEATURES.items() if feature.read)
_VARYING = tuple(name for name in _READ if {"S", "E"} & set(FEATURES[name].shape))


@dataclass(frozen=True)
class Example:
    """One chain's piece, padded.

    passes: the processed features of each pass of recycling by the names of `data/features.py`, of which the last is
        trained on; (crop, ...) residues, `data.msa_clusters` and `data.extra_msa` rows, `data.templates` templates
    labels: padded alike, with the MSA of the last pass
    """

    name: str
    passes: tuple[dict[str, Tensor], ...]
    labels: Labels


@dataclass(frozen=True)
class Batch:
    """Examples of as many passes, stacked: every tensor has a leading axis."""

    names: tuple[str, ...]
    passes: tuple[dict[str, Tensor], ...]
    labels: Labels

    def __len__(self) -> int:
        return len(self.names)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With `change` of every tensor; one that several passes share is changed once."""
        done: dict[int, Tensor] = {}

        def once(tensor: Tensor) -> Tensor:
            if id(tensor) not in done:
                done[id(tensor)] = change(tensor)
            return done[id(tensor)]

        passes = tuple({name: once(value) for name, value in one.items()} for one in self.passes)
        return Batch(self.names, passes, _map_labels([self.labels], lambda values: once(values[0])))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """What DataLoader calls."""
        return self.map(lambda tensor: tensor.pin_memory())


def stack(examples: Sequence[Example]) -> Batch:
    """Raises ValueError unless all have as many passes."""
    done: dict[tuple[int, ...], Tensor] = {}  # passes share what doesn't depend on the MSA

    def together(tensors: list[Tensor]) -> Tensor:
        key = tuple(map(id, tensors))
        if key not in done:
            done[key] = torch.stack(tensors)
        return done[key]

    passes = tuple(
        {name: together([one[name] for one in several]) for name in several[0]}
        for several in zip(*(example.passes for example in examples), strict=True)
    )
    labels = _map_labels([example.labels for example in examples], together)
    return Batch(tuple(example.name for example in examples), passes, labels)


def _map_labels(labels: Sequence[Labels], change: Callable[[list[Tensor]], Tensor]) -> Labels:
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(Labels)):
        values = [getattr(one, name) for one in labels]
        if isinstance(values[0], Rigid):
            found[name] = Rigid(
                change([value.rotation for value in values]), change([value.translation for value in values])
            )
        else:
            found[name] = change(values)
    return Labels(**found)


class Examples(Dataset[Example]):
    """`examples[i]` for any i from 0: of the chain that the order has there.

    store: where chains are from; their chances are `sampling.weights(...)` unless `weights` says others
    crop: residues of a piece, to which shorter chains are padded
    recycles: at most; how many is drawn for every `batch` examples together (supplement 1.10)
    """

    def __init__(
        self,
        store: Store,
        *,
        data: Data,
        crop: int,
        recycles: int,
        batch: int,
        seed: int,
        split: str = "train",
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        weights: np.ndarray | None = None,
    ):
        self.store = store
        self.data = data
        self.crop = crop
        self.recycles = recycles
        self.batch = batch
        self.seed = seed
        self.sampling = sampling
        self.order = orders.Order(
            orders.weights(store.rows, split, sampling) if weights is None else weights, seed
        )

    def __len__(self) -> int:
        """Examples in an epoch; positions go on behind it."""
        return len(self.order)

    def __getitem__(self, position: int) -> Example:
        rng = orders.example(self.seed, position)
        chain = self.store[self.order[position]]
        clamped = bool(rng.random() >= self.sampling.unclamped)
        kept = crops.contiguous(len(chain.aatype), self.crop, rng, clamped=clamped)
        once = steps.run(training_steps(chain, self.sampling, self.data), chain_features(chain), rng)
        passes = 1 + orders.recycles(self.seed, position // self.batch, self.recycles)
        return _example(chain, once, kept, passes, self.crop, self.data, self.sampling, rng, float(clamped))


class HeldOut(Dataset[Example]):
    """The chains of a split that `crop` residues hold, each once, in the store's order, whole, for validation.

    Features are those of a prediction: no rows are deleted, and every example has `recycles` + 1 passes.
    `longer` names the chains that are left out.
    """

    def __init__(
        self,
        store: Store,
        *,
        data: Data,
        crop: int,
        recycles: int,
        seed: int,
        split: str = "valid",
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    ):
        self.store = store
        self.data = data
        self.crop = crop
        self.recycles = recycles
        self.seed = seed
        self.sampling = sampling
        of_split = [place for place, row in enumerate(store.rows) if row.split == split]
        self.places = tuple(place for place in of_split if store.rows[place].length <= crop)
        self.longer = tuple(store.rows[place].name for place in of_split if store.rows[place].length > crop)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, position: int) -> Example:
        if not 0 <= position < len(self):
            raise IndexError(position)
        rng = orders.example(self.seed, position)
        chain = self.store[self.places[position]]
        once = steps.run((first_templates(chain, self.data),), chain_features(chain), rng)
        kept = np.arange(len(chain.aatype))
        return _example(chain, once, kept, 1 + self.recycles, self.crop, self.data, self.sampling, rng, 1.0)


def chain_features(chain: Chain) -> dict[str, np.ndarray]:
    """What `steps.query_features` makes of a query; a chain without alignment is the only row of its MSA."""
    n = len(chain.aatype)
    alone = not len(chain.msa)
    return {
        "aatype": chain.aatype.astype(np.int32),
        "residue_index": chain.residue_index,
        "seq_length": np.array(n, np.int32),
        "seq_mask": np.ones(n, np.float32),
        "msa": chain.aatype[None] if alone else chain.msa,
        "deletion_matrix": np.zeros((1, n), np.uint8) if alone else chain.deletions,
    }


def training_steps(chain: Chain, sampling: Sampling, data: Data) -> tuple[steps.Step, ...]:
    """Once an example: what is left of the alignment, and which templates there are."""
    distilled = (steps.thin_rows(sampling.distillation_rows),) if chain.set != EXPERIMENTAL else ()
    blocks = steps.delete_blocks(sampling.deleted_blocks, sampling.deleted_share)
    return (*distilled, blocks, random_templates(chain, data))


def random_templates(chain: Chain, data: Data) -> steps.Step:
    """As many random ones of the chain's templates as is drawn, `data.templates` at most (supplement 1.2.3)."""

    def step(features: Features, rng: np.random.Generator) -> Features:
        found = len(chain.templates)
        taken = rng.permutation(found)[: min(int(rng.integers(found + 1)), data.templates)]
        return {**features, **_template_features(chain, taken.tolist(), data)}

    return step


def first_templates(chain: Chain, data: Data) -> steps.Step:
    """As for a prediction: the best ones."""

    def step(features: Features, _rng: np.random.Generator) -> Features:
        taken = range(min(len(chain.templates), data.templates))
        return {**features, **_template_features(chain, taken, data)}

    return step


def _template_features(chain: Chain, taken: Iterable[int], data: Data) -> Features:
    if not data.templates:
        return {}
    stacked = TemplateFeatures.stack([chain.templates[i] for i in taken], len(chain.aatype))
    return stacked.features(data.templates)


def pass_steps(chain: Chain, kept: np.ndarray, data: Data, sampling: Sampling) -> tuple[steps.Step, ...]:
    """Once a pass: as `pipelines.sampling`, with the crop."""
    drawn: tuple[steps.Step, ...] = ()
    if not len(chain.msa) and chain.profile is not None:
        drawn = (steps.draw_rows(chain.profile, sampling.profile_rows),)
    return (
        *drawn,
        steps.sample_rows(max(data.msa_clusters - data.templates, 1)),
        steps.mask_msa(data),
        steps.assign_clusters,
        steps.crop_residues(kept),
        steps.summarize_clusters,
        steps.crop_extra(data.extra_msa),
        steps.make_msa_feat,
        steps.finish,
    )


def _example(
    chain: Chain,
    once: Features,
    kept: np.ndarray,
    passes: int,
    crop: int,
    data: Data,
    sampling: Sampling,
    rng: np.random.Generator,
    clamped: float,
) -> Example:
    more = pipelines.TEMPLATES if data.templates else ()
    once = steps.run((*pipelines.MONOMER, *more), once, rng)
    sampled = pass_steps(chain, kept, data, sampling)
    found: list[dict[str, Tensor]] = []
    for _ in range(passes):
        features = steps.run(sampled, once, rng)
        names = _VARYING if found else _READ
        padded = {name: _padded(features[name], name, crop, data) for name in names if name in features}
        found.append({**found[0], **padded} if found else padded)
    return Example(chain.name, tuple(found), _labels(chain, features, kept, crop, data, clamped))


def _padded(value: np.ndarray, name: str, crop: int, data: Data) -> Tensor:
    """With zeros behind what there is of residues, rows and templates."""
    sizes = {
        "N": crop,
        "S": max(data.msa_clusters - data.templates, 1),
        "E": max(data.extra_msa, 1),
        "T": data.templates,
    }
    shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in FEATURES[name].shape)
    return torch.from_numpy(_in_zeros(value, shape))


def _in_zeros(value: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if value.shape == tuple(shape):
        return np.ascontiguousarray(value)
    padded = np.zeros(shape, value.dtype)
    padded[tuple(map(slice, value.shape))] = value
    return padded


def _labels(
    chain: Chain, features: Features, kept: np.ndarray, crop: int, data: Data, clamped: float
) -> Labels:
    positions, mask = chain.positions[kept], chain.mask[kept]
    if chain.backbone_only:
        positions, mask = with_beta(positions, mask, chain.aatype[kept])
    rows = max(data.msa_clusters - data.templates, 1)

    def tensor(value: np.ndarray, *shape: int) -> Tensor:
        return torch.from_numpy(_in_zeros(value, shape))

    return label(
        tensor(features["aatype"], crop),
        tensor(features["residue_index"], crop),
        tensor(features["seq_mask"], crop),
        tensor(positions, crop, 37, 3),
        tensor(mask, crop, 37),
        torch.tensor(chain.resolution if chain.set == EXPERIMENTAL else 0.0),
        torch.tensor(clamped),
        tensor(features["true_msa"], rows, crop),
        tensor(features["bert_mask"], rows, crop),
        torch.tensor(float(chain.backbone_only)),
    )


def with_beta(positions: np.ndarray, mask: np.ndarray, aatype: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 37, 3) Å and (N, 37) with C-beta at its ideal place where N, CA and C are known and it isn't.

    What looks at distances takes C-beta, and a backbone determines it to a tenth of an Å.
    """
    n, ca, c = positions[:, _N], positions[:, _CA], positions[:, _C]
    known = mask[:, [_N, _CA, _C]].all(axis=1) & (mask[:, _CB] == 0)
    known &= residues.ATOM37_MASK[aatype, _CB] > 0
    x = _unit(c - ca)
    y = _unit((n - ca) - x * ((n - ca) * x).sum(-1, keepdims=True))
    frame = np.stack([x, y, np.cross(x, y)], axis=-1)
    ideal = residues.ATOM14_POSITIONS[aatype, residues.ATOM37_TO_ATOM14[aatype, _CB]]
    positions, mask = positions.copy(), mask.copy()
    positions[known, _CB] = (ca + (frame @ ideal[..., None])[..., 0])[known]
    mask[known, _CB] = 1
    return positions, mask


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-8)
