"""The network: one pass of Algorithm 2. Recycling is a loop over passes, outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axfold.config import Model
from axfold.memory.rows import Rows
from axfold.model.atoms import pseudo_beta
from axfold.model.embed import ExtraMSAEmbedding, MSAEmbedding, PairEmbedding
from axfold.model.evoformer import EvoformerStack
from axfold.model.heads import Heads
from axfold.model.layers import present
from axfold.model.structure import Structure, StructureModule
from axfold.model.template import TemplateEmbedding, TorsionEmbedding

Features = Mapping[str, Tensor]
"""Processed features of one sample of the MSA, by the names of `data/features.py`, without their leading axis."""


@dataclass(frozen=True)
class Recycled:
    """What a pass hands to the next: Algorithm 2, line 22."""

    msa_first_row: Float[Tensor, "*b n c_m"]
    pair: Float[Tensor, "*b n n c_z"]
    positions: Float[Tensor, "*b n 37 3"]


@dataclass(frozen=True)
class Pass:
    """What one pass computes.

    msa: (*b, S, N, c_m), without the templates' rows, of the first sample; single: (*b, N, c_s);
    pair: (*b, N, N, c_z), which may live elsewhere: read it by the network's `rows`; msa_first_row: (*b, N, c_m)
    """

    msa: Tensor
    msa_first_row: Tensor
    single: Tensor
    pair: Tensor
    structure: Structure

    def recycled(self) -> Recycled:
        """For the next pass, which consumes it; without gradients."""
        return Recycled(self.msa_first_row.detach(), self.pair.detach(), self.structure.atom37.detach())


class Trunk(nn.Module):
    """Representations from features: Algorithm 2, lines 5 to 18."""

    def __init__(self, sizes: Model):
        super().__init__()
        self.embed_msa = MSAEmbedding(sizes)
        self.embed_pair = PairEmbedding(sizes)
        self.embed_extra = ExtraMSAEmbedding(sizes)
        templates = sizes.templates
        self.template_pair = TemplateEmbedding(sizes.c_z, templates) if templates else None
        self.template_torsions = (
            TorsionEmbedding(sizes.c_m) if templates and templates.torsion_angles else None
        )
        self.extra_stack = EvoformerStack(sizes.c_e, sizes.c_z, sizes.extra_stack)
        self.evoformer = EvoformerStack(sizes.c_m, sizes.c_z, sizes.evoformer)
        self.single = nn.Linear(sizes.c_m, sizes.c_s)

    def forward(self, features: Features, recycled: Recycled) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """msa (without templates' rows), its first row, single, pair. Consumes the recycled pair.

        The MSA's features may be on the host: their rows are brought as they are embedded.
        """
        weight = self.single.weight
        target = features["target_feat"].to(weight)
        mask = present(features["seq_mask"], weight)
        pair_mask = mask.unsqueeze(-1).expand(*mask.shape, mask.shape[-1])
        if any(mask.stride()):  # padding
            pair_mask = pair_mask * mask.unsqueeze(-2)
        beta = pseudo_beta(recycled.positions, features["aatype"])
        z = self.embed_pair(recycled.pair, target, features["residue_index"], beta)

        if self.template_pair is not None and features["template_aatype"].shape[-2]:
            z = self.template_pair(
                z,
                pair_mask,
                features["template_aatype"],
                features["template_all_atom_masks"],
                features["template_pseudo_beta"],
                features["template_pseudo_beta_mask"],
                features["template_mask"],
            )

        e = self.embed_extra(
            features["extra_msa"], features["extra_has_deletion"], features["extra_deletion_value"]
        )
        _, z = self.extra_stack(e, z, present(features["extra_msa_mask"], weight), pair_mask)
        del e, _  # before the MSA representation is made

        m = self.embed_msa(features["msa_feat"], target, recycled.msa_first_row)
        msa_mask = present(features["msa_mask"], weight)
        sequences = m.shape[-3]
        if self.template_torsions is not None and features["template_aatype"].shape[-2]:
            rows, mask = self.template_torsions(
                features["template_aatype"],
                features["template_all_atom_positions"],
                features["template_all_atom_masks"],
            )
            m, msa_mask = torch.cat([m, rows], dim=-3), torch.cat([msa_mask, mask], dim=-2)
        m, z = self.evoformer(m, z, msa_mask, pair_mask)
        m = m[..., :sequences, :, :]
        first = m[..., 0, :, :].clone()  # what is recycled keeps no other row
        return m, first, self.single(first), z


class AlphaFold(nn.Module):
    """AlphaFold 2: features and what a pass before left to representations and a structure.

    Supplement 1.4, Algorithm 2. `heads` holds the other predictions, each called by who needs it.
    """

    def __init__(self, sizes: Model):
        super().__init__()
        self.sizes = sizes
        self.rows = Rows()
        self.trunk = Trunk(sizes)
        self.structure = StructureModule(sizes.c_s, sizes.c_z, sizes.structure)
        self.heads = Heads(sizes)

    def to_precision(self, dtype: torch.dtype) -> AlphaFold:
        """Weights and activations in `dtype`; the structure module and its confidence are at least float32."""
        wide = torch.promote_types(dtype, torch.float32)
        for module in (self.trunk, self.structure, *self.heads.children()):
            is_wide = module is self.structure or module is self.heads.confidence  # never rounded to less
            module.to(wide if is_wide else dtype)
        return self

    def forward(self, samples: Sequence[Features], recycled: Recycled | None = None) -> Pass:
        """One pass over one or more samples of the features, whose representations are averaged (lines 4 to 19).

        Without `recycled` it is the first pass, which recycles zeros. Consumes `recycled`.
        """
        recycled = recycled or self._nothing(samples[0])
        whole = self.rows.whole
        msa, first, single, pair = self.trunk(
            samples[0], recycled if len(samples) == 1 else self._copy(recycled)
        )
        for i, sample in enumerate(samples[1:], start=2):
            pair = whole(pair)
            _, *others, other = self.trunk(sample, recycled if i == len(samples) else self._copy(recycled))
            first, single = (x + y for x, y in zip((first, single), others, strict=True))
            pair = pair + whole(other)
        if len(samples) > 1:
            first, single, pair = first / len(samples), single / len(samples), pair / len(samples)
        with self.rows.rereading(pair):  # every layer reads it
            structure = self.structure(single, pair, samples[0]["aatype"], samples[0]["seq_mask"])
        return Pass(msa, first, single, pair, structure)

    def snapshot(self, recycled: Recycled, device: str | None = "cpu") -> Recycled:
        """A copy in the host's memory, or where it is now (None), which a pass leaves as it is."""
        pair = self.rows.whole(recycled.pair)
        pair = pair.to(device or pair.device, copy=pair.data_ptr() == recycled.pair.data_ptr())
        first, positions = (
            x.to(device or x.device, copy=True) for x in (recycled.msa_first_row, recycled.positions)
        )
        return Recycled(first, pair, positions)

    def placed(self, recycled: Recycled) -> Recycled:
        """A copy of a snapshot where this network's tensors live."""
        weight = self.trunk.single.weight
        first, positions = (x.to(weight.device) for x in (recycled.msa_first_row, recycled.positions))
        return Recycled(first, self.rows.place("pair", weight, recycled.pair), positions)

    def _nothing(self, features: Features) -> Recycled:
        aatype, weight = features["aatype"], self.trunk.single.weight
        shape, n = aatype.shape, aatype.shape[-1]
        return Recycled(
            weight.new_zeros(*shape, self.sizes.c_m),
            self.rows.zeros("pair", weight, *shape, n, self.sizes.c_z),
            self.structure.project.weight.new_zeros(*shape, 37, 3),
        )

    def _copy(self, recycled: Recycled) -> Recycled:
        """For a sample that is not the last: a pass consumes the recycled pair."""
        pair = self.rows.whole(recycled.pair).clone()
        return Recycled(recycled.msa_first_row, pair, recycled.positions)
