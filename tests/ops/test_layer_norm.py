"""LayerNorm by itself: its definition, and the kernels with their gradients against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    EXACT,
    assert_rounds_like_the_reference,
    convert,
    kernel,
    norm,
    normal,
    on_a_gpu,
    transposed,
)
from torch import Tensor

from axfold import ops

SHAPES = [(1, 1, 1), (3, 17, 63), (2, 5, 128), (2, 3, 1000), (1, 2, 1500)]


def gradients(*arguments: Tensor, upstream: Tensor, backend: str) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in arguments]
    out = ops.layer_norm(*leaves, backend=backend)
    return torch.autograd.grad(out, leaves, upstream)


def assert_gradients_round_like_the_reference(
    *arguments: Tensor, upstream: Tensor, dtype: torch.dtype
) -> None:
    """At most twice the reference's deviation in that dtype from its own in float64."""
    *numbers, above = convert((*arguments, upstream), dtype)
    wide = [x.double() for x in numbers]
    exact = gradients(*wide, upstream=above.double(), backend="reference")
    reference = gradients(*numbers, upstream=above, backend="reference")
    found = gradients(*numbers, upstream=above, backend="triton")
    for one, other, true in zip(found, reference, exact, strict=True):
        assert one.dtype == dtype
        assert (one - true).norm() <= 2 * (other - true).norm() + 1e-6 * true.norm()


def test_reference_is_the_definition():
    x, (weight, bias) = normal(2, 3, 12), norm(12)
    found = ops.layer_norm(x, weight, bias, backend="reference")
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found, y * weight + bias)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel(shape, dtype):
    x = 3 + normal(*shape)  # whose mean is not near zero
    for start in (x, transposed(x)):
        assert_rounds_like_the_reference(ops.layer_norm, start, *norm(shape[-1]), dtype=dtype)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:])  # a single channel has no gradient
def test_kernel_gradients(shape, dtype):
    x, upstream = 3 + normal(*shape), normal(*shape, seed=1)
    for start, above in ((x, upstream), (transposed(x), transposed(upstream))):
        assert_gradients_round_like_the_reference(start, *norm(shape[-1]), upstream=above, dtype=dtype)


@kernel
def test_kernel_takes_any_leading_axes():
    weight, bias = convert(norm(20), EXACT)
    for shape in ((20,), (5, 20), (2, 3, 4, 20), (2, 1, 3, 4, 20)):
        (x,) = convert((normal(*shape),), EXACT)
        for start in (x, x.transpose(0, -2)) if len(shape) > 2 else (x,):
            found = ops.layer_norm(start, weight, bias, backend="triton")
            assert found.shape == start.shape
            torch.testing.assert_close(found, ops.layer_norm(start, weight, bias, backend="reference"))


@kernel
def test_kernel_gradients_are_the_same_every_time():
    x, weight, bias = convert((normal(7, 33, 24), *norm(24)), EXACT)
    first, second = (gradients(x, weight, bias, upstream=x, backend="triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@kernel
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, weight, bias: (x.double(), weight, bias), r"it has no torch\.float64"),
        (lambda x, weight, bias: (x, weight.double(), bias), "another dtype"),
        (lambda x, weight, bias: (x.transpose(-1, -2), weight, bias), "channels are not contiguous"),
        (lambda x, weight, bias: (x[:0], weight, bias), "there are no numbers"),
        (lambda x, weight, bias: (x.new_ones(1, 1, 8193), weight, bias), "more than 8192 channels"),
    ],
    ids=["dtype", "parameters", "strides", "nothing", "channels"],
)
def test_a_kernel_says_why_it_cannot_take_a_call(change, reason):
    arguments = change(*convert((normal(2, 16, 16), *norm(16)), EXACT))
    with pytest.raises(ops.BackendError, match=f"layer_norm: backend 'triton' can't take .*{reason}"):
        ops.layer_norm(*arguments, backend="triton")


@on_a_gpu
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("c", [64, 128, 256, 384, 5000])
def test_kernel_at_real_sizes(c, dtype):
    x, upstream = 3 + normal(40, 301, c), normal(40, 301, c, seed=1)
    assert_rounds_like_the_reference(ops.layer_norm, x, *norm(c), dtype=dtype)
    assert_gradients_round_like_the_reference(x, *norm(c), upstream=upstream, dtype=dtype)


@on_a_gpu
def test_kernel_beyond_32_bits():
    n = 4104  # n² * 128 numbers are more than 2**31
    x = torch.randn(n, n, 128, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight, bias = convert(norm(128), x.dtype)
    found = ops.layer_norm(x, weight, bias, backend="triton")
    expected = ops.layer_norm(x[-1:], weight, bias, backend="reference")
    torch.testing.assert_close(found[-1:], expected, atol=0.02, rtol=0.02)
    (all_of_them,) = torch.autograd.grad(found, x, found.detach())
    (last,) = torch.autograd.grad(expected, x, expected.detach())
    torch.testing.assert_close(all_of_them[-1], last[-1], atol=0.02, rtol=0.02)
