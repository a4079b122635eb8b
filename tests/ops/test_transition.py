"""The transition: its definition, and the kernel against it."""

import pytest
import torch
import torch.nn.functional as F
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
    norm,
    normal,
    on_a_gpu,
    transposed,
)

from axfold import ops


def inputs(rows: int, n: int, c: int, factor: int = 4, keep=None):
    return normal(rows, n, c), *norm(c), *linear(factor * c, c), *linear(c, factor * c), keep


def test_reference_is_the_definition():
    x, norm_weight, norm_bias, *layers, keep = inputs(2, 3, 12, keep=dropout(2, 3, 12))
    found = ops.transition(x.clone(), norm_weight, norm_bias, *layers, keep, backend="reference")
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = F.linear(y * norm_weight + norm_bias, *layers[:2]).clamp(min=0)
    torch.testing.assert_close(found, x + keep * F.linear(hidden, *layers[2:]))


def test_x_is_consumed_only_without_gradients():
    arguments = inputs(2, 3, 4)
    x = arguments[0]
    before = x.clone()
    assert ops.transition(*arguments).data_ptr() != x.data_ptr()
    assert torch.equal(x, before)
    with torch.no_grad():
        assert ops.transition(*arguments).data_ptr() == x.data_ptr()


def test_gradients_come_from_the_reference():
    x, *others = inputs(2, 3, 16)
    leaf = x.requires_grad_()
    (found,) = torch.autograd.grad(ops.transition(leaf, *others).square().sum(), leaf)
    step = 1e-6 * normal(2, 3, 16, seed=5)
    with torch.no_grad():
        ahead, behind = (ops.transition(leaf + sign * step, *others).square().sum() for sign in (1, -1))
    torch.testing.assert_close((found * step).sum(), (ahead - behind) / 2, rtol=1e-6, atol=0)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "factor"), [(16, 4), (64, 2), (64, 3), (128, 4), (256, 4)])
@pytest.mark.parametrize("dropped", [False, True])
def test_kernel(rows, n, c, factor, dropped, dtype):
    x, *others = inputs(rows, n, c, factor, dropout(1, n, c) if dropped else None)
    for start in (x, transposed(x)):
        assert_rounds_like_the_reference(ops.transition, start, *others, dtype=dtype, in_place=True)


@kernel
def test_kernel_leaves_x_where_gradients_are_recorded():
    arguments = convert(inputs(2, 5, 16), EXACT)
    before = arguments[0].clone()
    found = ops.transition(*arguments, backend="triton")
    assert torch.equal(arguments[0], before)
    expected = ops.transition(*arguments, backend="reference")
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    arguments[1].requires_grad_()
    with pytest.raises(ops.BackendError, match="it has no backward"):
        ops.transition(*arguments, backend="triton")


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [64, 128, 256])
def test_kernel_at_real_sizes(c, dtype):
    assert_rounds_like_the_reference(ops.transition, *inputs(40, 1201, c), dtype=dtype)


@kernel
@torch.no_grad()
@pytest.mark.parametrize("dropped", [False, True])
def test_kernel_takes_a_batch_member_by_member(dropped):
    x, *layers, _ = inputs(3, 5, 16)
    batch = torch.stack([x, 2 * x])[:, None]
    keep = dropout(1, 5, 16) if dropped else None
    found = assert_rounds_like_the_reference(ops.transition, batch, *layers, keep, dtype=EXACT, in_place=True)
    assert found.shape == (2, 1, 3, 5, 16)
