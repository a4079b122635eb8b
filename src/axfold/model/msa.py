"""Updates of the MSA representation, and the pair representation's update from it: Algorithms 7 to 10 and 19."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axfold import ops
from axfold.memory.rows import narrowed
from axfold.model.layers import GatedAttention, RowUpdate


class MSARowAttention(RowUpdate):
    """Attention among the residues of a sequence, biased by the pair representation: Algorithm 7."""

    stage = "MSA row attention"

    def __init__(self, c_m: int, c_z: int, c_head: int, heads: int, dropout: float = 0.15):
        super().__init__()
        self.norm, self.norm_pair = nn.LayerNorm(c_m), nn.LayerNorm(c_z)
        self.bias = nn.Linear(c_z, heads, bias=False)
        self.attention = GatedAttention(c_m, c_head, heads, dropout)  # Algorithm 6, line 2: row-wise

    def prepare(self, z: Float[Tensor, "*b i j c_z"]) -> Float[Tensor, "*b h i j"]:
        norm = self.norm_pair
        return ops.normed_linear(z, norm.weight, norm.bias, self.bias.weight).movedim(-1, -3)

    def update(
        self, m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"], bias: Float[Tensor, "*b h r r"]
    ) -> Float[Tensor, "*b s r c_m"]:
        return self.attention(m, self.norm, mask, bias)

    def forward(
        self, m: Float[Tensor, "*b s r c_m"], z: Float[Tensor, "*b r r c_z"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b s r c_m"]:
        """m with its update added. Consumes m."""
        axis = m.dim() - 3
        bias = self.context(z, axis=axis, out_axis=axis + 1)
        return self.rows.update(partial(self.update, bias=bias), m, mask, axis=axis)


class MSAColumnAttention(RowUpdate):
    """Attention among the sequences at a residue: Algorithm 8. Its rows are the columns of the MSA."""

    stage = "MSA column attention"

    def __init__(self, c_m: int, c_head: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(c_m)
        self.attention = GatedAttention(c_m, c_head, heads)

    def update(
        self, m: Float[Tensor, "*b r s c_m"], mask: Float[Tensor, "*b r s"]
    ) -> Float[Tensor, "*b r s c_m"]:
        return self.attention(m, self.norm, mask)

    def forward(
        self, m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b s r c_m"]:
        """m with its update added. Consumes m."""
        columns, mask = m.transpose(-2, -3), mask.transpose(-1, -2)
        return self.rows.update(self.update, columns, mask, axis=m.dim() - 3).transpose(-2, -3)


class MSAColumnGlobalAttention(RowUpdate):
    """Attention of one mean query to the sequences at a residue: Algorithm 19. All heads share keys and values."""

    stage = "global column attention"

    def __init__(self, c_m: int, c_head: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(c_m)
        self.q = nn.Linear(c_m, heads * c_head, bias=False)
        self.kv = nn.Linear(c_m, 2 * c_head, bias=False)
        self.gate = nn.Linear(c_m, heads * c_head)
        self.output = nn.Linear(heads * c_head, c_m)

    def update(
        self, m: Float[Tensor, "*b r s c_m"], mask: Float[Tensor, "*b r s"]
    ) -> Float[Tensor, "*b r s c_m"]:
        layers = self.norm.weight, self.norm.bias, self.q.weight, self.kv.weight
        after = self.gate.weight, self.gate.bias, self.output.weight, self.output.bias
        return ops.global_column_attention(m, mask, *layers, *after)

    def forward(
        self, m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b s r c_m"]:
        """m with its update added. Consumes m."""
        columns, mask = m.transpose(-2, -3), mask.transpose(-1, -2)
        return self.rows.update(self.update, columns, mask, axis=m.dim() - 3).transpose(-2, -3)


class OuterProductMean(RowUpdate):
    """The pair representation's update from the MSA: Algorithm 10. Rows of the pair; b is the context.

    b is as large as the MSA's own part of the network: where that is much, b and the update are made for some
    columns of the pair after the others, and a again for each.
    """

    stage = "outer product mean"

    def __init__(self, c_m: int, c_z: int, c_hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(c_m)
        self.a, self.b = nn.Linear(c_m, c_hidden), nn.Linear(c_m, c_hidden)
        self.output = nn.Linear(c_hidden * c_hidden, c_z)

    def prepare(
        self, m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b s r c"]:
        return self._projection(self.b, m, mask)

    def _projection(
        self, layer: nn.Linear, m: Float[Tensor, "*b i j c_m"], mask: Float[Tensor, "*b i j"]
    ) -> Float[Tensor, "*b i j c"]:
        x = ops.normed_linear(m, self.norm.weight, self.norm.bias, layer.weight, layer.bias)
        return x * mask[..., None] if any(mask.stride()) else x  # one number expanded hides nothing

    def update(
        self,
        z: Float[Tensor, "*b i n c_z"],
        m: Float[Tensor, "*b i s c_m"],
        mask: Float[Tensor, "*b i s"],
        b: Float[Tensor, "*b s n c"],
        masks: Float[Tensor, "*b n s"],
    ) -> Float[Tensor, "*b i n c_z"]:
        a = self._projection(self.a, m, mask)
        wide = torch.promote_types(mask.dtype, torch.float32)  # bf16 can't count to 5,120
        if any(mask.stride()) or any(masks.stride()):
            count = torch.matmul(mask.to(wide), masks.to(wide).transpose(-1, -2))
        else:
            count = z.new_full((), mask.shape[-1], dtype=wide).expand(z.shape[:-1])
        return ops.outer_product_update(z, a, b, count, self.output.weight, self.output.bias)

    def forward(
        self, z: Float[Tensor, "*b r r c_z"], m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b r r c_z"]:
        """z with its update added. Consumes z."""
        axis = z.dim() - 3
        by_column, by_residue = m.transpose(-2, -3), mask.transpose(-1, -2)
        each = m.shape[axis] * self.b.out_features * m.element_size()
        updated = []
        for first, size in self.rows.parts(z.shape[-2], each):
            source = narrowed(m, -2, first, size), narrowed(mask, -1, first, size)
            b = self.context(*source, axis=axis, out_axis=axis)
            update = partial(self.update, b=b, masks=narrowed(by_residue, -2, first, size))
            part = narrowed(z, -2, first, size)
            updated.append(self.rows.update(update, part, by_column, by_residue, axis=axis))
            del b, update  # before the next one is made
        if not torch.is_grad_enabled():
            return z  # which holds all updates
        return updated[0] if len(updated) == 1 else torch.cat(updated, dim=-2)
