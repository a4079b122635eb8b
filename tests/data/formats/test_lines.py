import pytest

from axfold.data.formats.lines import integer, lines, locate, number, short, shown
from axfold.errors import InputError


@pytest.mark.parametrize("text", ["a\n\nb", "a\r\n\r\nb\r\n", "a\r\rb\r", "a\n\nb\n"])
def test_lines_of_all_systems(text):
    assert lines(text) == ["a", "", "b"]


def test_no_lines():
    assert lines("") == []


@pytest.mark.parametrize(
    ("position", "place"),
    [(0, (3, 1)), (2, (3, 3)), (3, (5, 2)), (4, (5, 4)), (5, (6, 1)), (99, (2, 1))],
)
def test_locate_skips_white_space(position, place):
    assert locate(">other\n>one\nMKT\n\n A Y\nG\n", 2, position) == place


def test_shown():
    assert (shown("*"), shown("é"), shown("\t")) == ("'*'", "'é'", "the character U+0009")


def test_numbers():
    assert integer(" 12", "x, line 1", "it") == 12
    assert number("1e3", "x, line 1", "it") == 1000
    with pytest.raises(InputError, match=r"x, line 1: it is '1\.5' in place of a whole number"):
        integer("1.5 ", "x, line 1", "it")
    for text in ("", "nan", "inf", "1,5"):
        with pytest.raises(InputError, match=r"x, line 1: it is '.*' in place of a number"):
            number(text, "x, line 1", "it")


def test_short():
    assert short("a\nb") == r"'a\nb'"
    assert len(short("x" * 1_000_000)) == 62
