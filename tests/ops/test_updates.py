"""Whole updates: those of axfold's modules with the same weights, for batches, masks and blocks of rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from kernels import INTERPRETED, kernel
from torch import Tensor, nn

from axfold import ops
from axfold.model.msa import MSAColumnAttention, MSAColumnGlobalAttention, MSARowAttention, OuterProductMean
from axfold.model.pair import TriangleAttention, TriangleMultiplication
from axfold.ops import Weights

N, S, C_Z, C_M, C, HEADS = 7, 5, 16, 32, 16, 2


class Case(NamedTuple):
    """A module, the function with its layers, and which of (z, m) they take, the one they update first."""

    module: nn.Module
    function: Callable[..., Tensor]
    inputs: str


def parts(layer: nn.Linear, count: int) -> list[Weights]:
    """The layers that axfold keeps as one."""
    biases = [None] * count if layer.bias is None else layer.bias.detach().chunk(count)
    weights = layer.weight.detach().chunk(count)
    return [Weights(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def attention(module: Any) -> dict[str, Any]:
    q, k, v = parts(module.attention.qkv, 3)
    layers = {"norm": module.norm, "gate": module.attention.gate, "output": module.attention.output}
    return {"heads": module.attention.heads, "q": q, "k": k, "v": v, **layers}


def multiplication(edges: str) -> Case:
    module = TriangleMultiplication(C_Z, C, edges)

    def run(z: Tensor, mask: Tensor | None, rows: int | None = None) -> Tensor:
        a, b = (module.own, module.others) if edges == "outgoing" else (module.others, module.own)
        (a, a_gate), (b, b_gate) = parts(a.linear, 2), parts(b.linear, 2)
        layers = {"a": a, "a_gate": a_gate, "b": b, "b_gate": b_gate, "norm_product": module.norm_product}
        layers |= {"norm": module.norm, "output": module.output, "gate": module.output_gate}
        return ops.triangle_multiplication(z, mask, edges=edges, **layers, rows=rows)

    return Case(module, run, "z")


def triangle_attention(node: str) -> Case:
    module = TriangleAttention(C_Z, C, HEADS, node)

    def run(z: Tensor, mask: Tensor | None, rows: int | None = None) -> Tensor:
        layers = attention(module)
        return ops.triangle_attention(z, mask, node=node, bias=module.bias, **layers, rows=rows)

    return Case(module, run, "z")


def row_attention() -> Case:
    module = MSARowAttention(C_M, C_Z, C, HEADS)
    pair = {"norm_pair": module.norm_pair, "bias": module.bias}

    def run(m: Tensor, z: Tensor, mask: Tensor | None, rows: int | None = None) -> Tensor:
        return ops.msa_row_attention(m, z, mask, **pair, **attention(module), rows=rows)

    return Case(module, run, "mz")


def column_attention() -> Case:
    module = MSAColumnAttention(C_M, C, HEADS)

    def run(m: Tensor, mask: Tensor | None, rows: int | None = None) -> Tensor:
        return ops.msa_column_attention(m, mask, **attention(module), rows=rows)

    return Case(module, run, "m")


def global_column_attention() -> Case:
    module = MSAColumnGlobalAttention(C_M, C, HEADS)

    def run(m: Tensor, mask: Tensor | None, rows: int | None = None) -> Tensor:
        k, v = parts(module.kv, 2)
        layers = {"norm": module.norm, "q": module.q, "gate": module.gate, "output": module.output}
        return ops.msa_global_column_attention(m, mask, k=k, v=v, **layers, rows=rows)

    return Case(module, run, "m")


def outer_product_mean() -> Case:
    module = OuterProductMean(C_M, C_Z, 8)
    layers = {"norm": module.norm, "a": module.a, "b": module.b, "output": module.output}

    def run(z: Tensor, m: Tensor, mask: Tensor | None, rows: int | None = None) -> Tensor:
        return ops.outer_product_mean(z, m, mask, **layers, rows=rows)

    return Case(module, run, "zm")


CASES = {
    "multiplication outgoing": lambda: multiplication("outgoing"),
    "multiplication incoming": lambda: multiplication("incoming"),
    "attention starting": lambda: triangle_attention("starting"),
    "attention ending": lambda: triangle_attention("ending"),
    "row attention": row_attention,
    "column attention": column_attention,
    "global column attention": global_column_attention,
    "outer product mean": outer_product_mean,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """With weights that are none of those a module starts with."""
    made = CASES[request.param]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made._replace(module=made.module.eval())


def representations(case: Case, *batch: int) -> tuple[list[Tensor], Tensor]:
    """Those that the case takes, and a mask with zeros: symmetric for a pair, as the modules want it."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"z": (N, N, C_Z), "m": (S, N, C_M)}
    given = [torch.randn(*batch, *shapes[name], generator=generator) for name in case.inputs]
    residues = (torch.rand(*batch, N, generator=generator) > 0.2).float()
    if case.inputs == "z":
        return given, residues[..., :, None] * residues[..., None, :]
    return given, (torch.rand(*batch, S, N, generator=generator) > 0.2).float()


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [None, 3])
def test_it_is_the_update_of_the_module(case: Case, masked: bool, rows: int | None) -> None:
    given, mask = representations(case)
    expected = case.module(*(x.clone() for x in given), mask if masked else torch.ones_like(mask))
    found = case.function(*given, mask if masked else None, rows=rows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.data_ptr() == given[0].data_ptr()
    assert found.stride() == given[0].stride()


@torch.no_grad()
def test_a_batch_is_its_members(case: Case) -> None:
    given, mask = representations(case, 2, 1)
    expected = [case.function(*(x[i, 0].clone() for x in given), mask[i, 0]) for i in range(2)]
    found = case.function(*given, mask)
    assert found.data_ptr() == given[0].data_ptr()
    torch.testing.assert_close(found[:, 0], torch.stack(expected))


def test_gradients_flow(case: Case) -> None:
    given, mask = representations(case, 2)
    leaves = [x.requires_grad_() for x in given]
    found = case.function(*leaves, mask)
    assert found.data_ptr() != given[0].data_ptr()
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(found.square().sum(), leaves))


