"""The network against the numbers that DeepMind's code gave, tensor by tensor."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from record import run_case

from axfold.testing import compare

CASES = {"mono_small": "model_1_ptm", "mono_notemplate": "model_3"}
PASSES = 4  # 0 and 3 recycles are recorded
OWN = Path(__file__).parent / "model_3_first_pass.npz"


def tolerances(path: Path) -> dict[str, float]:
    return {pattern: limit for pattern, limit in json.loads(path.read_text()).items() if pattern != "_about"}


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def read_golden(path: Path) -> dict[str, np.ndarray]:
    """The recorded network outputs; the confidences computed from them are tested with `output.confidence`."""
    return {name: x for name, x in read(path).items() if not name.startswith("confidence/")}


def check(found, golden, limits, *, at_least: int) -> None:
    compared = list(compare(found, golden, limits))
    wrong = [f"{c.name}: {c.error:.1e} over {c.tolerance:.0e}" for c in compared if not c.passed]
    assert not wrong, "\n".join(wrong)
    assert len(compared) >= at_least


def own_case() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and outputs of the subset that the repository carries, so that a clone tests itself."""
    own = read(OWN)
    inputs = {name.removeprefix("in/"): x[None] for name, x in own.items() if name.startswith("in/")}
    return inputs, {name: x for name, x in own.items() if name.startswith("r0/")}


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_tensor_in_float32(case, parity, synthetic_model):
    folder = parity / "cases" / case
    found = run_case(synthetic_model(CASES[case]), read(folder / "inputs.npz"), PASSES)
    golden = read_golden(folder / "outputs.npz")
    check(found, golden, tolerances(parity / "tolerances_f32.json"), at_least=70)


def test_every_recorded_tensor_in_float64(parity, synthetic_model):
    """Catches what float32 hides, such as another epsilon in a LayerNorm."""
    model = copy.deepcopy(synthetic_model("model_1_ptm")).double()
    found = run_case(model, read(parity / "cases/mono_small/inputs.npz"), PASSES)
    golden = read_golden(parity / "f64/mono_small.npz")
    check(found, golden, tolerances(parity / "tolerances_f64.json"), at_least=40)


def test_first_pass_in_a_clone(synthetic_model):
    inputs, golden = own_case()
    found = run_case(synthetic_model("model_3"), inputs, 1)
    check(found, golden, {"positions|affine": 2e-5, "": 1e-5}, at_least=11)


def test_bfloat16_stays_near_float32(synthetic_model):
    """bf16 keeps 8 bits of a number: errors of some percent after 52 blocks, and bonds as they should be."""
    inputs, golden = own_case()
    model = copy.deepcopy(synthetic_model("model_3")).to_precision(torch.bfloat16)
    sample = {name: torch.as_tensor(x[0]) for name, x in inputs.items()}
    with torch.inference_mode():
        result = model([sample])
    assert result.pair.dtype == torch.bfloat16
    assert result.structure.atom37.dtype == torch.float32
    found = {"r0/pair": result.pair.float().numpy()}
    check(found, {"r0/pair[::16]": golden["r0/pair[::16]"]}, {"": 0.05}, at_least=1)
    bonds = (result.structure.atom37[:, 1] - result.structure.atom37[:, 0]).norm(dim=-1)
    torch.testing.assert_close(bonds, torch.full_like(bonds, 1.46), atol=0.02, rtol=0)  # N to C-alpha, Å
