"""Amounts of memory in words."""

import pytest

from axfold.errors import InputError
from axfold.memory.budget import parse_bytes, written


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("80GiB", 80 * 2**30),
        ("80G", 80 * 2**30),
        ("500MB", 5 * 10**8),
        ("1.5 gib", 3 * 2**29),
        ("512kb", 512_000),
        ("2T", 2**41),
        (" 7B ", 7),
    ],
)
def test_amounts(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["0", "8", "8 apples", "-5GB", "GB", "", "1e9B", "٣GB", "8GBs", "nanGB", "0.1B", "0GB"]
)
def test_what_is_no_amount(text):
    with pytest.raises(InputError, match="as in 8GB") as refused:
        parse_bytes(text, "--memory")
    assert str(refused.value).startswith(f"--memory {text}: ")


def test_written():
    assert written(3 * 2**29) == "1.50 GiB"
    assert written(2**20 * 700) == "700 MiB"
