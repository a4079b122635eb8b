"""The kernels on the CPU: their tests once more, by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter")
@pytest.mark.parametrize(
    "name",
    [
        "triangle",
        "transition",
        "normed_linear",
        "linear_residual",
        "triton_attention",
        "pair",
        "point_attention",
        "column",
        "outer",
        "tf32",
        "layer_norm",
        "softmax",
        "updates",
        "backward",
        "batches",
        "frame_error",
        "health",
    ],
)
def test_kernels(name):
    pytest.importorskip("triton")
    path = Path(__file__).with_name(f"test_{name}.py")
    # what pads the operands is whatever was in memory
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-k",
        "kernel",
        "-W",
        "ignore::RuntimeWarning",
        str(path),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
