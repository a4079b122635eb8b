"""Invariant point attention: its definition, and the kernels against it."""

import pytest
import torch
from kernels import INTERPRETED, kernel, linear, norm, normal, transposed

from axfold import ops
from axfold.ops.point_attention import SquaredDistances

ROWS = [(1, 1), (3, 17), (2, 63), (5, 130)]  # residues that attend, all residues
PAIRS = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
NAMES = "values", "points", "pairs"


def inputs(rows: int, n: int, heads: int = 12, c: int = 16, c_z: int = 128, masked: bool = False):
    mask = (normal(n) > -0.5).double() if masked else torch.ones(n, dtype=torch.float64)
    weight, bias = linear(heads, c_z)
    return [
        normal(rows, heads, c),
        normal(n, heads, c, seed=1),
        normal(n, heads, c, seed=2),
        3 + normal(rows, heads, 4, 3),
        3 + normal(n, heads, 4, 3, seed=3),
        3 + normal(n, heads, 8, 3, seed=4),
        normal(heads),
        2 * normal(rows, n, c_z) + 0.5,
        *norm(c_z),
        weight,
        bias,
        mask[:rows].clone(),
        mask,
    ]


def test_reference_is_the_definition():
    arguments = inputs(2, 5, heads=3, c=4, c_z=6, masked=True)
    q, k, v, q_points, k_points, v_points, raw, z, scale, shift, weight, bias, mask, masks = arguments
    values, points, pairs = ops.invariant_point_attention(*arguments, backend="reference")
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * scale + shift
    w_c = (1 + raw.exp()).log() * (2 / (9 * 4)) ** 0.5 / 2
    for i in range(2):
        for h in range(3):
            squared = (q_points[i, h] - k_points[:, h]).square().sum((-1, -2))
            logits = k[:, h] @ q[i, h] * 4**-0.5 + z[i] @ weight[h] + bias[h] - w_c[h] * squared
            a = (3**-0.5 * logits - 1e5 * (1 - mask[i] * masks)).softmax(0)
            torch.testing.assert_close(values[i, h], a @ v[:, h])
            torch.testing.assert_close(points[i, h], torch.einsum("j,jpx->px", a, v_points[:, h]))
            torch.testing.assert_close(pairs[i, h], a @ z[i])


@torch.no_grad()
def check(arguments, dtype):
    """The kernels deviate from float64's result at most twice as much as the reference in float32 does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    numbers = []
    for i, x in enumerate(arguments):  # strides are kept
        copy = torch.empty_strided(
            x.shape, x.stride(), device=device, dtype=dtype if i == 7 else torch.float32
        )
        numbers.append(copy.copy_(x))
    exact = ops.invariant_point_attention(*(x.double() for x in numbers), backend="reference")
    reference = ops.invariant_point_attention(*numbers, backend="reference")
    found = ops.invariant_point_attention(*numbers, backend="triton")
    for name, a, b, c in zip(NAMES, found, reference, exact, strict=True):
        assert a.shape == c.shape, name
        assert (a - c).norm() <= 2 * (b - c).norm() + 1e-6 * c.norm(), name


@kernel
@pytest.mark.parametrize("dtype", PAIRS, ids=str)
@pytest.mark.parametrize(("rows", "n"), ROWS)
@pytest.mark.parametrize("masked", [False, True])
def test_kernel(rows, n, masked, dtype):
    check(inputs(rows, n, masked=masked), dtype)


@kernel
@pytest.mark.parametrize("dtype", PAIRS, ids=str)
@pytest.mark.parametrize(("heads", "c", "c_z"), [(2, 4, 12), (4, 8, 24), (17, 16, 64)])
def test_kernel_at_other_widths(heads, c, c_z, dtype):
    check(inputs(3, 19, heads, c, c_z), dtype)


@kernel
def test_kernel_takes_a_transposed_pair():
    arguments = inputs(4, 21)
    arguments[7] = transposed(arguments[7])
    check(arguments, torch.float32)


@kernel
def test_kernel_and_gradients():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = [x.to(device, torch.float32) for x in inputs(2, 5)]
    arguments[7].requires_grad_()
    with pytest.raises(ops.BackendError, match="it has no backward"):
        ops.invariant_point_attention(*arguments, backend="triton")


def test_squared_distances_and_their_gradients():
    x, y = (torch.randn(2, 3, n, 12, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    expected = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    torch.testing.assert_close(SquaredDistances.apply(x, y), expected)
    assert torch.autograd.gradcheck(SquaredDistances.apply, (x, y))
