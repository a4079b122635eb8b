"""Backends of the attention against its reference."""

import pytest
import torch

from axfold import ops
from axfold.ops.attention import MASKED

SIZES = [(1, 1), (3, 17), (5, 63), (2, 1000)]


def inputs(rows: int, n: int, dtype=torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k, v, gate = (normal(rows, n, 4, 8) for _ in range(4))
    mask = (torch.rand(rows, n, generator=generator) > 0.3).to(dtype)
    mask[0] = 0  # a row without keys averages them
    return q, k, v, gate, mask, normal(4, n, n)


@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("backend", [name for name in ops.gated_attention.backends if name != "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backends_round_like_the_reference(rows, n, backend, dtype):
    arguments = inputs(rows, n, dtype)
    if reason := ops.gated_attention.backends[backend][1](*arguments):
        pytest.skip(reason)
    exact = ops.gated_attention(*(x.double() for x in arguments), backend="reference")
    reference = ops.gated_attention(*arguments, backend="reference")
    found = ops.gated_attention(*arguments, backend=backend)
    rounding = (reference - exact).norm() / exact.norm()
    assert (found - exact).norm() / exact.norm() <= 2 * rounding + 1e-6


def test_reference_is_the_definition():
    q, k, v, gate, mask, bias = inputs(3, 5, torch.float64)
    found = ops.gated_attention(q, k, v, gate, mask, bias, backend="reference").unflatten(-1, (4, 8))
    for row, head in [(0, 0), (1, 2), (2, 3)]:
        logits = q[row, :, head] @ k[row, :, head].T / 8**0.5 + bias[head]
        logits[:, mask[row] == 0] = MASKED
        expected = gate[row, :, head].sigmoid() * (logits.softmax(-1) @ v[row, :, head])
        torch.testing.assert_close(found[row, :, head], expected)


def test_a_row_without_keys_averages_them():
    q, k, v, gate, mask, bias = inputs(2, 9)
    expected = gate[0].sigmoid() * v[0].mean(0)
    found = ops.gated_attention(q, k, v, gate, mask, bias)[0]
    torch.testing.assert_close(found, expected.flatten(-2))


def test_masked_keys_do_not_matter():
    q, k, v, gate, mask, bias = inputs(3, 17)
    before = ops.gated_attention(q, k, v, gate, mask, bias)
    hidden = mask == 0
    hidden[0] = False
    after = ops.gated_attention(
        q,
        torch.where(hidden[..., None, None], 99.0, k),
        torch.where(hidden[..., None, None], -7.0, v),
        gate,
        mask,
        bias,
    )
    torch.testing.assert_close(before, after)


def test_gradients_come_from_a_backend_that_has_them():
    arguments = [x.requires_grad_() for x in inputs(3, 17)]
    wanted = [x for i, x in enumerate(arguments) if i != 4]
    expected = torch.autograd.grad(
        ops.gated_attention(*arguments, backend="reference").square().sum(), wanted
    )
    found = torch.autograd.grad(ops.gated_attention(*arguments).square().sum(), wanted)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    assert (found[0][0] == 0).all()  # a row without keys can't tell its queries anything
    with pytest.raises(ops.BackendError, match="other gradients"):
        ops.gated_attention(*arguments, backend="sdpa")


def test_many_masked_rows():
    """More rows than go at once where keys are masked, with and without a bias."""
    q, k, v, gate, mask, bias = inputs(37, 6)
    for shared in (bias, None):
        expected = ops.gated_attention(q, k, v, gate, mask, shared, backend="reference")
        found = ops.gated_attention(q, k, v, gate, mask, shared, backend="sdpa")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_named_backend_that_cannot_take_a_call_says_why():
    arguments = [x.double() for x in inputs(2, 4)]
    with pytest.raises(
        ops.BackendError, match=r"gated_attention: backend 'sdpa' can't take this call: float64"
    ):
        ops.gated_attention(*arguments, backend="sdpa")
    with pytest.raises(ops.BackendError, match=r"no backend 'cuda'; it has reference, sdpa"):
        ops.gated_attention(*arguments, backend="cuda")


def test_rows_that_hide_keys_come_a_few_at_a_time(monkeypatch):
    """However few fit, and where no row of a block hides any."""
    monkeypatch.setattr("axfold.ops.attention._MASKED_LOGITS", 2 * 4 * 17**2)
    q, k, v, gate, mask, bias = inputs(9, 17)
    for hidden in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
        arguments = q, k, v, gate, hidden, bias
        expected = ops.gated_attention(*arguments, backend="reference")
        torch.testing.assert_close(ops.gated_attention(*arguments, backend="sdpa"), expected)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@torch.no_grad()
def test_masks_in_float16(backend):
    """-1e9 is beyond its numbers."""
    x = torch.randn(2, 5, 2, 8, generator=torch.Generator().manual_seed(0)).half()
    mask, bias = torch.ones(2, 5).half(), torch.full((2, 5, 5), -1.0).half()
    mask[0], mask[1, 2] = 0, 0
    arguments = x, x, x, x, mask, bias
    found = ops.gated_attention(*arguments, backend=backend)
    exact = ops.gated_attention(*(t.double() for t in arguments), backend="reference")
    torch.testing.assert_close(found[1].double(), exact[1], atol=5e-3, rtol=5e-3)
    assert found[0].isfinite().all()
    if backend == "reference":
        torch.testing.assert_close(found[0].double(), exact[0], atol=5e-3, rtol=5e-3)
