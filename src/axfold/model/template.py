"""Templates: Algorithm 2, lines 7 to 13, Algorithms 16 and 17."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from axfold.config import Templates
from axfold.model.atoms import CA, C, N, torsions_of_atom37
from axfold.model.layers import RowUpdate, one_hot_bins
from axfold.model.pair import PairBlock
from axfold.ops.attention import MASKED

RESIDUE_TYPES = 22  # the 20, X and the gap
UNIT_VECTOR = (
    3  # channels that the monomer's weights have but see only zeros (config: use_template_unit_vector)
)


class TorsionEmbedding(nn.Module):
    """Rows of the MSA representation from the templates' torsion angles: Algorithm 2, lines 7 and 8."""

    def __init__(self, c_m: int):
        super().__init__()
        self.features = nn.Linear(RESIDUE_TYPES + 14 + 14 + 7, c_m)
        self.output = nn.Linear(c_m, c_m)

    def forward(
        self,
        aatype: Int[Tensor, "*b t r"],
        positions: Float[Tensor, "*b t r 37 3"],
        mask: Float[Tensor, "*b t r 37"],
    ) -> tuple[Float[Tensor, "*b t r c_m"], Float[Tensor, "*b t r"]]:
        """The rows and their mask, that of psi: it depends on the atoms of one residue alone."""
        sin_cos, alternative, defined = torsions_of_atom37(positions, mask, aatype)
        types = F.one_hot(aatype.long(), RESIDUE_TYPES).to(sin_cos.dtype)
        features = torch.cat([types, sin_cos.flatten(-2), alternative.flatten(-2), defined], dim=-1)
        rows = self.output(self.features(features.to(self.features.weight.dtype)).relu())
        return rows, defined[..., 2].to(rows.dtype)


class TemplatePairEmbedding(RowUpdate):
    """Pair representation t of one template: Algorithm 2, lines 9 and 11, with the stack of Algorithm 16."""

    stage = "template embedding"

    def __init__(self, sizes: Templates):
        super().__init__()
        self.sizes = sizes
        self.features = nn.Linear(sizes.bins + 1 + 2 * RESIDUE_TYPES + UNIT_VECTOR + 1, sizes.c_t)
        self.blocks = nn.ModuleList(
            PairBlock(sizes.c_t, sizes.pair, attention_first=True) for _ in range(sizes.blocks)
        )
        self.norm = nn.LayerNorm(sizes.c_t)

    def update(
        self,
        t: Float[Tensor, "*b i n c_t"],
        beta: Float[Tensor, "*b i 3"],
        beta_mask: Float[Tensor, "*b i"],
        type_: Float[Tensor, "*b i 22"],
        backbone: Float[Tensor, "*b i"],
        betas: Float[Tensor, "*b n 3"],
        beta_masks: Float[Tensor, "*b n"],
        types: Float[Tensor, "*b n 22"],
        backbones: Float[Tensor, "*b n"],
    ) -> Float[Tensor, "*b i n c_t"]:
        sizes, dtype = self.sizes, t.dtype
        bins = one_hot_bins(beta, betas, sizes.min_distance, sizes.max_distance, sizes.bins).to(dtype)
        known = (beta_mask.unsqueeze(-1) * beta_masks.unsqueeze(-2)).unsqueeze(-1)
        complete = (backbone.unsqueeze(-1) * backbones.unsqueeze(-2)).unsqueeze(-1)
        shape = (*bins.shape[:-1], RESIDUE_TYPES)
        features = [
            bins,
            known,
            types.unsqueeze(-3).expand(shape),
            type_.unsqueeze(-2).expand(shape),
            known.new_zeros(*bins.shape[:-1], UNIT_VECTOR),
            complete,
        ]
        return self.features(torch.cat([x.to(dtype) for x in features], dim=-1) * complete.to(dtype))

    def forward(
        self,
        aatype: Int[Tensor, "*b n"],
        atom_masks: Float[Tensor, "*b n 37"],
        pseudo_beta: Float[Tensor, "*b n 3"],
        pseudo_beta_mask: Float[Tensor, "*b n"],
        pair_mask: Float[Tensor, "*b n n"],
    ) -> Float[Tensor, "*b n n c_t"]:
        t = self.rows.zeros("template", pair_mask, *pair_mask.shape, self.sizes.c_t)
        rows = (
            pseudo_beta,
            pseudo_beta_mask,
            F.one_hot(aatype.long(), RESIDUE_TYPES).to(pseudo_beta.dtype),
            atom_masks[..., N] * atom_masks[..., CA] * atom_masks[..., C],
        )
        everyone = dict(zip(("betas", "beta_masks", "types", "backbones"), rows, strict=True))
        axis = t.dim() - 3
        t = self.rows.update(partial(self.update, **everyone), t, *rows, axis=axis)
        for block in self.blocks:
            t = block(t, pair_mask)
        return self.rows.update(self.norm, t, axis=axis)


