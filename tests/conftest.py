"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder with DeepMind's recorded numbers, beside the checkout; a clone alone tests its own subset."""
    beside = Path(__file__).parents[2] / "shared" / "parity"
    folder = Path(os.environ.get("AXFOLD_PARITY", beside))
    if not folder.is_dir():
        pytest.skip(f"DeepMind's recorded numbers are not in {folder}; AXFOLD_PARITY names another folder")
    return folder
