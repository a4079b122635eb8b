"""The benchmarks run, and their page is that of their results."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from axfold.config import PRESETS
from axfold.forecast import sizes_for
from axfold.memory.budget import parse_bytes
from axfold.memory.plan import max_length, plan

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    sys.path.append(str(BENCHMARKS))  # as where it is run as a script
    spec = importlib.util.spec_from_file_location("benchmark_report", BENCHMARKS / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_pass_is_timed_by_its_parts(tmp_path: Path, report: ModuleType) -> None:
    small = {
        "--clusters": 3,
        "--extra": 4,
        "--blocks": 1,
        "--threads": 1,
        "--repeats": 1,
        "--results": tmp_path,
    }
    options = [str(word) for option in small.items() for word in option]
    command = [sys.executable, str(BENCHMARKS / "model.py"), "--lengths", "5", "8", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text("utf-8"))
    assert [row["residues"] for row in result["measured"]] == [5, 8]
    for row in result["measured"]:
        parts = row["parts"]
        assert {
            "embedding",
            "extra MSA stack",
            "structure module",
            "heads",
            "Evoformer pair transition",
        } <= set(parts)
        assert sum(parts.values()) == pytest.approx(row["seconds"], abs=0.01)
        assert 0 <= parts["other"] < 0.5 * row["seconds"]
    assert f"| 8 | {result['measured'][1]['seconds']:.2f} |" in report.page(tmp_path)


def test_the_page_is_that_of_the_results(report: ModuleType) -> None:
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == report.page(BENCHMARKS / "results")


def test_the_newest_result_of_a_device_counts(tmp_path: Path, report: ModuleType) -> None:
    result = json.loads(next((BENCHMARKS / "results").glob("*.json")).read_text("utf-8"))
    for date in ("2020-01-02", "2020-01-01"):
        text = json.dumps({**result, "date": date})
        (tmp_path / f"{date}-cpu-fp32.json").write_text(text, "utf-8")
    page = report.page(tmp_path)
    assert "2020-01-02" in page
    assert "2020-01-01" not in page


def test_memory_is_measured_against_its_plan(tmp_path: Path) -> None:
    options = {
        "--lengths": "24",
        "--clusters": "8",
        "--extra": "16",
        "--precision": "fp32",
        "--picture": "16:fp32",
    }
    words = [word for option in options.items() for word in option]
    command = [sys.executable, str(BENCHMARKS / "memory.py"), *words]
    command += ["--results", str(tmp_path / "results"), "--page", str(tmp_path / "memory.md")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results").iterdir()
    rows = json.loads(path.read_text("utf-8"))["measured"]
    assert [row["tier"] for row in rows] == ["resident", "lean", "offload"]
    for row in rows:
        assert 0.95 <= row["predicted_bytes"] / row["measured_bytes"] <= 1.05
        assert row["seconds"] > row["run_seconds"] > 0
    assert (tmp_path / "memory-16-fp32.png").stat().st_size > 10_000
    text = (tmp_path / "memory.md").read_text("utf-8")
    assert "| 24 | fp32 | offload |" in text
    assert "![memory 16 fp32](memory-16-fp32.png)" in text


def test_the_page_of_small_and_many_proteins(tmp_path: Path, report: ModuleType) -> None:
    head = {"date": "2026-01-02", "device": "GPU 1", "torch": "2", "axfold": "abc"}
    settings = {
        "model": "model_5",
        "precision": "bf16",
        "clusters": 512,
        "extra": 5120,
        "recycles": 3,
        "processes": 2,
    }
    row = {"graphs": True, "seconds": 0.25, "passes": [0.5, 0.25], "launches": 900}
    small = {"residues": 256, "equal": True, "without": {**row, "launches": 4000}, "with": row}
    large = {"residues": 900, "equal": True, "without": row, "with": {**row, "graphs": False}}
    many = {"proteins": 30, "seconds": 60.0, "busy": 0.914, "busy_with_start": None}
    for folder, measured in (("graphs", [small, large]), ("throughput", many)):
        (tmp_path / folder).mkdir()
        result = {**head, "settings": settings, "measured": measured}
        (tmp_path / folder / "2026-01-02-gpu.json").write_text(json.dumps(result))
    page = report.page(tmp_path)
    assert "| 256 | 0.250 | 0.250 | 0.500 | 4000 | 900 | equal |" in page
    assert "| 900 | 0.250 | not used | 0.500 | 900 | 900 | equal |" in page
    assert "| GPU 1, model_5, bf16 | 3 | 2 | 30 | 60 | 1800 | 91% |  |" in page


TINY = {  # in place of settings that fill a GPU
    "short": {"residues": 24, "precision": "fp32", "gib": 1.0, "units": 0.001},
    "longest": {"residues": None, "precision": "fp32", "budget": "8 apples"},  # an error loses no other
    "short-offload": {
        "residues": 24,
        "precision": "fp32",
        "tier": "offload",
        "against": "short",
        "times": 1e3,
    },
}


def test_targets_are_measured_and_told_beside_their_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory, targets = importlib.import_module("memory"), importlib.import_module("targets")
    tiny = {name: targets.Target(**setting) for name, setting in TINY.items()}
    monkeypatch.setattr(memory, "TARGETS", tiny)
    words = ["--targets", "--clusters", "8", "--extra", "16", "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["memory.py", *words, "--page", str(tmp_path / "memory.md")])
    memory.main()
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text("utf-8"))["measured"]
    assert [row["target"] for row in rows] == list(TINY)
    assert ["error" in row for row in rows] == [False, True, False]
    text = (tmp_path / "memory.md").read_text("utf-8")
    assert re.search(r"\| short \| 24 \| resident \|  \| 1 GiB \| 0\.\d\d \| yes \|", text)
    assert re.search(r"\| short \| 24 \| resident \|  \| 0.001 U \| \d+\.\d\d \| no \|", text)
    assert re.search(r"\| short-offload \| 24 \| offload \|  \| 1e\+03 times \| \d\.\d\d \| yes \|", text)
    assert "8 apples" in text


def test_the_plan_keeps_to_every_target():
    spec = importlib.util.spec_from_file_location("benchmark_targets", BENCHMARKS / "targets.py")
    targets = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = targets
    spec.loader.exec_module(targets)
    for name, wanted in targets.TARGETS.items():
        config = PRESETS[wanted.model]
        sizes = sizes_for(config, wanted.residues or 1, wanted.precision, templates=wanted.templates)
        budget = parse_bytes(wanted.budget or "79GiB")
        if wanted.residues is None:
            sizes = replace(sizes, residues=max_length(sizes, budget, tier=wanted.tier) // 16 * 16)
        found = plan(sizes, budget, tier=wanted.tier, kept=wanted.kept, full=wanted.full)
        assert found.peak_device_bytes <= (wanted.gib or 79) * 2**30, name
        beside = sum(found.parts.get(part, 0) for part in ("weights", "features", "MSA", "extra MSA"))
        unit = sizes.residues**2 * 128 * sizes.itemsize
        assert found.peak_device_bytes - beside <= (wanted.units or 9) * unit, name
        assert wanted.against is None or wanted.against in targets.TARGETS
