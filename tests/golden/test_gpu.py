"""The same numbers on a CUDA device."""

import copy

import numpy as np
import pytest
import torch
from record import run_case
from test_monomer import CASES, PASSES, check, read, read_golden, tolerances

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_tensor_in_float32(case, parity, synthetic_model):
    model = synthetic_model(CASES[case]).cuda()
    try:
        found = run_case(model, read(parity / "cases" / case / "inputs.npz"), PASSES)
    finally:
        model.cpu()
    golden = read_golden(parity / "cases" / case / "outputs.npz")
    check(found, golden, tolerances(parity / "tolerances_f32.json"), at_least=70)


def test_bfloat16_keeps_the_structure(parity, synthetic_model):
    """Reports nothing by itself; benchmarks/parity.py does. The trunk's tensors stay within some percent."""
    model = synthetic_model("model_3").cuda().to_precision(torch.bfloat16)
    found = run_case(model, read(parity / "cases/mono_notemplate/inputs.npz"), 1)
    golden = read_golden(parity / "cases/mono_notemplate/outputs.npz")
    trunk = {name: golden[name] for name in ("r0/single", "r0/msa_first_row", "r0/pair[::4]")}
    check(found, trunk, {"": 0.05}, at_least=3)
    assert all(np.isfinite(x).all() for x in found.values())


@pytest.mark.parametrize("case", CASES)
def test_float16_holds_the_golden_cases(case, parity, synthetic_model):
    """Their parameters are synthetic: others may make larger numbers, which `network.passes` refuses."""
    model = copy.deepcopy(synthetic_model(CASES[case])).cuda().to_precision(torch.float16)
    found = run_case(model, read(parity / "cases" / case / "inputs.npz"), 1)
    golden = read_golden(parity / "cases" / case / "outputs.npz")
    trunk = {name: golden[name] for name in ("r0/single", "r0/msa_first_row", "r0/pair[::4]")}
    check(found, trunk, {"": 0.02}, at_least=3)
    assert all(np.isfinite(x).all() for x in found.values())
