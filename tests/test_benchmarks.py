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
