"""A batch of proteins in one launch of each kernel: the same as the definitions, gradients included."""

from collections.abc import Callable

import pytest
import torch
from kernels import (
    INTERPRETED,
    assert_gradients_round_like_the_reference,
    kernel,
    linear,
    norm,
    normal,
    on_a_gpu,
)
from torch import Tensor

from axfold import ops

HALF = [torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
SIZES = [(1, 2, 1), (3, 2, 17), (2, 3, 63)]  # members, rows, positions

Call = tuple[ops.Op, tuple[Tensor | int | None, ...], tuple[int, ...]]


def turned(x: Tensor) -> Tensor:
    """The same numbers, with rows and positions exchanged in memory, as the ending node has them."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def mask_of(*shape: int) -> Tensor:
    """With a row without keys."""
    mask = (normal(*shape) > -0.5).double()
    mask[0, 0] = 0
    return mask


def dropout(*shape: int) -> Tensor:
    return (normal(*shape) > -0.5).double() / 0.75


def attention(
    b: int, rows: int, n: int, c: int = 32, heads: int = 4, c_head: int = 8, biased: bool = True
) -> Call:
    width = heads * c_head
    bias = normal(b, n, n, heads).movedim(-1, 1) if biased else None
    layers = *norm(c), normal(3 * width, c) / c**0.5, *linear(width, c), *linear(c, width)
    x, keep = normal(b, rows, n, c), dropout(b, 1, n, c)
    return ops.attention_update, (x, mask_of(b, rows, n), bias, *layers, heads, keep), (1, 11)


def gated_attention(b: int, rows: int, n: int, heads: int = 2, c: int = 16) -> Call:
    q, k, v, gate = (normal(b, rows, n, heads, c, seed=i) for i in range(4))
    return ops.gated_attention, (q, k, v, gate, mask_of(b, rows, n), normal(b, heads, n, n)), (4,)


def transition(b: int, rows: int, n: int, c: int = 32, factor: int = 2, dropped: bool = False) -> Call:
    layers = *norm(c), *linear(factor * c, c), *linear(c, factor * c)
    return ops.transition, (normal(b, rows, n, c), *layers, dropout(b, 1, n, c) if dropped else None), (7,)


def dropped_transition(b: int, rows: int, n: int) -> Call:
    return transition(b, rows, n, dropped=True)


def normed_linear(b: int, rows: int, n: int, c: int = 32, width: int = 4) -> Call:
    return ops.normed_linear, (normal(b, rows, n, c), *norm(c), *linear(width, c)), ()


def linear_residual(b: int, rows: int, n: int, c: int = 32, width: int = 16) -> Call:
    arguments = normal(b, rows, n, c), normal(b, rows, n, width), *linear(c, width), dropout(b, 1, n, c)
    return ops.linear_residual, arguments, (4,)


def triangle_operand(b: int, rows: int, n: int, c_z: int = 32, c: int = 16) -> Call:
    arguments = normal(b, rows, n, c_z), mask_of(b, rows, n), *norm(c_z), *linear(2 * c, c_z)
    return ops.triangle_operand, arguments, (1,)


def triangle_update(b: int, rows: int, n: int, c_z: int = 32, c: int = 16) -> Call:
    k = n + 3
    products = normal(b, c, rows, k), normal(b, c, n, k, seed=3)
    layers = *norm(c_z), *norm(c), *linear(c_z, c), *linear(c_z, c_z)
    return ops.triangle_update, (normal(b, rows, n, c_z), *products, *layers, dropout(b, rows, 1, c_z)), (11,)


def outer_product(b: int, rows: int, n: int, sequences: int = 5, c_z: int = 32, c: int = 8) -> Call:
    operands = normal(b, rows, sequences, c), normal(b, sequences, n, c, seed=1), 1 + normal(b, rows, n).abs()
    return ops.outer_product_update, (normal(b, rows, n, c_z), *operands, *linear(c_z, c * c)), (3,)


def global_column_attention(b: int, rows: int, n: int, c: int = 32, heads: int = 4, c_head: int = 8) -> Call:
    width = heads * c_head
    projections = normal(width, c) / c**0.5, normal(2 * c_head, c, seed=1) / c**0.5
    layers = *norm(c), *projections, *linear(width, c), *linear(c, width)
    return ops.global_column_attention, (normal(b, rows, n, c), mask_of(b, rows, n), *layers), (1,)


CALLS: tuple[Callable[..., Call], ...] = (
    attention,
    gated_attention,
    transition,
    dropped_transition,
    normed_linear,
    linear_residual,
    triangle_operand,
    triangle_update,
    outer_product,
    global_column_attention,
)


@kernel
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # of numbers beyond a product's last column, which nobody keeps
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("call", CALLS)
def test_kernel_of_a_batch(call, sizes, dtype):
    op, (x, *others), fixed = call(*sizes)
    assert_gradients_round_like_the_reference(op, x, *others, dtype=dtype, fixed=fixed)
    if op is not ops.gated_attention:
        assert_gradients_round_like_the_reference(op, turned(x), *others, dtype=dtype, fixed=fixed)


@kernel
@pytest.mark.parametrize("call", [transition, triangle_operand])
def test_kernel_of_a_batch_of_what_is_not_narrow(call, monkeypatch):
    from axfold.ops.triton import narrow

    monkeypatch.setattr(narrow, "WIDEST", 0)
    op, (x, *others), fixed = call(3, 2, 17)
    for start in (x, turned(x)):
        assert_gradients_round_like_the_reference(op, start, *others, dtype=HALF[0], fixed=fixed)


@kernel
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("call", CALLS)
def test_kernel_of_a_batch_without_gradients(call):
    op, arguments, _ = call(3, 2, 17)
    given = [x.to(HALF[0]) if isinstance(x, Tensor) else x for x in arguments]
    exact = op(*(x.double() if isinstance(x, Tensor) else x for x in given), backend="reference")
    with torch.no_grad():
        found = op(*given, backend="triton")
    assert (found[..., : exact.shape[-1]] - exact).norm() <= 2e-3 * exact.norm()


REAL = {  # as the model `demo` calls them
    "row attention": lambda: attention(3, 64, 128, 128, 4, 32),
    "extra row attention": lambda: attention(3, 128, 128, 32, 4, 8),
    "column attention": lambda: attention(3, 128, 64, 128, 4, 32, False),
    "global column attention": lambda: global_column_attention(3, 128, 128),
    "triangle attention": lambda: attention(3, 127, 127, 64, 4, 16),
    "MSA transition": lambda: transition(3, 64, 128, 128),
    "pair transition": lambda: transition(3, 127, 127, 64),
    "bias": lambda: normed_linear(3, 127, 127, 64),
    "triangle operand": lambda: triangle_operand(3, 127, 127, 64, 64),
    "triangle update": lambda: triangle_update(3, 127, 127, 64, 64),
    "outer product": lambda: outer_product(3, 127, 127, 64, 64, 16),
    "extra outer product": lambda: outer_product(3, 127, 127, 128, 64, 8),
}


@on_a_gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", REAL)
def test_kernel_of_a_batch_at_real_sizes(name, dtype):
    op, (x, *others), fixed = REAL[name]()
    for start in (x, turned(x)):
        assert_gradients_round_like_the_reference(op, start, *others, dtype=dtype, fixed=fixed)