@torch.no_grad()
def test_masks_have_any_dtype_and_single_numbers_count(case: Case) -> None:
    given, mask = representations(case)
    expected = case.function(*(x.clone() for x in given), mask)
    torch.testing.assert_close(case.function(*(x.clone() for x in given), mask.bool()), expected)
    hidden = torch.zeros(()).expand(mask.shape)
    found = case.function(*(x.clone() for x in given), hidden)
    torch.testing.assert_close(found, case.function(*given, torch.zeros(mask.shape)))


@torch.no_grad()
def test_parameters_are_converted(case: Case) -> None:
    given, mask = representations(case)
    found = case.function(*(x.bfloat16() for x in given), mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), case.function(*given, mask), atol=0.2, rtol=0.1)


@torch.no_grad()
def test_the_mask_of_columns_is_transposed() -> None:
    """A pair mask need not be symmetric: rows of zᵀ have its columns."""
    for make in (lambda: triangle_attention("ending"), lambda: multiplication("incoming")):
        case = make()
        (z,), _ = representations(case)
        mask = torch.ones(N, N)
        mask[2, 3] = 0
        changed = z.clone()
        changed[2, 3] += 1  # hidden: it may change itself, and by its bias or gate, but no sum over k
        first, second = case.function(z.clone(), mask), case.function(changed, mask)
        if "Multiplication" in type(case.module).__name__:
            same = torch.ones(N, N, dtype=torch.bool)
            same[2, 3] = False
            torch.testing.assert_close(first[same], second[same])
        else:
            torch.testing.assert_close(first[:, :2], second[:, :2])


@torch.no_grad()
def test_layers_may_lack_their_bias() -> None:
    z = torch.randn(N, N, C_Z)
    linear = [torch.randn(C, C_Z) for _ in range(6)]
    names = "a", "a_gate", "b", "b_gate", "output", "gate"

    def run(bias: Callable[[int], Tensor | None]) -> Tensor:
        layers = {name: Weights(weight, bias(C)) for name, weight in zip(names, linear, strict=True)}
        norms = {name: Weights(torch.ones(C), bias(C)) for name in ("norm", "norm_product")}
        return ops.triangle_multiplication(z.clone(), edges="outgoing", **norms, **layers)

    assert torch.equal(run(lambda c: None), run(torch.zeros))


@torch.no_grad()
def test_wrong_shapes_are_refused() -> None:
    case = triangle_attention("starting")
    z = torch.randn(N, N, C_Z)
    with pytest.raises(ValueError, match=r"z is a pair representation \[\*, N, N, c\], not \(7, 6, 16\)"):
        case.function(z[:, :-1], None)
    with pytest.raises(ValueError, match=r"The mask has shape \(7,\), not \(7, 7\)"):
        case.function(z, torch.ones(N))
    layers = {**attention(case.module), "heads": 3}
    with pytest.raises(ValueError, match="3 heads don't share 32 channels evenly"):
        ops.triangle_attention(z, node="starting", bias=case.module.bias, **layers)
    with pytest.raises(ValueError, match=r"m is \[\*, S, N, c\] and z \[\*, N, N, c\]"):
        row_attention().function(torch.randn(S, N + 1, C_M), z, None)


@kernel
@torch.no_grad()
def test_kernels_take_whole_updates(case: Case) -> None:
    """With the dtype that kernels are made for, a batch included."""
    device = "cpu" if INTERPRETED else "cuda"
    dtype = torch.float32 if INTERPRETED else torch.float16
    given, mask = representations(case, 2)
    expected = case.function(*(x.double() for x in given), mask)
    case.module.to(device)
    found = case.function(*(x.to(device, dtype) for x in given), mask.to(device))
    assert (found.cpu().double() - expected).norm() <= (1e-5 if INTERPRETED else 5e-3) * expected.norm()
