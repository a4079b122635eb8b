"""Samples as the data of training makes them, of proteins that are made up, and a network small enough for them."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from axfold.config import Config, Data, Heads, Model, MsaStack, StructureModule, Training, TriangleStack
from axfold.model.rigid import Rigid
from axfold.residues import RESTYPES
from axfold.train.labels import Labels, label

PAIR = TriangleStack(heads=2, c_attention=4, c_multiplication=8, transition_factor=2)
STACK = MsaStack(blocks=1, heads=2, c_attention=4, c_outer_product=4, transition_factor=2, pair=PAIR)
TINY = Model(
    c_m=16,
    c_z=12,
    c_e=8,
    c_s=20,
    extra_stack=replace(STACK, global_column_attention=True),
    evoformer=STACK,
    structure=StructureModule(layers=2, heads=2, c_hidden=4, c_angles=8),
    heads=Heads(aligned_error=True),
)
CONFIG = Config(name="tiny", model=TINY, data=Data(msa_clusters=4, extra_msa=5), recycles=1)
TRAINING = Training(crop=12, msa_clusters=4, extra_msa=5, recycles=1, batch=4, at_once=2, warm_up=8)


@dataclass(frozen=True)
class Example:
    """As `axfold.train.examples` has it."""

    name: str
    passes: tuple[dict[str, Tensor], ...]
    labels: Labels


class Examples(Dataset):
    """Sample i depends on seed and i alone; the passes of a batch are as many, drawn from seed and batch."""

    def __init__(self, seed: int = 0, batch: int = 4, crop: int = 12, passes: int = 2, length: int = 9):
        self.seed, self.batch, self.crop, self.passes, self.length = seed, batch, crop, passes, length

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Example:
        passes = 1 + (self.seed + i // self.batch) % self.passes
        return make(self.seed * 1000 + i, self.length + i % 3, self.crop, passes)


def make(seed: int, n: int, crop: int, passes: int, clusters: int = 4, extra: int = 5) -> Example:
    """A helix of n residues, padded to `crop`; the backbone with C-beta is known."""
    g = torch.Generator().manual_seed(seed)
    aatype = torch.randint(0, 20, (n,), generator=g)
    positions, mask = torch.zeros(crop, 37, 3), torch.zeros(crop, 37)
    for atom, (radius, turn, rise) in enumerate(
        [(1.6, 0.0, 0.0), (2.3, 0.5, 0.9), (1.7, 1.0, 2.0), (3.3, 0.2, 1.2)]
    ):
        angle = torch.arange(n) * 1.745 + turn
        positions[:n, atom] = torch.stack(
            [radius * angle.cos(), radius * angle.sin(), 1.5 * torch.arange(n) + rise], dim=-1
        )
        mask[:n, atom] = 1
    mask[:n, 3] = (aatype != RESTYPES.index("G")).float()
    padded = torch.nn.functional.pad
    types = padded(aatype, (0, crop - n))
    residues = padded(torch.ones(n), (0, crop - n))
    index = torch.arange(crop)

    def features() -> dict[str, Tensor]:
        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=g)

        return {
            "aatype": types,
            "residue_index": index,
            "seq_mask": residues,
            "target_feat": torch.nn.functional.one_hot(types + 1, 22).float() * residues[:, None],
            "msa_feat": rand(clusters, crop, 49) * residues[:, None],
            "msa_mask": residues.expand(clusters, crop).clone(),
            "extra_msa": torch.randint(0, 22, (extra, crop), generator=g),
            "extra_has_deletion": (rand(extra, crop) > 0.8).float() * residues,
            "extra_deletion_value": rand(extra, crop) * residues,
            "extra_msa_mask": residues.expand(extra, crop).clone(),
        }

    known = label(
        types,
        index,
        residues,
        positions,
        mask,
        torch.tensor(2.0),
        torch.tensor(float(seed % 2)),
        torch.randint(0, 21, (clusters, crop), generator=g),
        (torch.rand(clusters, crop, generator=g) < 0.15).float() * residues,
    )
    return Example(f"helix_{seed}", tuple(features() for _ in range(passes)), known)


def stack(examples: list[Example]) -> Example:
    def together(values: list[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return torch.stack(values)
        if isinstance(first, Rigid):
            return Rigid(*(torch.stack([getattr(x, n) for x in values]) for n in ("rotation", "translation")))
        if isinstance(first, dict):
            return {key: together([x[key] for x in values]) for key in first}
        raise TypeError(first)

    passes = tuple(together(list(each)) for each in zip(*(x.passes for x in examples), strict=True))
    labels = {f.name: together([getattr(x.labels, f.name) for x in examples]) for f in fields(Labels)}
    return Example(", ".join(x.name for x in examples), passes, Labels(**labels))
