"""`axfold plan`: what it prints, what it refuses, and that it needs neither a device nor PyTorch."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from axfold.cli import app

RUNNER = CliRunner()


def run(*words: str):
    return RUNNER.invoke(app, ["plan", *words])


def test_for_people():
    done = run("--length", "10000", "--precision", "bf16", "--memory", "80GB", "--model", "model_3")
    assert done.exit_code == 0
    assert "10000 residues, 512 clusters, 5120 extra sequences, model_3, bf16" in done.output
    assert "tier resident: at most 56." in done.output
    assert "triangle multiplication" in done.output
    assert "offload" in done.output


def test_rows_that_stay_on_the_device():
    words = "--length", "4096", "--memory", "9GB", "--model", "model_3"
    found = json.loads(run(*words, "--json").output)
    assert found["tier"] == "offload"
    assert 0 < found["kept_rows"] < 4096
    text = f"Of 4,096 rows of the pair representation {found['kept_rows']:,} stay on the device."
    assert text in run(*words).output
    for before, after in found["handovers"]:
        assert {before, after} <= set(found["blocks"])


def test_for_programs():
    done = run(
        *("--length", "1500", "--memory", "4GB", "--model", "model_1", "--msa", "128:256"),
        *("--templates", "2", "--precision", "fp32", "--json"),
    )
    assert done.exit_code == 0
    found = json.loads(done.output)
    assert (found["length"], found["clusters"], found["extra"], found["templates"]) == (1500, 124, 256, 2)
    assert found["tier"] in ("resident", "lean", "offload")
    assert found["peak_device_bytes"] == sum(found["parts"].values()) < 4e9
    assert found["peak_host_bytes"] == sum(found["host_parts"].values())
    assert found["seconds"] > 0
    assert found["blocks"]["triangle multiplication"] >= 1
    for lengths in found["max_length"].values():
        assert lengths["resident"] <= lengths["lean"] <= lengths["offload"]
    assert found["max_length"]["bf16"]["offload"] >= 1500


def test_on_a_cpu():
    done = run("--length", "300", "--memory", "16GB", "--device", "cpu", "--json")
    assert json.loads(done.output)["tier"] == "cpu"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--length", "20000", "--memory", "80GB"), 3, "residues are the most that fit"),
        (("--length", "100", "--memory", "10MB"), 3, "driver takes about 600 MiB alone"),
        (("--length", "100", "--memory", "10MB", "--device", "cpu"), 3, "no protein fits. Give more memory."),
        (("--length", "100", "--memory", "0"), 2, "--memory 0: give an amount"),
        (("--length", "100", "--memory", "8 apples"), 2, "--memory 8 apples: give an amount"),
        (("--length", "100", "--memory", "-5GB"), 2, "--memory -5GB: give an amount"),
        (("--length", "0", "--memory", "8GB"), 2, "--length 0: give the number of residues"),
        (
            ("--length", "9", "--memory", "8GB", "--precision", "fp8"),
            2,
            "--precision fp8: choose one of fp32, tf32, bf16, fp16",
        ),
        (
            ("--length", "9", "--memory", "8GB", "--model", "model_9"),
            2,
            "--model model_9: there is no such model",
        ),
        (("--length", "9", "--memory", "8GB", "--msa", "0:1"), 2, "give clusters and extra rows"),
        (("--length", "9", "--memory", "8GB", "--templates", "5"), 2, "model_1_ptm takes 0 to 4"),
        (
            ("--length", "9", "--memory", "8GB", "--model", "model_3", "--templates", "1"),
            2,
            "model_3 takes none",
        ),
    ],
)
def test_what_is_refused(words, code, message):
    done = run(*words)
    assert done.exit_code == code
    assert message in done.output
    assert done.output.count("\n") == 1


def test_it_needs_no_torch():
    program = (
        "import sys; from axfold.forecast import forecast; forecast(3000, '80GB');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'gemmi')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
