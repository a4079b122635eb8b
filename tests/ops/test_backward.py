"""Gradients of the kernels against those of the definitions, by autograd in float64."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernels import (
    INTERPRETED,
    assert_gradients_round_like_the_reference,
    convert,
    dropout,
    kernel,
    linear,
    mask_of,
    norm,
    normal,
    on_a_gpu,
    transposed,
)
from torch import Tensor

from axfold import ops
from axfold.config import MsaStack, TriangleStack
from axfold.model.evoformer import EvoformerBlock

HALF = [torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
SIZES = [(2, 1), (3, 17), (2, 63)]  # rows, positions


def kept(n: int, c: int, dropped: bool) -> Tensor | None:
    return dropout(1, n, c) if dropped else None


def hidden(rows: int, n: int, masked: bool) -> Tensor:
    """A mask, with a row without keys."""
    mask = mask_of(rows, n, masked)
    if masked:
        mask[0] = 0
    return mask


def attention(rows: int, queries: int, keys: int, heads: int, c: int, masked: bool, biased: bool):
    row, column = (lambda seed, n=n: normal(rows, n, heads, c, seed=seed) for n in (queries, keys))
    bias = normal(queries, keys, heads).movedim(-1, 0) if biased else None
    return row(1), column(2), column(3), row(4), hidden(rows, keys, masked), bias


def update(
    rows: int, n: int, c: int, heads: int, c_head: int, masked: bool, biased: bool, dropped: bool
) -> tuple[Tensor | int | None, ...]:
    width = heads * c_head
    bias = normal(n, n, heads).movedim(-1, 0) if biased else None
    layers = *norm(c), normal(3 * width, c) / c**0.5, *linear(width, c), *linear(c, width)
    return normal(rows, n, c), hidden(rows, n, masked), bias, *layers, heads, kept(n, c, dropped)


def triangle(rows: int, n: int, k: int, c_z: int, c: int, dropped: bool):
    products = normal(c, rows, k), normal(c, n, k, seed=3)
    layers = *norm(c_z), *norm(c), *linear(c_z, c), *linear(c_z, c_z)
    return normal(rows, n, c_z), *products, *layers, kept(n, c_z, dropped)


def column(rows: int, n: int, c: int, heads: int, c_head: int, masked: bool):
    width = heads * c_head
    projections = normal(width, c) / c**0.5, normal(2 * c_head, c) / c**0.5
    layers = *norm(c), *projections, *linear(width, c), *linear(c, width)
    return normal(rows, n, c), hidden(rows, n, masked), *layers


def test_reference_of_the_attention_update_is_its_operations():
    x, mask, bias, *layers, heads, keep = update(3, 5, 12, 2, 4, True, True, True)
    found = ops.attention_update(x, mask, bias, *layers, heads, keep, backend="reference")
    norm_weight, norm_bias, qkv, gate, gate_bias, *output = layers
    y = torch.nn.functional.layer_norm(x, norm_weight.shape, norm_weight, norm_bias)
    q, k, v = (part.unflatten(-1, (2, 4)) for part in (y @ qkv.mT).chunk(3, -1))
    g = (y @ gate.mT + gate_bias).unflatten(-1, (2, 4))
    mixed = ops.gated_attention(q, k, v, g, mask, bias, backend="reference")
    torch.testing.assert_close(found, x + keep * torch.nn.functional.linear(mixed, *output))


def test_reference_of_the_attention_update_leaves_x():
    x, *others = update(2, 3, 8, 2, 4, False, True, False)
    before = x.clone()
    with torch.no_grad():
        ops.attention_update(x, *others, backend="reference")
    assert torch.equal(x, before)


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_kernel_of_attention(rows, n, masked, biased, dtype):
    arguments = attention(rows, n, n, 2, 16, masked, biased)
    assert_gradients_round_like_the_reference(ops.gated_attention, *arguments, dtype=dtype, fixed=(4,))


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_kernel_of_attention_to_other_keys(dtype):
    for queries, keys, heads, c in ((5, 70, 4, 8), (70, 3, 2, 32)):
        arguments = attention(2, queries, keys, heads, c, True, True)
        assert_gradients_round_like_the_reference(ops.gated_attention, *arguments, dtype=dtype, fixed=(4,))


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_kernel_of_an_attention_update(rows, n, masked, dropped, dtype):
    x, *others = update(rows, n, 32, 4, 16, masked, dropped, dropped)
    for start in (x, transposed(x)):
        assert_gradients_round_like_the_reference(
            ops.attention_update, start, *others, dtype=dtype, fixed=(1, 11)
        )


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("dropped", [False, True])
def test_kernel_of_a_transition(rows, n, dropped, dtype):
    x, *others = normal(rows, n, 32), *norm(32), *linear(96, 32), *linear(32, 96), kept(n, 32, dropped)
    for start in (x, transposed(x)):
        assert_gradients_round_like_the_reference(ops.transition, start, *others, dtype=dtype, fixed=(7,))


@kernel
def test_kernel_of_a_transition_in_parts(monkeypatch):
    from axfold.ops.triton import narrow, transition

    monkeypatch.setattr(narrow, "WIDEST", 0)
    monkeypatch.setattr(transition, "HIDDEN_AT_ONCE", 16 * 64 * 2)
    arguments = normal(3, 17, 16), *norm(16), *linear(64, 16), *linear(16, 64), None
    assert_gradients_round_like_the_reference(ops.transition, *arguments, dtype=HALF[0])


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("dropped", [False, True])
def test_kernel_of_a_linear_residual(rows, n, dropped, dtype):
    x, *others = normal(rows, n, 32), normal(rows, n, 16), *linear(32, 16), kept(n, 32, dropped)
    for start in (x, transposed(x)):
        assert_gradients_round_like_the_reference(
            ops.linear_residual, start, *others, dtype=dtype, fixed=(4,)
        )


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("width", [4, 96])
def test_kernel_of_a_normed_linear(rows, n, width, dtype):
    x, *others = normal(rows, n, 32), *norm(32), *linear(width, 32)
    for start in (x, transposed(x)):
        assert_gradients_round_like_the_reference(ops.normed_linear, start, *others, dtype=dtype)
    assert_gradients_round_like_the_reference(ops.normed_linear, x, *others[:3], None, dtype=dtype)


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_of_a_triangle_operand(rows, n, masked, dtype):
    z, mask, *others = normal(rows, n, 32), mask_of(rows, n, masked), *norm(32), *linear(32, 32)
    for start in (z, transposed(z)):
        assert_gradients_round_like_the_reference(
            ops.triangle_operand, start, mask, *others, dtype=dtype, fixed=(1,)
        )


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("dropped", [False, True])
def test_kernel_of_a_triangle_update(rows, n, dropped, dtype):
    z, *others = triangle(rows, n, n + 3, 32, 16, dropped)
    for start in (z, transposed(z)):
        assert_gradients_round_like_the_reference(
            ops.triangle_update, start, *others, dtype=dtype, fixed=(11,)
        )


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
def test_kernel_of_an_outer_product(rows, n, dtype):
    operands = normal(rows, 5, 8), normal(5, n, 8, seed=1), 1 + normal(rows, n).abs()
    arguments = normal(rows, n, 32), *operands, *linear(32, 64)
    assert_gradients_round_like_the_reference(ops.outer_product_update, *arguments, dtype=dtype, fixed=(3,))


@kernel
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("rows", "n"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_of_a_global_column_attention(rows, n, masked, dtype):
    m, *others = column(rows, n, 32, 4, 8, masked)
    for start in (m, transposed(m)):
        assert_gradients_round_like_the_reference(
            ops.global_column_attention, start, *others, dtype=dtype, fixed=(1,)
        )


@kernel
def test_kernels_leave_gradients_in_float32_to_pytorch():
    x, weight, bias, layer = convert((normal(2, 3, 16), *norm(16), normal(16, 16)), torch.float32)
    layer.requires_grad_()
    with pytest.raises(ops.BackendError, match="it has no backward in float32"):
        ops.normed_linear(x, weight, bias, layer, backend="triton")
    assert ops.normed_linear.backend_for(x, weight, bias, layer) == "reference"


REAL: dict[str, Callable[[], tuple[ops.Op, tuple[Tensor | int | None, ...], tuple[int, ...]]]] = {
    "row attention": lambda: (ops.attention_update, update(70, 257, 256, 8, 32, True, True, True), (1, 11)),
    "extra row attention": lambda: (
        ops.attention_update,
        update(300, 130, 64, 8, 8, False, True, True),
        (1, 11),
    ),
    "column attention": lambda: (
        ops.attention_update,
        (transposed(normal(40, 1000, 256)), *update(40, 1000, 256, 8, 32, True, False, False)[1:]),
        (1, 11),
    ),
    "triangle attention": lambda: (
        ops.attention_update,
        update(129, 129, 128, 4, 32, False, True, True),
        (1, 11),
    ),
    "template attention": lambda: (
        ops.attention_update,
        update(96, 96, 64, 4, 16, True, True, True),
        (1, 11),
    ),
    "MSA transition": lambda: (
        ops.transition,
        (normal(60, 301, 256), *norm(256), *linear(1024, 256), *linear(256, 1024), None),
        (),
    ),
    "pair transition": lambda: (
        ops.transition,
        (normal(129, 129, 128), *norm(128), *linear(512, 128), *linear(128, 512), dropout(1, 129, 128)),
        (7,),
    ),
    "triangle operand": lambda: (
        ops.triangle_operand,
        (transposed(normal(129, 129, 128)), mask_of(129, 129, True), *norm(128), *linear(256, 128)),
        (1,),
    ),
    "triangle update": lambda: (ops.triangle_update, triangle(129, 129, 144, 128, 128, True), (11,)),
    "global column attention": lambda: (
        ops.global_column_attention,
        (transposed(normal(40, 1100, 64)), *column(40, 1100, 64, 8, 8, True)[1:]),
        (1,),
    ),
    "outer product": lambda: (
        ops.outer_product_update,
        (
            normal(129, 129, 128),
            normal(129, 200, 32),
            normal(200, 129, 32, seed=1),
            200 + normal(129, 129).abs(),
            *linear(128, 1024),
        ),
        (3,),
    ),
}


@on_a_gpu
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", REAL)
def test_kernel_at_real_sizes(name, dtype):
    op, arguments, fixed = REAL[name]()
    assert_gradients_round_like_the_reference(op, *arguments, dtype=dtype, fixed=fixed)


SMALL = MsaStack(
    blocks=1,
    heads=2,
    c_attention=16,
    c_outer_product=8,
    transition_factor=2,
    pair=TriangleStack(heads=2, c_attention=8, c_multiplication=16, transition_factor=2),
)


@kernel
@pytest.mark.filterwarnings(
    "ignore:Attempting to run cuBLAS"
)  # PyTorch says so of a backward's first product
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("extra", [False, True])
def test_kernels_of_a_whole_block(monkeypatch, dtype, extra):
    """With nothing left to the definitions, the gradients of all parameters are those of float64."""
    torch.manual_seed(0)
    block = EvoformerBlock(32, 16, replace(SMALL, global_column_attention=extra)).double()
    names = [name for name, _ in block.named_parameters()]
    mask = torch.ones(3, 17).double()
    mask[1, 5:] = 0  # each pair is still seen by a sequence: without, float16 would overflow
    inputs = normal(3, 17, 32), normal(17, 17, 16), mask, torch.ones(17, 17).double()

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        m, z, *masks = convert(inputs, dtype)
        block.to(m.device, dtype).eval()
        leaves = [m.requires_grad_(), z.requires_grad_(), *block.parameters()]
        new = block(m, z, *masks)
        return [x.double() for x in torch.autograd.grad([x.float().square().sum() for x in new], leaves)]

    state = {name: x.clone() for name, x in block.state_dict().items()}

    def again(dtype: torch.dtype) -> list[Tensor]:
        block.double().load_state_dict({name: x.to(dtype).double() for name, x in state.items()})
        return gradients(dtype)

    def none(*args: object) -> None:
        """Would fail as soon as its result were used."""

    every = [op for name in ops.__all__ if isinstance(op := getattr(ops, name), ops.Op)]
    with monkeypatch.context() as patched:
        for op in every:
            patched.setattr(op, "backends", {"reference": op.backends["reference"]})
        state = {name: x.to(dtype).double() for name, x in state.items()}
        exact, reference = again(torch.float64), again(dtype)
    with monkeypatch.context() as patched:
        for op in every:
            if "triton" in op.backends:
                patched.setattr(op, "checked", set())  # with the definition, which is not there
                patched.setattr(op, "backends", {"reference": (none, none), "triton": op.backends["triton"]})
        found = again(dtype)
    for name, one, other, true in zip(["m", "z", *names], found, reference, exact, strict=True):
        error, rounding = (one - true).norm(), (other - true).norm()
        # through a block errors add up by chance: what a ReLU is given may even round to the other side of 0
        assert error <= 2 * rounding + 0.02 * true.norm(), f"{name}: {error}, {rounding} of {true.norm()}"
