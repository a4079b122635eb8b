"""docs/algorithms.md says where each algorithm is; every name there must be there."""

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
ENTRY = re.compile(r"`(axfold[\w.]*)`: ((?:`\w+`(?:, )?)+)")


def entries() -> list[tuple[str, str]]:
    return [
        (module, name)
        for module, names in ENTRY.findall(PAGE.read_text())
        for name in re.findall(r"`(\w+)`", names)
    ]


@pytest.mark.parametrize(("module", "name"), entries())
def test_name_is_where_the_page_says(module, name):
    assert hasattr(importlib.import_module(module), name)


def test_all_algorithms_are_listed():
    listed = [
        int(number)
        for cell in re.findall(r"^\| ([\d, ]+) \|", PAGE.read_text(), flags=re.MULTILINE)
        for number in cell.split(", ")
    ]
    assert set(listed) == set(range(1, 33))
