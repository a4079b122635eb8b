"""The attention's kernel for Hopper: on such a GPU alone, since Gluon has no interpreter."""

from dataclasses import replace

import pytest
import torch
from test_triton_attention import as_float64, assert_rounds_like_the_reference, error

from axfold import ops
from axfold.ops import cases

hopper = pytest.importorskip("axfold.ops.triton.attention_hopper")

HERE = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
on_hopper = pytest.mark.skipif(not HERE, reason="needs a GPU of compute capability 9.0")
pytestmark = pytest.mark.gpu
PLAIN = cases.Attention("plain", 5, 448, 2, 32)


@on_hopper
@pytest.mark.parametrize("case", [case for case in cases.REAL if not (case.masked or case.columns)], ids=str)
def test_real_sizes(case, monkeypatch):
    monkeypatch.setattr(hopper, "LEAST_QUERIES", 1)
    assert_rounds_like_the_reference(case, torch.bfloat16, rows=(0, 1, case.rows - 1), backend="hopper")


@on_hopper
@pytest.mark.parametrize("length", [1, 17, 63, 64, 65, 129, 200, 1000])
@pytest.mark.parametrize(("heads", "channels"), [(4, 32), (8, 8), (4, 16)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_odd_sizes(length, heads, channels, biased, rows, monkeypatch):
    monkeypatch.setattr(hopper, "LEAST_QUERIES", 1)
    case = cases.Attention("odd", rows, length, heads, channels, biased)
    each = sorted({0, rows // 2, rows - 1})
    assert_rounds_like_the_reference(case, torch.bfloat16, rows=each, backend="hopper")


@on_hopper
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        PLAIN,
        cases.Attention("one key", 3, 1, 8, 8),
        cases.Attention("few channels", 3, 129, 8, 8),
        cases.Attention("no bias", 4, 1000, 2, 32, False),
    ],
    ids=str,
)
def test_both_orders(case, behind):
    arguments = case.inputs(torch.bfloat16, "cuda")
    exact = ops.gated_attention(*as_float64(arguments), backend="reference")
    reference = ops.gated_attention(*arguments, backend="reference")
    found = hopper.gated_attention_hopper(*arguments, behind=behind)
    assert error(found, exact) <= 2 * error(reference, exact)


@on_hopper
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("shift", [-3e4, -200.0, 200.0, 3e4])
def test_extreme_logits_are_done_again(shift, behind):
    """The exponentials of some queries' logits, of one head alone, are no numbers as they are."""
    q, k, v, gate, mask, bias = PLAIN.inputs(torch.bfloat16, "cuda")
    bias = bias.clone()
    bias[1, 3:300] += shift
    expected = ops.gated_attention(*as_float64((q, k, v, gate, mask, bias)), backend="reference")
    found = hopper.gated_attention_hopper(q, k, v, gate, mask, bias, behind)
    assert error(found, expected) < 1e-2


@on_hopper
def test_offsets_past_31_bits():
    """A projection of 4 x 2,100 x 4,100 x 128 numbers: more than 2^31."""
    case = cases.Attention("far", 2100, 4100, 4, 32)
    assert_rounds_like_the_reference(case, torch.bfloat16, rows=(0, 1700, 2099), backend="hopper")


@on_hopper
def test_a_bias_that_lies_anyhow():
    q, k, v, gate, mask, bias = PLAIN.inputs(torch.bfloat16, "cuda")
    assert bias.stride(-1) != 1
    found = [
        ops.gated_attention(q, k, v, gate, mask, some, backend="hopper")
        for some in (bias, bias.contiguous(), bias.mT.contiguous().mT)
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


@on_hopper
def test_an_offset_that_the_copy_engine_does_not_take():
    q, k, v, gate, mask, bias = PLAIN.inputs(torch.bfloat16, "cuda")
    shifted = torch.cat([q.new_zeros(1), q.flatten()])[1:].view(q.shape)
    assert shifted.data_ptr() % 16
    q = q.contiguous()
    expected = ops.gated_attention(q, k, v, gate, mask, bias, backend="hopper")
    assert torch.equal(ops.gated_attention(shifted, k, v, gate, mask, bias, backend="hopper"), expected)


@on_hopper
def test_why_not():
    arguments = replace(PLAIN, masked=True).inputs(torch.bfloat16, "cuda")
    assert ops.gated_attention.backend_for(*arguments) == "triton"
    q, k, v, gate, _, bias = arguments
    mask = torch.ones((), device="cuda").expand(q.shape[:2])

    def reason(*arguments):
        with pytest.raises(ops.BackendError) as raised:
            ops.gated_attention(*arguments, backend="hopper")
        return str(raised.value)

    assert "hides no keys" in reason(*arguments)
    assert "under 384 queries" in reason(q[:, :100], k, v, gate[:, :100], mask, bias[:, :100])
    assert "bfloat16 alone" in reason(*(x.half() for x in (q, k, v, gate)), mask, bias.half())
    assert "evenly apart" in reason(q.transpose(0, 1).contiguous().transpose(0, 1), k, v, gate, mask, bias)
    assert ops.gated_attention.backend_for(q, k, v, gate, mask, bias) == "hopper"
    long = cases.Attention("long", 1, 1024, 8, 32).inputs(torch.bfloat16, "cuda")
    assert ops.gated_attention.backend_for(*long) == "hopper_long"


@pytest.mark.skipif(HERE, reason="this is one")
def test_other_machines_take_another():
    arguments = PLAIN.inputs(torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ops.BackendError, match=r"compute capability 9\.0"):
        ops.gated_attention(*arguments, backend="hopper")
