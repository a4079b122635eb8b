"""The shapes that the network runs: the kernels at them, and what tests and benchmarks take of them."""

from dataclasses import replace

import pytest
import torch
from kernels import INTERPRETED, on_a_gpu

from axfold.ops import cases


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.skipif(INTERPRETED, reason="of the references alone")
@pytest.mark.parametrize("case", [*cases.LAYERS[:9], *cases.LAYERS[-4:-2]], ids=str)
@torch.no_grad()
def test_some_rows_are_those_of_the_whole(case):
    small = replace(case, rows=5, length=17 if case.rows != case.length else 5)
    arguments = small.inputs(torch.float64, "cpu")
    some = small.some(arguments, [1, 4])
    found = small.taken(small.op(*some, backend="reference"), range(2))
    whole = small.taken(small.op(*arguments, backend="reference"), [1, 4])
    assert found.shape[0] == 2
    torch.testing.assert_close(found, whole)


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("case", [*cases.LAYERS[:9], *cases.LAYERS[-4:-2]], ids=str)
@torch.no_grad()
def test_kernels_at_the_shapes_of_the_network_round_like_the_reference(case, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        arguments = case.inputs(dtype, "cuda")
        rows = [0, case.rows // 2, case.rows - 1]
        some = case.some(arguments, rows)
        exact = case.taken(case.op(*(x.double() for x in some), backend="reference"), range(3))
        found = case.taken(case.op(*arguments, backend="triton"), rows)
        reference = case.taken(case.op(*some, backend="reference"), range(3))
    finally:
        torch.set_float32_matmul_precision(before)
    assert error(found, exact) <= 2 * error(reference, exact) + 1e-7
