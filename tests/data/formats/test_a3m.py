import json
import time

import numpy as np
import pytest

from axfold.data.formats import a3m
from axfold.errors import InputError


def test_equals_alphafold(cases):
    inputs = sorted((cases / "data_parsers/input").glob("*.a3m"))
    assert inputs
    for path in inputs:
        alignment = a3m.parse(path.read_text(), path.name)
        expected = np.load(cases / f"data_parsers/{path.name}.npz")
        assert list(alignment.sequences) == expected["sequences"].tolist(), path.name
        assert alignment.deletions.dtype == np.int32
        if alignment.sequences:
            np.testing.assert_array_equal(alignment.deletions, expected["deletion_matrix"], path.name)
        names = json.loads((cases / f"data_parsers/{path.name}.json").read_text())["descriptions"]
        assert list(alignment.descriptions) == names, path.name


def test_insertions_are_counted_before_the_column_that_follows():
    alignment = a3m.parse(">q\nMKT\n>a one\nabM.-cT\n>b\nMKTxyz\n", "x.a3m")
    assert alignment.sequences == ("MKT", "M-T", "MKT")
    assert alignment.deletions.tolist() == [[0, 0, 0], [2, 0, 1], [0, 0, 0]]
    assert alignment.descriptions == ("q", "a one", "b")


def test_rows_may_be_wrapped_and_annotated():
    text = "#5\t1\n>ss_pred\nCCHHH\n>ss_conf\n99012\n>q\nMK\nTAY\n>a\nMK-\nAY\n"
    assert a3m.parse(text, "x.a3m").sequences == ("MKTAY", "MK-AY")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">q\nMKT\n>a\nMKT\n>b\nMK\n", r"x\.a3m, line 5: row 3 \('b'\) has 2 columns and the query 3"),
        (">q\nMKT\n>a\nMkKTA\n", r"line 3: row 2 \('a'\) has 4 columns"),
        (">q\nMKT\n>a\n", r"line 3: row 2 \('a'\) has 0 columns"),
        (">q\nMKT\n>a\nM\n1T\n", r"line 5, column 1: '1' in row 2 \('a'\)"),
        (">q\nMKT\n>a\nM*T\n", r"line 4, column 2: '\*' in row 2"),
        (">q\nM-T\n", r"line 2, column 2: the first row, 'q', is the query.*'-'"),
        (">q\nMKkT\n", r"line 2, column 3: the first row, 'q', is the query.*'k'"),
        (">q\nMKT\x07\n", r"line 2, column 4: the character U\+0007"),
        ("#3,2\t1,1\n>q\nMKTMK\n", r"line 1: .*complex.*multimer"),
        ("#3\t2\n>q\nMKT\n", r"line 1: .*complex.*multimer"),
        ("MKT\n", r"line 1: .*header"),
    ],
)
def test_what_is_no_alignment_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        a3m.parse(text, "x.a3m")


def test_deep_alignments_are_fast():
    """10,000 rows of 400 columns, each with insertions: the limit is ten times what it takes."""
    row = "MKTAYIAKQR" * 40
    text = f">q\n{row}\n" + f">a\n{row[:200]}abcdefgh{row[200:]}\n" * 10_000
    start = time.perf_counter()
    alignment = a3m.parse(text, "x.a3m")
    assert time.perf_counter() - start < 2
    assert alignment.deletions.sum() == 8 * 10_000