class TemplateEmbedding(RowUpdate):
    """Adds the templates to the pair representation, which attends to them: Algorithm 17.

    The templates come one by one: what the attention keeps of those before is the running maximum of the
    logits, the sum of the weights, and the weighted sum of the values (in the channels of `seen`). That is more than
    a pair representation, so a single template, whose values are the average, does without.
    """

    stage = "template attention"

    def __init__(self, c_z: int, sizes: Templates):
        super().__init__()
        self.heads, self.c_head = sizes.heads, sizes.c_attention
        self.embed = TemplatePairEmbedding(sizes)
        width = sizes.heads * sizes.c_attention
        self.q = nn.Linear(c_z, width, bias=False)
        self.kv = nn.Linear(sizes.c_t, 2 * width, bias=False)
        self.output = nn.Linear(width, c_z)

    def attend(
        self,
        seen: Float[Tensor, "*b i n c"],
        z: Float[Tensor, "*b i n c_z"],
        t: Float[Tensor, "*b i n c_t"],
        mask: Float[Tensor, "*b"],
    ) -> Float[Tensor, "*b i n c"]:
        """What is kept after one more template t; `mask` is 0 for one that is padding."""
        q = self.q(z).unflatten(-1, (self.heads, -1)) * self.c_head**-0.5
        k, v = self.kv(t).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        logit = (q * k).sum(-1, keepdim=True).to(seen.dtype)
        logit = torch.where(mask[..., None, None, None, None] == 0, MASKED, logit)
        maximum, total, mixed = self._split(seen)
        new = torch.maximum(maximum, logit)
        keep, enter = (maximum - new).exp(), (logit - new).exp()
        return torch.cat([new, total * keep + enter, mixed * keep + enter * v], dim=-1).flatten(-2)

    def update(
        self, z: Float[Tensor, "*b i n c_z"], seen: Float[Tensor, "*b i n c"], present: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b i n c_z"]:
        _, total, mixed = self._split(seen)
        update = self.output((mixed / total).flatten(-2).to(z.dtype))
        return z + update * present[..., None, None, None].to(z.dtype)

    def update_from_one(
        self, z: Float[Tensor, "*b i n c_z"], t: Float[Tensor, "*b i n c_t"], present: Float[Tensor, "*b"]
    ) -> Float[Tensor, "*b i n c_z"]:
        """`update` where t is the only template: softmax gives it the weight 1."""
        _, values = self.kv.weight.chunk(2)
        return z + self.output(F.linear(t, values)) * present[..., None, None, None].to(z.dtype)

    def _split(self, seen: Tensor) -> tuple[Tensor, ...]:
        """Maximum, sum of weights and weighted values of each head."""
        return seen.unflatten(-1, (self.heads, -1)).split([1, 1, self.c_head], dim=-1)

    def forward(
        self,
        z: Float[Tensor, "*b n n c_z"],
        pair_mask: Float[Tensor, "*b n n"],
        aatype: Int[Tensor, "*b t n"],
        atom_masks: Float[Tensor, "*b t n 37"],
        pseudo_beta: Float[Tensor, "*b t n 3"],
        pseudo_beta_mask: Float[Tensor, "*b t n"],
        template_mask: Float[Tensor, "*b t"],
    ) -> Float[Tensor, "*b n n c_z"]:
        """z with its update added, unchanged if all templates are masked. Consumes z."""
        axis, present = z.dim() - 3, (template_mask.sum(-1) > 0).to(z.dtype)

        def embedded(i: int) -> Tensor:
            return self.embed(
                aatype[..., i, :],
                atom_masks[..., i, :, :],
                pseudo_beta[..., i, :, :],
                pseudo_beta_mask[..., i, :],
                pair_mask,
            )

        if aatype.shape[-2] == 1:
            return self.rows.update(partial(self.update_from_one, present=present), z, embedded(0), axis=axis)
        wide = pair_mask.new_empty((), dtype=torch.promote_types(z.dtype, torch.float32))
        seen = self.rows.zeros("attention to templates", wide, *z.shape[:-1], self.heads * (2 + self.c_head))
        seen[..., :: 2 + self.c_head] = 2 * MASKED  # below any logit, a masked one included
        for i in range(aatype.shape[-2]):
            t = embedded(i)
            seen = self.rows.update(partial(self.attend, mask=template_mask[..., i]), seen, z, t, axis=axis)
            del t  # before the next one is made
        return self.rows.update(partial(self.update, present=present), z, seen, axis=axis)
