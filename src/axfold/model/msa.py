"""Updates of the MSA representation, and the pair representation's update from it: Algorithms 7 to 10 and 19."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from axfold import ops
from axfold.model.layers import GatedAttention, Residual, RowUpdate


class MSARowAttention(RowUpdate):
    """Attention among the residues of a sequence, biased by the pair representation: Algorithm 7."""

    stage = "MSA row attention"

    def __init__(self, c_m: int, c_z: int, c_head: int, heads: int, dropout: float = 0.15):
        super().__init__()
        self.norm, self.norm_pair = nn.LayerNorm(c_m), nn.LayerNorm(c_z)
        self.bias = nn.Linear(c_z, heads, bias=False)
        self.attention = GatedAttention(c_m, c_head, heads)
        self.residual = Residual(dropout)  # Algorithm 6, line 2: row-wise

    def prepare(self, z: Float[Tensor, "*b i j c_z"]) -> Float[Tensor, "*b h i j"]:
        norm = self.norm_pair
        return ops.normed_linear(z, norm.weight, norm.bias, self.bias.weight).movedim(-1, -3)

    def update(
        self, m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"], bias: Float[Tensor, "*b h r r"]
    ) -> Float[Tensor, "*b s r c_m"]:
        return self.residual(m, self.attention(m, self.norm, mask, bias))

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
        self.residual = Residual()

    def update(
        self, m: Float[Tensor, "*b r s c_m"], mask: Float[Tensor, "*b r s"]
    ) -> Float[Tensor, "*b r s c_m"]:
        return self.residual(m, self.attention(m, self.norm, mask))

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
    """The pair representation's update from the MSA: Algorithm 10. Rows of the pair; b is the context."""

    stage = "outer product mean"

    def __init__(self, c_m: int, c_z: int, c_hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(c_m)
        self.a, self.b = nn.Linear(c_m, c_hidden), nn.Linear(c_m, c_hidden)
        self.output = nn.Linear(c_hidden * c_hidden, c_z)
        self.residual = Residual()

    def prepare(
        self, m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b s r c"]:
        return self.b(self.norm(m)) * mask[..., None]

    def update(
        self,
        z: Float[Tensor, "*b i n c_z"],
        m: Float[Tensor, "*b i s c_m"],
        mask: Float[Tensor, "*b i s"],
        b: Float[Tensor, "*b s n c"],
        masks: Float[Tensor, "*b n s"],
    ) -> Float[Tensor, "*b i n c_z"]:
        a = self.a(self.norm(m)) * mask[..., None]
        # all of the block's products in one: (i c, s) with (s, n c)
        product = torch.matmul(a.movedim(-1, -2).flatten(-3, -2), b.flatten(-2))
        product = product.unflatten(-2, (z.shape[-3], -1)).unflatten(-1, (z.shape[-2], -1))
        product = product.transpose(-2, -3).flatten(-2)
        wide = torch.promote_types(mask.dtype, torch.float32)  # bf16 can't count to 5,120
        count = torch.matmul(mask.to(wide), masks.to(wide).transpose(-1, -2))
        return self.residual(z, self.output(product) / (count + 1e-3).to(z.dtype)[..., None])

    def forward(
        self, z: Float[Tensor, "*b r r c_z"], m: Float[Tensor, "*b s r c_m"], mask: Float[Tensor, "*b s r"]
    ) -> Float[Tensor, "*b r r c_z"]:
        """z with its update added. Consumes z."""
        axis = z.dim() - 3
        b = self.context(m, mask, axis=axis, out_axis=axis)
        by_residue = mask.transpose(-1, -2)
        update = partial(self.update, b=b, masks=by_residue)
        return self.rows.update(update, z, m.transpose(-2, -3), by_residue, axis=axis)
