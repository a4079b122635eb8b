"""The memory that there is, as the plan takes it, and budgets that can't be."""

import pytest
import torch
from typer.testing import CliRunner

from axfold import cli, planning
from axfold.errors import InputError

GIB = 2**30


@pytest.fixture
def predict(small, tmp_path):
    (tmp_path / "one.fasta").write_text(">one\nMKTAYIAK\n")
    words = ["predict", str(tmp_path / "one.fasta"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    return lambda budget: CliRunner().invoke(
        cli.app, [*words, "--params", "synthetic", "--memory-budget", budget]
    )


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("0", "--memory-budget 0: give an amount of memory with its unit, as in 8GB or 500MiB."),
        (
            "8 apples",
            "--memory-budget 8 apples: give an amount of memory with its unit, as in 8GB or 500MiB.",
        ),
        ("0GB", "--memory-budget 0GB: give more than nothing, as in 8GB."),
        ("900TB", "--memory-budget 900TB: cpu has "),
    ],
)
def test_budgets_that_cannot_be(predict, budget, message):
    done = predict(budget)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"axfold: {message}")
    assert done.stderr.count("\n") == 1


def test_a_budget_that_fits_nothing(predict):
    done = predict("10kB")
    assert done.exit_code == 1
    assert "error: one failed (planning): " in done.stderr
    assert "no protein fits. Give more memory." in done.stderr


def test_more_than_the_card_has(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (5 * GIB, 8 * GIB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: GIB)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Card")
    with pytest.raises(InputError, match=r"^--memory-budget 9GiB: Card has 8\.00 GiB; give less"):
        planning.find_memory(device, "9GiB")
    assert planning.find_memory(device).device_bytes == 6 * GIB  # what others hold is not free
    assert planning.find_memory(device, "7GiB").device_bytes == 6 * GIB
    assert planning.find_memory(device, "2GiB").device_bytes == 2 * GIB


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "_CGROUPS", ())
    alone = planning._host_memory()
    assert 0 < alone <= planning._total_memory()
    monkeypatch.setattr(planning, "_CGROUPS", ((str(tmp_path), "memory.max", "memory.current"),))
    assert planning._host_memory() > 0.5 * alone  # there are no such files
    (tmp_path / "memory.current").write_text("50000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 20000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert planning._host_memory() > 0.5 * alone
    (tmp_path / "memory.max").write_text("100000000\n")
    assert planning._host_memory() == 70_000_000
    (tmp_path / "memory.max").write_text("10000000\n")
    assert planning._host_memory() == 0
