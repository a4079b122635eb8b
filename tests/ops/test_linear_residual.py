"""A projection added to its representation: the definition, and the kernel against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    EXACT,
    SIZES,
    TOLERANCE,
    assert_rounds_like_the_reference,
    convert,
    dropout,
    kernel,
    linear,
    normal,
    on_a_gpu,
    transposed,
)

from axfold import ops


def inputs(rows: int, n: int, c: int, width: int, keep=None):
    return normal(rows, n, c), normal(rows, n, width), *linear(c, width), keep


def test_reference_is_the_definition():
    x, y, weight, bias, keep = inputs(2, 3, 5, 7, dropout(1, 3, 5))
    expected = torch.stack([x[i] + keep[0] * (y[i] @ weight.T + bias) for i in range(2)])
    torch.testing.assert_close(ops.linear_residual(x.clone(), y, weight, bias, keep), expected)
    torch.testing.assert_close(ops.linear_residual(x.clone(), y, weight, bias), x + y @ weight.T + bias)


def test_x_is_consumed_only_without_gradients():
    x, *others = inputs(2, 3, 4, 5)
    before = x.clone()
    assert ops.linear_residual(x, *others).data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    with torch.no_grad():
        assert ops.linear_residual(x, *others).data_ptr() == x.data_ptr()
    assert not torch.equal(x, before)


def test_gradients_come_from_the_reference():
    arguments = inputs(2, 3, 16, 32, dropout(2, 1, 16))
    leaves = [x.requires_grad_() for x in arguments[:-1]]
    assert torch.autograd.gradcheck(lambda *given: ops.linear_residual(*given, arguments[-1]), leaves)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "width"), [(16, 32), (64, 64), (128, 128), (256, 256), (64, 16)])
@pytest.mark.parametrize("shared", [None, 0, 1], ids=["no dropout", "by row", "by column"])
def test_kernel(rows, n, c, width, shared, dtype):
    keep = None if shared is None else dropout(*((1, n, c) if shared == 0 else (rows, 1, c)))
    x, *others = inputs(rows, n, c, width, keep)
    for start in (x, transposed(x)):
        assert_rounds_like_the_reference(ops.linear_residual, start, *others, dtype=dtype, in_place=True)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
def test_kernel_that_keeps_its_weights(rows, n, dtype):
    tile = pytest.importorskip("axfold.ops.triton.tiles").Tile(32, 64, 4, 2, resident=1)
    given = inputs(rows, n, 64, 32, dropout(1, n, 64))
    assert_rounds_like_the_reference(ops.linear_residual, *given, dtype=dtype, in_place=True, tile=tile)


@kernel
def test_kernel_leaves_x_where_gradients_are_recorded():
    arguments = convert(inputs(2, 5, 16, 32), EXACT)
    before = arguments[0].clone()
    found = ops.linear_residual(*arguments, backend="triton")
    assert torch.equal(arguments[0], before)
    expected = ops.linear_residual(*arguments, backend="reference")
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    arguments[1].requires_grad_()
    with pytest.raises(ops.BackendError, match="it has no backward"):
        ops.linear_residual(*arguments, backend="triton")


@kernel
def test_kernel_takes_one_dtype():
    x, y, *layer = convert(inputs(2, 5, 16, 32), EXACT)
    with pytest.raises(ops.BackendError, match="another dtype or device"):
        ops.linear_residual(x, y.double(), *layer, backend="triton")


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [64, 128, 256])
def test_kernel_at_real_sizes(c, dtype):
    assert_rounds_like_the_reference(ops.linear_residual, *inputs(40, 1201, c, c), dtype=dtype)


@on_a_gpu
@torch.no_grad()
def test_kernel_beyond_32_bits():
    n = 4104  # n² * 128 numbers are more than 2**31
    x, y = torch.randn(2, n, n, 128, device="cuda", dtype=torch.bfloat16).unbind()
    weight, bias = convert(linear(128, 128), x.dtype)
    last = x[:, -1:].clone()
    expected = ops.linear_residual(last, y[-1:].transpose(0, 1), weight, bias, backend="reference")
    found = ops.linear_residual(x.transpose(0, 1), y, weight, bias, backend="triton")
    torch.testing.assert_close(found[-1:], expected.transpose(0, 1), atol=0.05, rtol=0.02)
