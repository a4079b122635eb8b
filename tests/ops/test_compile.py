"""Kernels compile for GPUs that are not here; `benchmarks/compile.py` does it for all of them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from kernels import INTERPRETED

from axfold.ops import cases

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "benchmarks" / "compile.py"
    spec = importlib.util.spec_from_file_location("benchmark_compile", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def number(name: str) -> int:
    """Of the call with the trunk in bfloat16."""
    return [f"{c.op.name}, {c.name}" for c in cases.calls(torch.bfloat16)].index(name)


# the calls with the most channels; a GPU with little shared memory, and one of another kind
@pytest.mark.parametrize("gpu", [86, 120])
@pytest.mark.parametrize("name", ["transition, MSA", "normed_linear, MSA, to attention"])
def test_the_largest_fit(script, name, gpu):
    row, *_ = script.work(("bf16", False, number(name), gpu))
    assert (row.wrong, row.products) == ("", "HMMA")
    assert 16 <= row.registers <= 255
    assert row.shared > 2**14


def test_hopper_multiplies_by_warp_groups(script):
    row, *_ = script.work(("bf16", False, number("normed_linear, pair, to attention"), 90))
    assert (row.wrong, row.products) == ("", "HGMMA")


def test_a_tile_that_does_not_fit_is_found(script, monkeypatch):
    monkeypatch.setitem(script.SHARED, 86, 16)
    row, *_ = script.work(("bf16", False, number("normed_linear, pair, to bias"), 86))
    assert row.wrong == "more than 16 KiB of shared memory"


def test_what_gpus_leave_to_pytorch_is_not_compiled(script):
    assert script.work(("bf16", False, number("transition, pair"), 75)) == []


def test_every_op_with_a_kernel_is_compiled(script):
    named = {call.op.name for call in cases.calls(torch.bfloat16) if "triton" in call.op.backends}
    calls = list(cases.calls(torch.bfloat16))
    assert {calls[i].op.name for _, _, i in script.wanted(["bf16"], "")} == named
    for gpu in script.SHARED:
        for _, masked, i in script.wanted(["bf16"], ""):
            call = list(cases.calls(torch.bfloat16, masked))[i]
            assert script.why_not(call, gpu) is None
            assert script.launches(call, gpu)
