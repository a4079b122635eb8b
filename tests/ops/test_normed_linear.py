"""LayerNorm with a projection: the definition, and the kernel against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    SIZES,
    assert_rounds_like_the_reference,
    kernel,
    linear,
    norm,
    normal,
    on_a_gpu,
    transposed,
)

from axfold import ops


def test_reference_is_the_definition():
    x, (norm_weight, norm_bias), (weight, bias) = normal(2, 3, 12), norm(12), linear(5, 12)
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (y * norm_weight + norm_bias) @ weight.T
    torch.testing.assert_close(ops.normed_linear(x, norm_weight, norm_bias, weight), expected)
    torch.testing.assert_close(ops.normed_linear(x, norm_weight, norm_bias, weight, bias), expected + bias)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "out"), [(16, 16), (64, 4), (32, 100), (128, 512), (256, 8)])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel(rows, n, c, out, biased, dtype):
    x, (weight, bias) = normal(rows, n, c), linear(out, c)
    layer = (weight, bias) if biased else (weight,)
    for start in (x, transposed(x)):
        assert_rounds_like_the_reference(ops.normed_linear, start, *norm(c), *layer, dtype=dtype)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "out"), [(128, 512), (256, 1024), (64, 256), (128, 4)])
def test_kernel_at_real_sizes(c, out, dtype):
    arguments = normal(40, 1201, c), *norm(c), *linear(out, c)
    assert_rounds_like_the_reference(ops.normed_linear, *arguments, dtype=dtype)
