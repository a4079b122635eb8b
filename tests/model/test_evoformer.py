"""A block of the Evoformer in training."""

import pytest
import torch
from torch import Tensor

from axfold.config import MsaStack, TriangleStack
from axfold.model.evoformer import EvoformerBlock

PAIR = TriangleStack(heads=2, c_attention=4, c_multiplication=8, transition_factor=2)
SIZES = MsaStack(blocks=1, heads=2, c_attention=4, c_outer_product=4, transition_factor=2, pair=PAIR)


def inputs(*batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    m, z = (
        torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 5, 16), (5, 5, 12))
    )
    msa_mask = torch.ones(*batch, 3, 5, dtype=torch.float64)
    msa_mask[..., 1, 2:] = 0
    return [m, z, msa_mask, torch.ones(*batch, 5, 5, dtype=torch.float64)]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_batch_of_one_is_its_member(recorded: bool) -> None:
    torch.manual_seed(0)
    block = EvoformerBlock(16, 12, SIZES).double().eval()
    found = []
    for batch in ((), (1,), (2,)):
        m, z, *masks = inputs(*batch)
        one = inputs()
        if batch == (2,):
            m, z = (torch.stack([x, x]) for x in one[:2])
        elif batch == (1,):
            m, z = (x.unsqueeze(0) for x in one[:2])
        leaves = [x.clone().requires_grad_(recorded) for x in (m, z)]
        with torch.set_grad_enabled(recorded):
            new = block(*(x if recorded else x.clone() for x in leaves), *masks)
        gradients = torch.autograd.grad([x.sum() for x in new], leaves) if recorded else ()
        assert [x.shape for x in new] == [m.shape, z.shape]
        found.append([x[0] if batch else x for x in (*new, *gradients)])
    for other in found[1:]:
        for one, same in zip(other, found[0], strict=True):
            torch.testing.assert_close(one, same)
