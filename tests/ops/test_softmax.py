"""Softmax by itself: its definition, and the kernels with their gradients against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    EXACT,
    INTERPRETED,
    assert_rounds_like_the_reference,
    convert,
    kernel,
    mask_of,
    normal,
    on_a_gpu,
)
from torch import Tensor

from axfold import ops

SHAPES = [(1, 1, 1, 1), (3, 2, 5, 17), (4, 4, 63, 63), (2, 1, 2, 1000)]  # rows, heads, queries, keys


def inputs(rows: int, heads: int, queries: int, keys: int, masked: bool = True, biased: bool = True):
    mask = None
    if masked:
        mask = mask_of(rows, keys, masked=True)
        mask[0] = 0  # a row without keys
    return 2 * normal(rows, heads, queries, keys), mask, normal(heads, queries, keys) if biased else None


def gradients(
    x: Tensor, mask: Tensor | None, bias: Tensor | None, *, upstream: Tensor, backend: str
) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, bias) if t is not None]
    out = ops.softmax(leaves[0], mask, leaves[1] if bias is not None else None, backend=backend)
    return list(torch.autograd.grad(out, leaves, upstream))


def assert_gradients_round_like_the_reference(*arguments: Tensor | None, dtype: torch.dtype) -> None:
    """At most twice the reference's deviation in that dtype from its own in float64."""
    upstream = normal(*arguments[0].shape, seed=7)
    *numbers, above = convert((*arguments, upstream), dtype)
    wide = [t if t is None else t.double() for t in numbers]
    exact = gradients(*wide, upstream=above.double(), backend="reference")
    reference = gradients(*numbers, upstream=above, backend="reference")
    found = gradients(*numbers, upstream=above, backend="triton")
    for one, other, true in zip(found, reference, exact, strict=True):
        assert one.dtype == dtype
        assert (one - true).norm() <= 2 * (other - true).norm() + 1e-6 * true.norm()


def test_reference_is_the_definition():
    x, mask, bias = inputs(3, 2, 5, 7)
    found = ops.softmax(x, mask, bias, backend="reference")
    for r, h, q in [(1, 0, 0), (2, 1, 4)]:
        terms = (x[r, h, q] + bias[h, q]).exp() * (mask[r] != 0)
        torch.testing.assert_close(found[r, h, q], terms / terms.sum())
    torch.testing.assert_close(found[0], torch.full_like(found[0], 1 / 7))  # no keys


def test_reference_has_the_gradients_of_its_definition():
    x, mask, bias = inputs(3, 2, 4, 5)
    leaves = x.requires_grad_(), bias.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, bias: ops.softmax(x, mask, bias, backend="reference"), leaves)


def test_a_batch_is_its_members():
    x, mask, bias = inputs(3, 2, 4, 5)
    found = ops.softmax(*(torch.stack([t, t.flip(0)]) for t in (x, mask, bias)))
    torch.testing.assert_close(found[0], ops.softmax(x, mask, bias))
    torch.testing.assert_close(found[1], ops.softmax(x.flip(0), mask.flip(0), bias.flip(0)))


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel(shape, masked, biased, dtype):
    x, mask, bias = inputs(*shape, masked, biased)
    apart = x.transpose(0, 1).contiguous().transpose(0, 1)
    for start in (x, apart):
        assert_rounds_like_the_reference(ops.softmax, start, mask, bias, dtype=dtype)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:])  # the softmax of one key has no gradient
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel_gradients(shape, masked, biased, dtype):
    assert_gradients_round_like_the_reference(*inputs(*shape, masked, biased), dtype=dtype)


@kernel
def test_kernel_takes_a_bias_that_lies_heads_last():
    x, mask, bias = convert(inputs(3, 4, 5, 17), EXACT)
    apart = bias.movedim(0, -1).contiguous().movedim(-1, 0)
    found = ops.softmax(x, mask, apart, backend="triton")
    torch.testing.assert_close(found, ops.softmax(x, mask, bias, backend="triton"))  # compiled by themselves


@kernel
def test_the_bias_gradient_is_that_of_all_rows_whatever_their_groups():
    """Rows are summed within programs and then over them; the interpreter's one multiprocessor has four programs."""
    for rows in (1, 2, 7, 30):
        arguments = convert(inputs(rows, 1, 2, 17, masked=False), EXACT)
        upstream = arguments[0].flip(0)
        first, again, expected = (
            gradients(*arguments, upstream=upstream, backend=backend)
            for backend in ("triton", "triton", "reference")
        )
        assert torch.equal(first[1], again[1])
        torch.testing.assert_close(first[1], expected[1], atol=1e-6 if INTERPRETED else 1e-2, rtol=1e-3)


@kernel
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, mask, bias: (x.double(), mask, bias), r"it has no torch\.float64"),
        (lambda x, mask, bias: (x, mask, bias.double()), "the bias has another dtype"),
        (
            lambda x, mask, bias: (x.expand(2, *x.shape), mask.expand(2, *mask.shape)),
            "it takes no batch axes",
        ),
        (lambda x, mask, bias: (x.transpose(-1, -2), None, None), "keys are not contiguous"),
        (lambda x, mask, bias: (x[:0], mask[:0], bias), "there are no numbers"),
        (lambda x, mask, bias: (x.new_ones(1, 1, 1, 8193),), "more than 8192 keys"),
    ],
    ids=["dtype", "bias", "batch", "strides", "nothing", "keys"],
)
def test_a_kernel_says_why_it_cannot_take_a_call(change, reason):
    arguments = change(*convert(inputs(2, 3, 5, 5), EXACT))
    with pytest.raises(ops.BackendError, match=f"softmax: backend 'triton' can't take .*{reason}"):
        ops.softmax(*arguments, backend="triton")


@on_a_gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("keys", [64, 257, 1000, 4097])
def test_kernel_at_real_sizes(keys, dtype):
    arguments = inputs(9, 4, 65, keys)
    assert_rounds_like_the_reference(ops.softmax, *arguments, dtype=dtype)
    assert_gradients_round_like_the_reference(*arguments, dtype=dtype)


@on_a_gpu
def test_kernel_beyond_32_bits():
    n = 818  # 4 n³ numbers are more than 2**31
    x = torch.randn(n, 4, n, n, device="cuda", dtype=torch.bfloat16).requires_grad_()
    bias = torch.randn(4, n, n, device="cuda", dtype=torch.bfloat16)
    found = ops.softmax(x, None, bias, backend="triton")
    expected = ops.softmax(x[-1:], None, bias, backend="reference")
    torch.testing.assert_close(found[-1:], expected, atol=0.002, rtol=0.02)
    (all_of_them,) = torch.autograd.grad(found, x, found.detach())
    (last,) = torch.autograd.grad(expected, x, expected.detach())
    torch.testing.assert_close(all_of_them[-1], last[-1], atol=0.002, rtol=0.02)
