import csv

import pytest

from axfold.data.formats import table
from axfold.errors import InputError


def test_rows():
    first, second = table.parse('note, ID ,Sequence\nx,one,MK T\n\n,"two, too","A\nY"\n', "x.csv")
    assert (first.name, first.sequence, first.line) == ("one", "MKT", 2)
    assert (second.name, second.sequence) == ("two, too", "AY")


def test_long_sequences_leave_the_modules_limit():
    limit = csv.field_size_limit()
    (record,) = table.parse(f"id,sequence\na,{'M' * 200_000}\n", "x.csv")
    assert len(record.sequence) == 200_000 > limit
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x\.csv, line 1: .*id,sequence"),
        ("a,MKT\n", r"x\.csv, line 1: .*id,sequence"),
        ("id,sequence\na,MK\nb\n", r"x\.csv, line 3: the row has 1 column and the header 2"),
        ('id,sequence\na,"MK\n', r"x\.csv, line 2: this is no CSV"),
    ],
)
def test_what_is_no_table_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        table.parse(text, "x.csv")
