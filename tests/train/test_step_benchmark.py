"""The benchmark of a whole step runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

from samples import TINY

from axfold import config

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import training_step


def test_a_step_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(config.PRESETS, "model_5", replace(config.PRESETS["model_5"], model=TINY))
    out = tmp_path / "step.json"
    options = (
        f"--device cpu --models model_5 --stages fine_tuning --crop 8 --rows 4:4 --repeats 1 --out {out}"
    )
    monkeypatch.setattr(sys, "argv", ["training_step.py", *options.split()])
    training_step.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["way"] for row in rows] == ["recomputed", "kept"]
    assert all(row["gradient"] > 0 and row["update"] > 0 and "failed" not in row for row in rows)
    assert all(row["sample"] >= row["gradient"] + 1.5 * row["recycle"] - 1e-9 for row in rows)
    assert "s/sample" in capsys.readouterr().out
