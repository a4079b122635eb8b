"""The outer product mean: its definition, and the kernel against it."""

import pytest
import torch
from kernels import (
    DTYPES,
    SIZES,
    assert_rounds_like_the_reference,
    convert,
    kernel,
    linear,
    normal,
    on_a_gpu,
    transposed,
)

from axfold import ops


def inputs(rows: int, n: int, sequences: int, c_z: int, c: int, masked: bool = True):
    """Of a pair whose operands' last sequence shows nothing; counts, or one number expanded."""
    a, b = normal(rows, sequences, c), normal(sequences, n, c, seed=1)
    count = 1 + normal(rows, n).abs() if masked else torch.tensor(3.0, dtype=torch.float64).expand(rows, n)
    return normal(rows, n, c_z), a, b, count, *linear(c_z, c * c)


def test_reference_is_the_definition():
    z, a, b, count, weight, bias = inputs(2, 3, 4, 5, 2)
    found = ops.outer_product_update(z.clone(), a, b, count, weight, bias, backend="reference")
    outer = torch.einsum("isc,sjd->ijcd", a, b).flatten(-2)
    torch.testing.assert_close(found, z + (outer @ weight.T + bias) / (count[..., None] + 1e-3))


def test_z_is_consumed_only_without_gradients():
    arguments = inputs(2, 3, 4, 5, 2)
    before = arguments[0].clone()
    assert ops.outer_product_update(*arguments).data_ptr() != arguments[0].data_ptr()
    assert torch.equal(arguments[0], before)
    with torch.no_grad():
        assert ops.outer_product_update(*arguments).data_ptr() == arguments[0].data_ptr()


@kernel
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("sequences", "c_z", "c"), [(1, 16, 8), (5, 128, 32), (17, 64, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel(rows, n, sequences, c_z, c, masked, dtype):
    z, *others = inputs(rows, n, sequences, c_z, c, masked)
    for start in (z, transposed(z)):
        assert_rounds_like_the_reference(ops.outer_product_update, start, *others, dtype=dtype, in_place=True)


@kernel
def test_kernel_on_some_columns():
    z, *others = convert(inputs(3, 20, 5, 16, 8), DTYPES[0])
    with torch.no_grad():
        whole = ops.outer_product_update(z.clone(), *others, backend="triton")
        a, b, count, *layer = others
        some = slice(7, 18)
        ops.outer_product_update(
            z[:, some], a, b[:, some].contiguous(), count[:, some], *layer, backend="triton"
        )
    torch.testing.assert_close(z[:, some], whole[:, some], rtol=2e-2, atol=2e-2)


@on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n", "sequences"), [(40, 1000, 512), (17, 1201, 5120)])
def test_kernel_at_real_sizes(rows, n, sequences, dtype):
    arguments = inputs(rows, n, sequences, 128, 32)
    assert_rounds_like_the_reference(ops.outer_product_update, *arguments, dtype=dtype, in_place=True)
