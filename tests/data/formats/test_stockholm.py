import json

import numpy as np
import pytest

from axfold.data.formats import stockholm
from axfold.errors import InputError

TEXT = """# STOCKHOLM 1.0

#=GS a/1-4 DE [subseq from] one
#=GS b/1-4 AC none

q         M-KT-
a/1-4     MAK-G
#=GR a/1-4 PP 9999*
b/1-4     M-K--
#=GC RF   xxxxx

q         --A
a/1-4     C-A
b/1-4     --A
#=GC RF   x.x
//
"""

EDITS = {
    "deduplicate": lambda text: stockholm.deduplicate(text, "x.sto"),
    "remove_empty_columns": stockholm.remove_empty_columns,
    "truncate10": lambda text: stockholm.truncate(text, 10),
    "to_a3m": lambda text: stockholm.to_a3m(text, "x.sto"),
    "to_a3m_top5": lambda text: stockholm.to_a3m(text, "x.sto", rows=5),
}


def test_equals_alphafold(cases):
    inputs = sorted((cases / "data_parsers/input").glob("*.sto"))
    assert inputs
    for path in inputs:
        alignment = stockholm.parse(path.read_text(), path.name)
        expected = np.load(cases / f"data_parsers/{path.name}.npz")
        assert list(alignment.sequences) == expected["sequences"].tolist(), path.name
        np.testing.assert_array_equal(alignment.deletions, expected["deletion_matrix"], path.name)
        assert alignment.deletions.dtype == np.int32
        names = json.loads((cases / f"data_parsers/{path.name}.json").read_text())["descriptions"]
        assert list(alignment.descriptions) == names, path.name


@pytest.mark.parametrize("edit", EDITS)
def test_edits_equal_alphafold(cases, edit):
    expected = sorted((cases / "data_parsers").glob(f"*.{edit}.txt"))
    assert expected
    for path in expected:
        text = (cases / "data_parsers/input" / path.name.removesuffix(f".{edit}.txt")).read_text()
        assert EDITS[edit](text) == path.read_text(), path.name


def test_columns_of_the_query():
    alignment = stockholm.parse(TEXT, "x.sto")
    assert alignment.sequences == ("MKTA", "MK-A", "MK-A")
    assert alignment.deletions.tolist() == [[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0]]
    assert alignment.descriptions == ("q", "a/1-4", "b/1-4")


def test_dots_and_lower_case():
    alignment = stockholm.parse("q MK.T\na m.aT\n", "x.sto")
    assert alignment.sequences == ("MKT", "M-T")
    assert alignment.deletions.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_to_a3m_keeps_insertions_as_lower_case():
    assert stockholm.to_a3m(TEXT, "x.sto") == ">q \nMKTA\n>a/1-4 [subseq from] one\nMaK-gcA\n>b/1-4 \nMK-A\n"


def test_deduplicate_ignores_insertions():
    kept = stockholm.deduplicate(TEXT, "x.sto")
    assert stockholm.parse(kept, "x.sto").descriptions == ("q", "a/1-4")
    assert "#=GS a/1-4" in kept
    assert "#=GS b/1-4" not in kept
    assert "#=GR" not in kept


def test_truncate_counts_the_query():
    assert stockholm.parse(stockholm.truncate(TEXT, 2), "x.sto").descriptions == ("q", "a/1-4")


def test_remove_empty_columns_cuts_annotation_too():
    result = stockholm.remove_empty_columns(TEXT.replace("MAK-G", "M-K-G"))
    assert "q         MKT-" in result
    assert "#=GR a/1-4 PP 999*" in result
    assert "#=GC RF   xx\n" in result
    assert stockholm.remove_empty_columns("q --\na --\n#=GC RF xx\n//\n") == "\n\n\n//"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# STOCKHOLM 1.0\nq MKT\na MK\n",
            r"x\.sto, line 3: row 'a' has 2 columns in all and the first row 3",
        ),
        ("q MKT\na\n", r"line 2: .* 1 word\."),
        ("q MKT\na MK T\n", r"line 2: .* 3 words\."),
        ("q MKT\na M1T\n", r"line 2: '1' at column 2 of row 'a'"),
        ("q MKT\n//\n# STOCKHOLM 1.0\nq MKT\n//\n", r"line 3: .*one alignment a file"),
    ],
)
def test_what_is_no_alignment_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        stockholm.parse(text, "x.sto")


def test_no_rows():
    assert stockholm.parse("# STOCKHOLM 1.0\n//\n", "x.sto").sequences == ()
    assert stockholm.deduplicate("//\n", "x.sto") == "//\n"
    assert stockholm.to_a3m("//\n", "x.sto") == ""
