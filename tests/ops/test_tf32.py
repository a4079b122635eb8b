"""float32 with products as short as TF32's: the kernels round no worse than such products do, whatever the range.

`test_interpreter.py` runs them by Triton's interpreter. PyTorch has no TF32 on a CPU, so the reference's products are
given numbers of 11 bits.
"""

import pytest
import torch
from kernels import convert, dropout, kernel, linear, mask_of, norm, normal, on_a_gpu, transposed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from axfold import ops

pytest.importorskip("triton")

from axfold.ops import cases
from axfold.ops.triton import attention, tiles

SIZES = [(1, 1), (3, 17), (2, 63)]  # rows, positions
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Short(TorchDispatchMode):
    """Products of float32 take numbers rounded to TF32's 11 bits."""

    PRODUCTS = (
        torch.ops.aten.mm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.baddbmm.default,
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.PRODUCTS and args[0].dtype == torch.float32:
            *before, a, b = args
            args = *before, rounded(a), rounded(b)
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture(autouse=True)
def short_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@torch.no_grad()
def assert_rounds_like_tf32(op, *arguments: Tensor | None, tile=None) -> None:
    """The kernel's error is at most twice that of short products."""
    assert tiles.in_float16(torch.float32)

    def given():
        return convert(arguments, torch.float32)

    exact = op(*(x if x is None else x.double() for x in given()), backend="reference")
    with Short():
        reference = op(*given(), backend="reference")
    found = op.backends["triton"][0](*given(), tile=tile) if tile else op(*given(), backend="triton")
    assert found.isfinite().all()
    assert not found[..., exact.shape[-1] :].any()
    error = (found[..., : exact.shape[-1]].double() - exact).norm()
    assert error > 0 or not exact.any()
    chance = 2**-10 if exact.numel() < 256 else 1e-6  # few numbers may all be rounded well, or ill
    assert error <= 2 * (reference.double() - exact).norm() + chance * exact.norm()


def test_short_products_are():
    x, y = normal(40, 64).float(), normal(64, 40).float()
    with Short():
        found = x @ y
    error = ((found - x.double() @ y.double()).norm() / (x.double() @ y.double()).norm()).item()
    assert 2**-13 < error < 2**-11
    assert rounded(torch.tensor([1 + 2**-11 + 2**-20])).item() == 1 + 2**-10


def layer(out: int, c: int, scale: float) -> tuple[Tensor, Tensor]:
    weight, bias = linear(out, c)
    return scale * weight, scale * bias


SCALES = [1.0, 1e7, 1e-7]
"""Of weights: products pass the numbers of float16 at both ends."""


@kernel
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "out"), [(16, 16), (64, 4), (32, 100), (128, 512), (256, 8)])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel_normed_linear(rows, n, c, out, biased):
    for scale in SCALES:
        x, (weight, bias) = normal(rows, n, c), layer(out, c, scale)
        given = (weight, bias) if biased else (weight,)
        for start in (x, transposed(x), 1e6 * x):
            assert_rounds_like_tf32(ops.normed_linear, start, *norm(c), *given)


@kernel
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tile", [None, tiles.Tile(16, 16, 4, 2), tiles.Tile(32, 64, 4, 2, resident=1)])
def test_kernel_triangle_operand(rows, n, masked, tile):
    for scale in SCALES:
        z, mask = normal(rows, n, 64), mask_of(rows, n, masked)
        weight, bias = layer(2 * 32, 64, 1.0)
        weight[:32] *= scale  # the value's alone: a gate would be open or shut
        for start in (z, transposed(z)):
            assert_rounds_like_tf32(ops.triangle_operand, start, mask, *norm(64), weight, bias, tile=tile)


@kernel
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("tile", [None, tiles.Tile(16, 16, 4, 2), tiles.Tile(32, 64, 4, 2, resident=1)])
def test_kernel_triangle_update(rows, n, dropped, tile):
    for scale in SCALES:
        z, own, others = normal(rows, n, 64), scale * normal(32, rows, n), scale * normal(32, n, n)
        layers = *layer(64, 32, 1.0), *layer(64, 64, 1.0)
        keep = dropout(1, n, 64) if dropped else None
        arguments = z, own, others, *norm(64), *norm(32), *layers, keep
        assert_rounds_like_tf32(ops.triangle_update, *arguments, tile=tile)


@kernel
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "hidden"), [(16, 32), (64, 256), (128, 176), (256, 512)])
def test_kernel_transition(rows, n, c, hidden):
    for scale in SCALES if c < 128 else SCALES[1:2]:
        first, second = layer(hidden, c, scale), layer(c, hidden, 1.0)
        x, keep = normal(rows, n, c), dropout(rows, 1, c)
        for start in (x, transposed(x)):
            assert_rounds_like_tf32(ops.transition, start, *norm(c), *first, *second, None)
        assert_rounds_like_tf32(ops.transition, x, *norm(c), *first, *second, keep)


