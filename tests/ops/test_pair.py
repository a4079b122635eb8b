"""Updates as the model runs them: by the kernels and by the references, all rows at once and in blocks."""

import pytest
import torch
from kernels import EXACT, TOLERANCE, convert, kernel, normal
from torch import nn

from axfold import ops
from axfold.memory.rows import Rows
from axfold.model.layers import Transition
from axfold.model.msa import MSAColumnAttention
from axfold.model.pair import TriangleAttention, TriangleMultiplication

N, C = 17, 16
FUSED = ops.normed_linear, ops.linear_residual, ops.transition, ops.triangle_operand, ops.triangle_update

UPDATES = {
    "outgoing": lambda: TriangleMultiplication(C, 16, "outgoing"),
    "incoming": lambda: TriangleMultiplication(C, 16, "incoming"),
    "starting": lambda: TriangleAttention(C, 8, 2, "starting"),
    "ending": lambda: TriangleAttention(C, 8, 2, "ending"),
    "columns": lambda: MSAColumnAttention(C, 8, 2),
    "transition": lambda: Transition(C, 2),
}


@kernel
@torch.no_grad()
@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("rows", [None, 7])
def test_update_by_kernels_is_that_by_the_references(name, rows, monkeypatch):
    torch.manual_seed(0)
    (z,) = convert((normal(N, N, C),), EXACT)
    assert z is not None
    update: nn.Module = UPDATES[name]().to(z).eval()
    update.rows = Rows(rows)
    mask = () if name == "transition" else (z.new_ones(()).expand(N, N),)
    found = update(z.clone(), *mask)
    for op in (*FUSED, ops.gated_attention):
        monkeypatch.setattr(op, "backends", {"reference": op.backends["reference"]})
    torch.testing.assert_close(found, update(z.clone(), *mask), atol=TOLERANCE, rtol=TOLERANCE)


def test_dropout_is_shared_along_an_axis():
    """The factor that an operation is given, in training alone."""
    update = TriangleMultiplication(C, 16, "incoming", dropout=0.5)
    z = torch.ones(5, 5, C)
    keep = update.dropout.keep(z)
    assert keep.shape == (5, 1, C)
    assert set(keep.unique().tolist()) == {0.0, 2.0}
    assert update.eval().dropout.keep(z) is None


@pytest.mark.parametrize("node", ["starting", "ending"])
def test_dropout_of_attention_is_shared_by_the_rows_that_attend(node):
    torch.manual_seed(0)
    update = TriangleAttention(C, 8, 2, node, dropout=0.5)
    z = torch.randn(N, N, C)
    with torch.no_grad():
        changed = update(z.clone(), torch.ones(N, N)) != z
    changed = changed if node == "starting" else changed.transpose(0, 1)
    assert (changed == changed[:1]).all()
    assert 0.3 < changed.float().mean() < 0.7
