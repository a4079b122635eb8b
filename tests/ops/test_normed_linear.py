"""LayerNorm with a projection: the definition, and the kernel against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    SIZES,
    assert_rounds_like_the_reference,
    convert,
    kernel,
    linear,
    norm,
    normal,
    on_a_gpu,
    transposed,
)
from torch._subclasses.fake_tensor import FakeTensorMode

from axfold import ops

pytest.importorskip("triton")
from axfold.ops.triton import tiles
from axfold.ops.triton.normed_linear import normed_linear_parts


def test_reference_is_the_definition():
    x, (norm_weight, norm_bias), (weight, bias) = normal(2, 3, 12), norm(12), linear(5, 12)
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (y * norm_weight + norm_bias) @ weight.T
    torch.testing.assert_close(ops.normed_linear(x, norm_weight, norm_bias, weight), expected)
    torch.testing.assert_close(ops.normed_linear(x, norm_weight, norm_bias, weight, bias), expected + bias)


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "out"), [(16, 16), (64, 4), (64, 32), (32, 100), (128, 512), (256, 8)])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel(rows, n, c, out, biased, dtype):
    x, (weight, bias) = normal(rows, n, c), linear(out, c)
    layer = (weight, bias) if biased else (weight,)
    for start in (x, transposed(x)):
        assert_rounds_like_the_reference(ops.normed_linear, start, *norm(c), *layer, dtype=dtype)


@kernel
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != torch.float32], ids=str)
@pytest.mark.parametrize(("rows", "n"), [*SIZES, (5, 40)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("part_bytes", [1, 3 * 40 * 64 * 2, 1 << 20])
def test_parts(rows, n, biased, part_bytes, dtype):
    """One row at a time, three, which leaves two, and all."""
    x, (weight, bias) = normal(rows, n, 64), linear(100, 64)
    layer = (weight, bias) if biased else (weight,)
    for start in (x, transposed(x)):
        numbers = convert((start, *norm(64), *layer), dtype)
        exact = ops.normed_linear(*(x.double() for x in numbers), backend="reference")
        reference = ops.normed_linear(*numbers, backend="reference")
        with torch.no_grad():
            found = normed_linear_parts(*numbers, part_bytes=part_bytes)
        assert (found - exact).norm() <= 2 * (reference - exact).norm()


def test_many_positions_of_wide_layers_go_in_parts(monkeypatch):
    monkeypatch.setattr(tiles, "gpu", lambda device: (90, 132))

    def taken(positions, c, out, dtype=torch.bfloat16, learning=False):
        x, norm, layer, bias = (
            torch.empty(shape, dtype=dtype, device="cuda", requires_grad=learning)
            for shape in ((4, positions // 4, c), (c,), (out, c), (out,))
        )
        for name, (_, why_not) in reversed(ops.normed_linear.backends.items()):
            if why_not(x, norm, norm, layer, bias) is None:
                return name

    many = 1 << 16
    with FakeTensorMode():
        assert taken(many, 256, 1024) == "parts"
        assert taken(many, 256, 512, torch.float16) == "parts"
        assert taken(many - 4, 256, 1024) == "triton"
        assert taken(many, 256, 508) == "triton"
        assert taken(many, 128, 512) == "triton"
        assert taken(many, 256, 1024, torch.float32) == "triton"
        assert taken(many, 256, 1024, learning=True) == "triton"


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "out"), [(128, 512), (256, 1024), (64, 256), (128, 4)])
def test_kernel_at_real_sizes(c, out, dtype):
    arguments = normal(40, 1201, c), *norm(c), *linear(out, c)
    assert_rounds_like_the_reference(ops.normed_linear, *arguments, dtype=dtype)
