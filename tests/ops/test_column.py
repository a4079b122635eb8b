"""Global column attention: its definition, and the kernels against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    EXACT,
    TOLERANCE,
    assert_rounds_like_the_reference,
    convert,
    kernel,
    linear,
    mask_of,
    norm,
    normal,
    on_a_gpu,
    transposed,
)

from axfold import ops


def inputs(rows: int, n: int, c: int = 64, heads: int = 8, c_head: int = 8, masked: bool = False):
    width = heads * c_head
    q, kv = linear(width, c)[0], linear(2 * c_head, c)[0]
    return (
        normal(rows, n, c),
        mask_of(rows, n, masked),
        *norm(c),
        q,
        kv,
        *linear(width, c),
        *linear(c, width),
    )


def test_reference_is_the_definition():
    arguments = inputs(3, 5, 6, 2, 4, masked=True)
    m, mask, scale, shift, wq, wkv, wg, bg, wo, bo = arguments
    found = ops.global_column_attention(m.clone(), *arguments[1:], backend="reference")
    x = (m - m.mean(-1, keepdim=True)) / (m.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * scale + shift
    for r in range(3):
        there = mask[r] == 1
        q = wq @ x[r, there].mean(0)
        k, v = (x[r] @ wkv.T).chunk(2, dim=-1)
        mixed = []
        for head in q.chunk(2):
            weights = (k[there] @ head / 2).softmax(0)
            mixed.append(weights @ v[there])
        gate = (x[r] @ wg.T + bg).sigmoid()
        torch.testing.assert_close(
            found[r], m[r] + (gate * torch.cat(mixed)) @ wo.T + bo, atol=1e-6, rtol=1e-6
        )


def test_float16_hides_sequences():
    arguments = convert(inputs(2, 9, masked=True), torch.float16)
    arguments = [x.cpu() for x in arguments]
    arguments[1][0] = 0
    with torch.no_grad():
        found = ops.global_column_attention(arguments[0].clone(), *arguments[1:], backend="reference")
        wide = ops.global_column_attention(*(x.double() for x in arguments), backend="reference")
    torch.testing.assert_close(found.double(), wide, atol=2e-2, rtol=2e-2)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 17), (2, 63), (2, 600)])
@pytest.mark.parametrize(("c", "heads", "c_head"), [(64, 8, 8), (16, 2, 8), (32, 4, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel(rows, n, c, heads, c_head, masked, dtype):
    m, mask, *others = inputs(rows, n, c, heads, c_head, masked)
    if masked:
        mask[0] = 0  # a residue without sequences averages them
    for start in (m, transposed(m)):
        assert_rounds_like_the_reference(
            ops.global_column_attention, start, mask, *others, dtype=dtype, in_place=True
        )


@kernel
def test_kernel_leaves_m_where_gradients_are_recorded():
    arguments = convert(inputs(2, 5), EXACT)
    before = arguments[0].clone()
    found = ops.global_column_attention(*arguments, backend="triton")
    assert torch.equal(arguments[0], before)
    expected = ops.global_column_attention(*arguments, backend="reference")
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_at_real_sizes(masked, dtype):
    m, *others = inputs(40, 5120, masked=masked)
    assert_rounds_like_the_reference(ops.global_column_attention, transposed(m), *others, dtype=dtype)
