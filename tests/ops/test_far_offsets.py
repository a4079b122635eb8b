"""Kernels on tensors of more than 2^31 numbers: offsets of 32 bits would wrap round. For a GPU with 40 GB free.

The triangle kernels' and attention's own tests have such sizes too. Here is one for every other pointer that moves
along an axis of a representation.
"""

import pytest
import torch
from kernels import convert, linear, norm, on_a_gpu

from axfold import ops

pytest.importorskip("triton")

N, C = 4104, 128  # N² C > 2^31
DTYPE = torch.bfloat16
SOME = [0, 1, 2051, -1]  # rows that are compared


def filled(*shape: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.randn(shape, generator=generator, device="cuda", dtype=DTYPE)


def of(*layers: torch.Tensor) -> list[torch.Tensor]:
    return [x for x in convert(layers, DTYPE) if x is not None]


def ones(*shape: int) -> torch.Tensor:
    return torch.ones((), device="cuda", dtype=DTYPE).expand(shape)


def representation(columns: bool) -> torch.Tensor:
    """[N, N, C], by rows or with positions far apart."""
    x = filled(N, N, C)
    return x.transpose(0, 1) if columns else x


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0.03)


by_rows_and_columns = pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])


@on_a_gpu
@torch.no_grad()
@by_rows_and_columns
def test_normed_linear(columns):
    x, layers = representation(columns), of(*norm(C), *linear(C, C))
    found = ops.normed_linear(x, *layers, backend="triton")
    assert found.numel() > 2**31
    assert_near(found[SOME], ops.normed_linear(x[SOME], *layers, backend="reference"))


@on_a_gpu
@torch.no_grad()
@by_rows_and_columns
def test_transition(columns):
    x, layers = representation(columns), of(*norm(C), *linear(4 * C, C), *linear(C, 4 * C))
    expected = ops.transition(x[SOME].clone(), *layers, backend="reference")
    assert_near(ops.transition(x, *layers, backend="triton")[SOME], expected)


@on_a_gpu
@torch.no_grad()
def test_triangle_multiplication_of_columns():
    z, mask = representation(columns=True), ones(N, N)
    operand = of(*norm(C), *linear(2 * C, C))
    update = of(*norm(C), *norm(C), *linear(C, C), *linear(C, C))
    others = ops.triangle_operand(z, mask, *operand, backend="triton")
    own = ops.triangle_operand(z[SOME], mask[SOME], *operand, backend="reference")
    assert_near(others[:, SOME, :N], own)
    own = others[:, SOME].contiguous()
    expected = ops.triangle_update(z[SOME].clone(), own, others, *update, backend="reference")
    assert_near(ops.triangle_update(z, others, others, *update, backend="triton")[SOME], expected)


@on_a_gpu
@torch.no_grad()
@by_rows_and_columns
def test_outer_product_mean_of_a_far_pair(columns):
    """65 rows of the pair, 64 rows apart."""
    z = representation(columns)[::64]
    a, b, count = filled(len(z), 5, 32), filled(5, N, 32), ones(len(z), N).float()
    layer, some = of(*linear(C, 32 * 32)), [0, 33, -1]
    expected = ops.outer_product_update(z[some].clone(), a[some], b, count[some], *layer, backend="reference")
    assert_near(ops.outer_product_update(z, a, b, count, *layer, backend="triton")[some], expected)


@on_a_gpu
@torch.no_grad()
def test_outer_product_mean_of_far_products():
    rows, n = 130, 16_400  # 32² rows n > 2^31
    z, a, b, count = filled(rows, n, C), filled(rows, 5, 32), filled(5, n, 32), ones(rows, n).float()
    layer, some = of(*linear(C, 32 * 32)), [0, 77, -1]
    expected = ops.outer_product_update(z[some].clone(), a[some], b, count[some], *layer, backend="reference")
    assert_near(ops.outer_product_update(z, a, b, count, *layer, backend="triton")[some], expected)


@on_a_gpu
@torch.no_grad()
@by_rows_and_columns
def test_global_column_attention(columns):
    residues, sequences, c = 6_600, 5_120, 64
    m = filled(sequences, residues, c).transpose(0, 1) if columns else filled(residues, sequences, c)
    projections = of(linear(c, c)[0], linear(16, c)[0])
    layers = [*of(*norm(c)), *projections, *of(*linear(c, c), *linear(c, c))]
    some, mask = [0, 3_333, -1], ones(residues, sequences)
    expected = ops.global_column_attention(m[some].clone(), mask[some], *layers, backend="reference")
    assert_near(ops.global_column_attention(m, mask, *layers, backend="triton")[some], expected)


@on_a_gpu
@torch.no_grad()
@pytest.mark.parametrize("far", ["pair", "pair by columns", "logits"])
def test_invariant_point_attention(far):
    heads, n = 12, 13_400 if far == "logits" else N  # 12 n² > 2^31
    one_for_all = filled(1, n, C).expand(n, n, C)
    z = one_for_all if far == "logits" else representation(columns=far != "pair")
    q, k, v = (filled(n, heads, 16).float() for _ in range(3))
    points = [filled(n, heads, p, 3).float() for p in (4, 4, 8)]
    weights = [x.float() for x in of(linear(1, heads)[0][0], *norm(C), *linear(heads, C))]
    mask = torch.ones(n, device="cuda")

    def call(rows, backend):
        residues = q[rows], k, v, points[0][rows], *points[1:], weights[0], z[rows], *weights[1:]
        return ops.invariant_point_attention(*residues, mask[rows], mask, backend=backend)

    some = [0, 1, -1]
    for found, expected in zip(call(slice(None), "triton"), call(some, "reference"), strict=True):
        torch.testing.assert_close(found[some], expected, atol=1e-3, rtol=1e-3)


@on_a_gpu
@torch.no_grad()
def test_attention_of_a_far_result():
    """All rows are the same."""
    rows, n = 4_200, 4_100  # 128 rows n > 2^31
    row = [filled(1, n, 4, 32) + i for i in range(4)]
    bias = filled(4, n, n)
    every = [x.expand(rows, n, 4, 32) for x in row]
    found = ops.gated_attention(*every, ones(rows, n), bias, backend="triton")
    expected = ops.gated_attention(*row, ones(1, n), bias, backend="reference")
    assert_near(found[[0, 2_100, -1]], expected.expand(3, n, C))


@on_a_gpu
@torch.no_grad()
def test_attention_with_a_far_bias():
    n = 16_400  # 8 n² > 2^31
    row = [filled(1, n, 8, 8) + i for i in range(4)]
    bias = filled(8, n, n)
    found = ops.gated_attention(*row, ones(1, n), bias, backend="triton")
    some = [0, 8_200, n - 1]
    q, k, v, gate = row
    last = q[:, some], k, v, gate[:, some], ones(1, n), bias[:, some]
    assert_near(found[:, some], ops.gated_attention(*last, backend="reference"))


@on_a_gpu
@torch.no_grad()
def test_attention_with_a_far_mask():
    n = 46_400  # n² > 2^31
    q, gate, k, v = filled(n, 16, 1, 8), filled(n, 16, 1, 8), filled(1, n, 1, 8), filled(1, n, 1, 8)
    mask = (filled(n, n) > 2).to(DTYPE)  # few keys, so that the average is not 0
    k, v = k.expand(n, n, 1, 8), v.expand(n, n, 1, 8)
    found = ops.gated_attention(q, k, v, gate, mask, backend="triton")
    some = [0, 23_200, -1]
    rows = (x[some].float() for x in (q, k, v, gate, mask))
    assert_near(found[some].float(), ops.gated_attention(*rows, backend="reference"))
