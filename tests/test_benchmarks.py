"""The benchmarks run, and their page is that of their results."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