@kernel
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("c", "width"), [(16, 32), (128, 128), (64, 64), (256, 128)])
@pytest.mark.parametrize("tile", [None, tiles.Tile(32, 256, 4, 2, resident=1)])
def test_kernel_linear_residual(rows, n, c, width, tile):
    for scale in SCALES:
        x, y = normal(rows, n, c), scale * normal(rows, n, width)
        for keep in (None, dropout(1, n, c)):
            assert_rounds_like_tf32(ops.linear_residual, x, y, *layer(c, width, 1.0), keep, tile=tile)
            assert_rounds_like_tf32(ops.linear_residual, transposed(x), y, *layer(c, width, 1e5), keep)


@kernel
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize(("sequences", "c_z", "c"), [(1, 16, 8), (5, 128, 32), (300, 64, 16)])
def test_kernel_outer_product_mean(rows, n, sequences, c_z, c):
    for scale in SCALES if c < 16 else SCALES[1:2]:
        a, b = scale * normal(rows, sequences, c), normal(sequences, n, c, seed=1)
        count = 1 + normal(rows, n).abs()
        z = normal(rows, n, c_z)
        for start in (z, transposed(z)):
            assert_rounds_like_tf32(ops.outer_product_update, start, a, b, count, *layer(c_z, c * c, 1.0))
        hidden = torch.zeros_like(a)
        assert_rounds_like_tf32(ops.outer_product_update, z, hidden, b, count, *layer(c_z, c * c, 1.0))


@kernel
@pytest.mark.parametrize("case", [case for case in cases.ODD if 1 < case.length < 100], ids=str)
@pytest.mark.parametrize(("k_scale", "v_scale"), [(1.0, 1.0), (1e6, 1e-6), (1e-6, 1e6)])
def test_kernel_attention(case, k_scale, v_scale):
    q, k, v, gate, mask, bias = case.inputs(torch.float64, "cpu")
    assert_rounds_like_tf32(ops.gated_attention, q / k_scale, k_scale * k, v_scale * v, gate, mask, bias)


@kernel
def test_kernel_attention_to_one_key():
    """Whose weight is 1: the values are rounded, which the reference's einsum without a sum does not."""
    arguments = cases.Attention("", 3, 1, 2, 16).inputs(torch.float32, DEVICE)
    exact = ops.gated_attention(*(x.double() for x in arguments), backend="reference")
    found = ops.gated_attention(*arguments, backend="triton").double()
    assert 0 < (found - exact).norm() < 2**-11 * exact.norm()


@kernel
@pytest.mark.parametrize(
    "tile", [attention.Tile(128, 64, 8, 2), attention.Tile(64, 16, 4, 1, rows=2)], ids=str
)
def test_kernel_attention_tiles(tile):
    arguments = cases.Attention("", 3, 130, 2, 16, masked=True).inputs(torch.float64, "cpu")
    assert_rounds_like_tf32(ops.gated_attention, *arguments, tile=tile)


@kernel
def test_kernel_attention_with_large_logits():
    """Logits of hundreds, which leave float16 and 2^logit far behind."""
    q, k, v, gate, mask, bias = cases.Attention("", 3, 63, 2, 32).inputs(torch.float64, "cpu")
    assert_rounds_like_tf32(ops.gated_attention, 30 * q, k, v, gate, mask, 100 * bias)


@kernel
def test_kernel_attention_of_small_queries_to_a_large_key():
    """Most products with keys are far under the largest, and are as exact."""
    q, k, v, gate, mask, bias = cases.Attention("", 3, 63, 2, 32).inputs(torch.float64, "cpu")
    k[:, 5] *= 1000
    assert_rounds_like_tf32(ops.gated_attention, q / 100, k, v, gate, mask, bias)


@kernel
def test_kernel_attention_of_any_stride():
    q, k, v, gate, mask, bias = cases.Attention("", 3, 40, 2, 16, masked=True).inputs(torch.float64, "cpu")
    odd = torch.empty(3, 40, 2, 19, dtype=torch.float64)[..., 2:18].copy_(k)
    arguments = q[:, :7], odd, transposed(v), gate[:, :7], mask, bias[:, :7]
    assert_rounds_like_tf32(ops.gated_attention, *arguments)


@on_a_gpu
def test_kernels_at_real_sizes():
    assert_rounds_like_tf32(ops.normed_linear, normal(9, 1201, 256), *norm(256), *linear(1024, 256))
    assert_rounds_like_tf32(
        ops.transition, normal(9, 1201, 256), *norm(256), *linear(1024, 256), *linear(256, 1024), None
    )
    a, b = normal(9, 5120, 32), normal(5120, 201, 32, seed=1)
    count = torch.tensor(5120.0, dtype=torch.float64).expand(9, 201)
    assert_rounds_like_tf32(ops.outer_product_update, normal(9, 201, 128), a, b, count, *linear(128, 1024))
    arguments = cases.Attention("", 5, 1201, 8, 32).inputs(torch.float64, "cpu")
    assert_rounds_like_tf32(ops.gated_attention, *arguments)
