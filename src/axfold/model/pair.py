"""Updates of the pair representation: Algorithms 11 to 15."""

from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from axfold import ops
from axfold.config import TriangleStack
from axfold.model.layers import GatedAttention, RowUpdate, SharedDropout, Transition

DROPOUT = 0.25  # Algorithm 6, lines 6 to 9


class GatedLinear(nn.Module):
    """mask * sigmoid(gate) * linear, channel first: Algorithms 11 and 12, line 2; both halves in one projection."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.linear = nn.Linear(c_in, 2 * c_out)

    def forward(
        self, z: Float[Tensor, "*b i n c_z"], norm: nn.LayerNorm, mask: Float[Tensor, "*b i n"]
    ) -> Float[Tensor, "*b c i k"]:
        """Of norm(z). k is n or a little more, where zeros are appended."""
        return ops.triangle_operand(z, mask, norm.weight, norm.bias, self.linear.weight, self.linear.bias)


class TriangleMultiplication(RowUpdate):
    """Triangular update of an edge from the other two of its triangles: Algorithm 11 ("outgoing"), 12 ("incoming").

    The incoming update of z is the outgoing one of zᵀ, with Algorithm 12's b for Algorithm 11's a, so only the
    latter is written here: z_ij receives sum_k own_ik others_jk, and all of `others` is the context of the rows i.
    """

    stage = "triangle multiplication"

    def __init__(
        self, c_z: int, c_hidden: int, edges: Literal["outgoing", "incoming"], dropout: float = DROPOUT
    ):
        super().__init__()
        self.edges = edges
        self.norm = nn.LayerNorm(c_z)
        self.own, self.others = GatedLinear(c_z, c_hidden), GatedLinear(c_z, c_hidden)
        self.norm_product = nn.LayerNorm(c_hidden)
        self.output, self.output_gate = nn.Linear(c_hidden, c_z), nn.Linear(c_z, c_z)
        # row-wise for both; the incoming update's rows are the columns here
        self.dropout = SharedDropout(dropout, shared=-3 if edges == "outgoing" else -2)

    def prepare(
        self, z: Float[Tensor, "*b j k c_z"], mask: Float[Tensor, "*b j k"]
    ) -> Float[Tensor, "*b c j kk"]:
        """The other edges of the triangles, channel first for the product."""
        return self.others(z, self.norm, mask)

    def update(
        self, z: Float[Tensor, "*b i n c_z"], mask: Float[Tensor, "*b i n"], others: Float[Tensor, "*b c n k"]
    ) -> Float[Tensor, "*b i n c_z"]:
        layers = self.norm, self.norm_product, self.output, self.output_gate
        return ops.triangle_update(
            z,
            self.own(z, self.norm, mask),
            others,
            *(p for layer in layers for p in (layer.weight, layer.bias)),
            self.dropout.keep(z),
        )

    def forward(
        self, z: Float[Tensor, "*b n n c_z"], mask: Float[Tensor, "*b n n"]
    ) -> Float[Tensor, "*b n n c_z"]:
        """z with its update added. Consumes z. `mask` is symmetric, 0 for pairs with a residue that is padding."""
        axis = z.dim() - 3
        y = z if self.edges == "outgoing" else z.transpose(-2, -3)
        others = self.context(y, mask, axis=axis, out_axis=axis + 1)
        y = self.rows.update(partial(self.update, others=others), y, mask, axis=axis)
        return y if self.edges == "outgoing" else y.transpose(-2, -3)


class TriangleAttention(RowUpdate):
    """Attention among the edges of a node: Algorithm 13 ("starting" node), 14 ("ending").

    The ending node's update of z is the starting node's of zᵀ. The bias from the third edge, the same for all
    rows, is the context.
    """

    stage = "triangle attention"

    def __init__(
        self, c_z: int, c_head: int, heads: int, node: Literal["starting", "ending"], dropout: float = DROPOUT
    ):
        super().__init__()
        self.node = node
        self.norm = nn.LayerNorm(c_z)
        self.bias = nn.Linear(c_z, heads, bias=False)
        # dropout row-wise and column-wise: along the rows that attend
        self.attention = GatedAttention(c_z, c_head, heads, dropout)

    def prepare(self, z: Float[Tensor, "*b j k c_z"]) -> Float[Tensor, "*b h j k"]:
        return ops.normed_linear(z, self.norm.weight, self.norm.bias, self.bias.weight).movedim(-1, -3)

    def update(
        self, z: Float[Tensor, "*b i n c_z"], mask: Float[Tensor, "*b i n"], bias: Float[Tensor, "*b h n n"]
    ) -> Float[Tensor, "*b i n c_z"]:
        return self.attention(z, self.norm, mask, bias)

    def forward(
        self, z: Float[Tensor, "*b n n c_z"], mask: Float[Tensor, "*b n n"]
    ) -> Float[Tensor, "*b n n c_z"]:
        """z with its update added. Consumes z. `mask` is symmetric, 0 for pairs with a residue that is padding."""
        axis = z.dim() - 3
        y = z if self.node == "starting" else z.transpose(-2, -3)
        bias = self.context(y, axis=axis, out_axis=axis + 1)
        y = self.rows.update(partial(self.update, bias=bias), y, mask, axis=axis)
        return y if self.node == "starting" else y.transpose(-2, -3)


class PairBlock(nn.Module):
    """The updates of a pair representation in a row: Algorithm 6, lines 6 to 10, or Algorithm 16, lines 2 to 6.

    They differ in their order alone: `attention_first` is that of the templates' stack.
    """

    def __init__(self, c_z: int, sizes: TriangleStack, attention_first: bool = False):
        super().__init__()
        self.multiplication_outgoing = TriangleMultiplication(c_z, sizes.c_multiplication, "outgoing")
        self.multiplication_incoming = TriangleMultiplication(c_z, sizes.c_multiplication, "incoming")
        self.attention_starting = TriangleAttention(c_z, sizes.c_attention, sizes.heads, "starting")
        self.attention_ending = TriangleAttention(c_z, sizes.c_attention, sizes.heads, "ending")
        self.transition = Transition(c_z, sizes.transition_factor)
        multiplications = self.multiplication_outgoing, self.multiplication_incoming
        attentions = self.attention_starting, self.attention_ending
        self.order = attentions + multiplications if attention_first else multiplications + attentions

    def forward(
        self, z: Float[Tensor, "*b n n c_z"], mask: Float[Tensor, "*b n n"]
    ) -> Float[Tensor, "*b n n c_z"]:
        """z with all updates. Consumes z."""
        for update in self.order:
            z = update(z, mask)
        return self.transition(z)
