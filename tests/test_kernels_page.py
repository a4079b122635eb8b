"""docs/kernels.md: every public operation is on it, its examples run, its table is that of the results."""

import importlib.util
import re
from pathlib import Path

import pytest

from axfold import ops

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "kernels.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.+?)^```$", TEXT, re.M | re.S)


@pytest.mark.parametrize("name", ops.__all__)
def test_every_public_name_is_on_the_page(name: str) -> None:
    assert re.search(rf"`(ops\.)?{name}\b", TEXT)


def test_every_operation_has_its_row() -> None:
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", TEXT, re.M))
    values = {name: getattr(ops, name) for name in ops.__all__}
    functions = {name for name, value in values.items() if not isinstance(value, type)}
    assert rows == functions


@pytest.mark.parametrize("name", ops.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    text = getattr(ops, name).__doc__
    assert text
    assert len(text) > 40


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number: int) -> None:
    exec(compile(EXAMPLES[number], f"docs/kernels.md, example {number}", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_the_table_is_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("replaced", ROOT / "benchmarks" / "replaced.py")
    assert spec is not None
    assert spec.loader is not None
    replaced = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(replaced)
    assert replaced.page(TEXT) == TEXT
    shared = {"block": "Evoformer", "residues": 1024}
    result = {
        "date": "2026-01-02",
        "device": "a GPU",
        "precision": "bf16",
        "versions": {"torch": "2.11"},
        "softmax": "its own",
        "measured": [
            {**shared, "way": "OpenFold", "seconds": 0.3, "peak_bytes": 3 << 30},
            {**shared, "way": "replaced", "seconds": 0.1, "peak_bytes": 1 << 30},
            {**shared, "residues": 2048, "way": "OpenFold", "failed": "out of memory"},
            {**shared, "residues": 2048, "way": "replaced", "seconds": 0.5, "peak_bytes": 5 << 30},
        ],
    }
    replaced.write(tmp_path / "2026-01-02-a-gpu-bf16.json", result)
    page = replaced.page(TEXT, tmp_path)
    assert "| Evoformer | 1,024 | 300.0 | 100.0 | 3.0 | 3.00 | 1.00 |" in page
    assert "| Evoformer | 2,048 | fails | 500.0 |  |  | 5.00 |" in page
    assert replaced.page(page, tmp_path) == page
