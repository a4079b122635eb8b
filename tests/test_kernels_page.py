"""docs/kernels.md: every public operation is on it, its examples run, its table is that of the results."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


def test_every_backend_has_its_row() -> None:
    section = TEXT.partition("### Backends")[2]
    rows = re.findall(r"^\| (.+) \| `(\w+)` \| .+ \|$", section, re.M)
    every = {name: op for name in ops.__all__ if isinstance(op := getattr(ops, name), ops.Op)}
    ranks: dict[str, list[str]] = {
        name: [] for name in every
    }  # of an operation, its backends as the page has them
    for operations, backend in rows:
        names = set(re.findall(r"`(\w+)`", operations))
        for name in set(every) - names if operations.startswith("all") else names:
            ranks[name].append(backend)
    installed = {backend for op in every.values() for backend in op.backends}
    for name, op in every.items():
        # the last to be registered is the first to be asked
        assert [x for x in ranks[name] if x in installed] == list(reversed(op.backends)), name


def test_what_hopper_does_not_take_is_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    hopper = pytest.importorskip("axfold.ops.triton.attention_hopper")
    _, why_not = ops.gated_attention.backends["hopper"]
    monkeypatch.setattr(hopper.tiles, "gpu", lambda device: (90, 132))

    def reason(
        *shape: int,
        dtype: torch.dtype = torch.bfloat16,
        device: str = "cuda",
        mask: torch.Tensor | None = None,
    ) -> str | None:
        q = torch.empty(shape or (3, 384, 4, 32), dtype=dtype, device=device)
        hides_none = torch.ones((), device=device).expand(q.shape[:-2])
        return why_not(q, q, q, q, hides_none if mask is None else mask)

    with FakeTensorMode():
        found = [
            reason(device="cpu"),
            reason(mask=torch.ones(()).expand(3, 384)),
            reason(dtype=torch.float16),
            reason(mask=torch.ones(3, 384, device="cuda")),
            reason(2, 3, 384, 4, 32),
            reason(3, 383, 4, 32),
            reason(3, 384, 4, 64),
        ]
        q = torch.empty(3, 384, 4, 32, dtype=torch.bfloat16, device="cuda")
        hides_none = torch.ones((), device="cuda").expand(3, 384)
        strides = 128, 3 * 128, 32, 1
        swapped = torch.empty_strided((3, 384, 4, 32), strides, dtype=torch.bfloat16, device="cuda")
        found.append(why_not(swapped, q, q, q, hides_none))
        strides = 384 * 132, 132, 32, 1
        narrow = torch.empty_strided((3, 384, 4, 32), strides, dtype=torch.bfloat16, device="cuda")
        found.append(why_not(narrow, q, q, q, hides_none))
        learning = torch.empty(3, 384, 4, 32, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        found.append(why_not(learning, q, q, q, hides_none))
    assert len(set(found)) == 10
    listed = re.findall(r'^- "(.+)"$', TEXT, re.M)
    assert set(listed) == set(found)


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
