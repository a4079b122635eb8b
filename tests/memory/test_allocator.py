"""What PyTorch is told about a GPU's memory."""

import os
import subprocess
import sys

import pytest

from axfold.memory.allocator import without_gaps

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_memory_grows_in_place():
    without_gaps()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in os.environ


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_has_set_stays(name, monkeypatch):
    monkeypatch.setenv(name, "max_split_size_mb:512")
    without_gaps()
    assert {key: os.environ.get(key) for key in NAMES} == {
        key: "max_split_size_mb:512" if key == name else None for key in NAMES
    }


def test_the_command_says_it_before_pytorch_is_there():
    code = """
import os, sys
from axfold import cli
cli.app = lambda: print(os.environ["PYTORCH_ALLOC_CONF"], "torch" in sys.modules)
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["expandable_segments:True", "False"]
