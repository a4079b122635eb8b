"""The trunk: Algorithm 6, and Algorithm 18 for the extra MSA."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from axfold.config import MsaStack
from axfold.model.layers import Transition
from axfold.model.msa import MSAColumnAttention, MSAColumnGlobalAttention, MSARowAttention, OuterProductMean
from axfold.model.pair import PairBlock


class EvoformerBlock(nn.Module):
    """One block of Algorithm 6 or of Algorithm 18, which attends globally along the columns."""

    def __init__(self, c_m: int, c_z: int, sizes: MsaStack):
        super().__init__()
        column = MSAColumnGlobalAttention if sizes.global_column_attention else MSAColumnAttention
        self.row_attention = MSARowAttention(c_m, c_z, sizes.c_attention, sizes.heads)
        self.column_attention = column(c_m, sizes.c_attention, sizes.heads)
        self.msa_transition = Transition(c_m, sizes.transition_factor)
        self.outer_product_mean = OuterProductMean(c_m, c_z, sizes.c_outer_product)
        self.pair = PairBlock(c_z, sizes.pair)
        self.idle: Callable[[Tensor], AbstractContextManager[Any]] = nullcontext

    def forward(
        self,
        m: Float[Tensor, "*b s r c_m"],
        z: Float[Tensor, "*b r r c_z"],
        msa_mask: Float[Tensor, "*b s r"],
        pair_mask: Float[Tensor, "*b r r"],
    ) -> tuple[Float[Tensor, "*b s r c_m"], Float[Tensor, "*b r r c_z"]]:
        """m and z with their updates. Consumes both."""
        if m.dim() == 4 and len(m) == 1:  # kernels take no batch axis in float32
            m, z = self._updated(*(x.squeeze(0) for x in (m, z, msa_mask, pair_mask)))
            return m.unsqueeze(0), z.unsqueeze(0)
        return self._updated(m, z, msa_mask, pair_mask)

    def _updated(self, m: Tensor, z: Tensor, msa_mask: Tensor, pair_mask: Tensor) -> tuple[Tensor, Tensor]:
        m = self.row_attention(m, z, msa_mask)  # line 2
        m = self.column_attention(m, msa_mask)  # line 3
        m = self.msa_transition(m)  # line 4
        z = self.outer_product_mean(z, m, msa_mask)  # line 5
        with self.idle(m):  # the MSA representation may rest elsewhere meanwhile
            z = self.pair(z, pair_mask)  # lines 6 to 10
        return m, z


class EvoformerStack(nn.Module):
    """Blocks in a row: Algorithm 6 or 18."""

    def __init__(self, c_m: int, c_z: int, sizes: MsaStack):
        super().__init__()
        self.blocks = nn.ModuleList(EvoformerBlock(c_m, c_z, sizes) for _ in range(sizes.blocks))

    def forward(
        self,
        m: Float[Tensor, "*b s r c_m"],
        z: Float[Tensor, "*b r r c_z"],
        msa_mask: Float[Tensor, "*b s r"],
        pair_mask: Float[Tensor, "*b r r"],
    ) -> tuple[Float[Tensor, "*b s r c_m"], Float[Tensor, "*b r r c_z"]]:
        """m and z after all blocks. Consumes both."""
        for block in self.blocks:
            m, z = block(m, z, msa_mask, pair_mask)
        return m, z
