"""Recorded outputs of DeepMind's parsers: the few that are copied here, and all of them where they are at hand."""

from pathlib import Path

import pytest


@pytest.fixture(params=["copied", "parity"])
def cases(request: pytest.FixtureRequest) -> Path:
    if request.param == "copied":
        return Path(__file__).parent / "cases"
    return request.getfixturevalue("parity") / "cases"
