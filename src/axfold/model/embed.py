"""What the representations start from: Algorithms 3, 4, 5 and 32, and the extra MSA of Algorithm 2."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from axfold.config import Model
from axfold.model.layers import RowUpdate, one_hot_bins


class MSAEmbedding(RowUpdate):
    """MSA representation from the clustered MSA, the sequence and the recycled first row.

    Algorithm 3, line 3; Algorithm 32, line 2.
    """

    stage = "MSA embedding"

    def __init__(self, sizes: Model):
        super().__init__()
        self.c_m = sizes.c_m
        self.msa = nn.Linear(sizes.msa_features, sizes.c_m)
        self.target = nn.Linear(sizes.target_features, sizes.c_m)
        self.norm_recycled = nn.LayerNorm(sizes.c_m)

    def update(
        self,
        m: Float[Tensor, "*b s r c_m"],
        msa_feat: Float[Tensor, "*b s r f"],
        first: Float[Tensor, "*b s"],
        target: Float[Tensor, "*b r c_m"],
        recycled: Float[Tensor, "*b r c_m"],
    ) -> Float[Tensor, "*b s r c_m"]:
        of_all = self.msa(msa_feat.to(m.dtype)) + target.unsqueeze(-3)
        return of_all + first[..., None, None] * recycled.unsqueeze(-3)

    def forward(
        self,
        msa_feat: Float[Tensor, "*b s r f"],
        target_feat: Float[Tensor, "*b r t"],
        recycled: Float[Tensor, "*b r c_m"],
    ) -> Float[Tensor, "*b s r c_m"]:
        """`msa_feat` may be of another type and on another device than the result."""
        m = recycled.new_empty(*msa_feat.shape[:-1], self.c_m)
        first = m.new_zeros(m.shape[:-2])
        first[..., 0] = 1
        update = partial(self.update, target=self.target(target_feat), recycled=self.norm_recycled(recycled))
        return self.rows.update(update, m, msa_feat, first, axis=m.dim() - 3)


class PairEmbedding(RowUpdate):
    """Pair representation from the sequence, the relative positions, and the recycled pair and positions.

    Algorithm 3, lines 1, 2 and 4; Algorithms 4 and 5; Algorithm 32, lines 1, 3 and 4. The recycled pair
    becomes the new one row by row. AlphaFold adds these terms in the first pass too, of zeros.
    """

    stage = "pair embedding"

    def __init__(self, sizes: Model):
        super().__init__()
        self.sizes = sizes
        self.left = nn.Linear(sizes.target_features, sizes.c_z)
        self.right = nn.Linear(sizes.target_features, sizes.c_z)
        self.relative = nn.Linear(2 * sizes.max_relative + 1, sizes.c_z)
        self.distances = nn.Linear(sizes.recycle_bins, sizes.c_z)
        self.norm_recycled = nn.LayerNorm(sizes.c_z)

    def update(
        self,
        recycled: Float[Tensor, "*b i n c_z"],
        left: Float[Tensor, "*b i c_z"],
        position: Float[Tensor, "*b i 3"],
        index: Int[Tensor, "*b i"],
        right: Float[Tensor, "*b n c_z"],
        positions: Float[Tensor, "*b n 3"],
        indices: Int[Tensor, "*b n"],
    ) -> Float[Tensor, "*b i n c_z"]:
        z = left.unsqueeze(-2) + right.unsqueeze(-3)
        sizes = self.sizes
        bins = one_hot_bins(position, positions, sizes.recycle_min, sizes.recycle_max, sizes.recycle_bins)
        z = z + self.distances(bins.to(z.dtype))
        z = z + self.norm_recycled(recycled)
        offset = index.unsqueeze(-1) - indices.unsqueeze(-2) + sizes.max_relative
        place = offset.clamp(0, 2 * sizes.max_relative)
        if z.requires_grad:  # Algorithms 4 and 5 as they are: a product has the faster gradient
            classes = torch.arange(2 * sizes.max_relative + 1, device=z.device)
            return z + self.relative((place.unsqueeze(-1) == classes).to(z.dtype))
        return z + F.embedding(place, self.relative.weight.t()) + self.relative.bias  # the same, looked up

    def forward(
        self,
        recycled: Float[Tensor, "*b n n c_z"],
        target_feat: Float[Tensor, "*b n t"],
        residue_index: Int[Tensor, "*b n"],
        pseudo_beta: Float[Tensor, "*b n 3"],
    ) -> Float[Tensor, "*b n n c_z"]:
        """Consumes `recycled`. `pseudo_beta` are the recycled positions in Å."""
        left, right = self.left(target_feat), self.right(target_feat)
        update = partial(self.update, right=right, positions=pseudo_beta, indices=residue_index)
        return self.rows.update(update, recycled, left, pseudo_beta, residue_index, axis=recycled.dim() - 3)


class ExtraMSAEmbedding(RowUpdate):
    """Extra MSA representation: Algorithm 2, line 15. The one-hot residue types are looked up, never made."""

    stage = "extra MSA embedding"

    def __init__(self, sizes: Model):
        super().__init__()
        self.c_e = sizes.c_e
        self.features = nn.Linear(sizes.extra_msa_features, sizes.c_e)

    def update(
        self,
        e: Float[Tensor, "*b s r c_e"],
        extra_msa: Int[Tensor, "*b s r"],
        has_deletion: Float[Tensor, "*b s r"],
        deletion_value: Float[Tensor, "*b s r"],
    ) -> Float[Tensor, "*b s r c_e"]:
        weight = self.features.weight.t()
        deletions = torch.stack([has_deletion, deletion_value], dim=-1).to(e.dtype)
        return F.embedding(extra_msa, weight[:-2]) + deletions @ weight[-2:] + self.features.bias

    def forward(
        self,
        extra_msa: Int[Tensor, "*b s r"],
        has_deletion: Float[Tensor, "*b s r"],
        deletion_value: Float[Tensor, "*b s r"],
    ) -> Float[Tensor, "*b s r c_e"]:
        """The features may be of another type and on another device than the result."""
        e = self.rows.zeros("extra MSA", self.features.weight, *extra_msa.shape, self.c_e)
        return self.rows.update(self.update, e, extra_msa, has_deletion, deletion_value, axis=e.dim() - 3)
