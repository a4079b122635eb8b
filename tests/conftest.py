"""What all tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def parity() -> Path:
    """Folder with DeepMind's recorded numbers, beside the checkout; a clone alone tests its own subset."""
    folder = Path(__file__).parents[2] / "shared" / "parity"
    if not folder.is_dir():
        pytest.skip("the folder with DeepMind's recorded numbers (../shared/parity) is not beside this checkout")
    return folder
