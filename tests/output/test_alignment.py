import numpy as np

from axfold.data.query import Alignment, Query
from axfold.output import alignment


def test_rows_are_different_and_begin_with_the_query(query):
    assert alignment.rows(query) == [query.sequence, "MKTAYLAKQG", "--TAYIAK--"]


def test_a3m_is_colabfolds_with_as_many_insertions(query):
    assert alignment.a3m(query).splitlines() == [
        "#10\t1",
        ">101",
        "MKTAYIAKQX",
        ">one",
        "MKTxxAYLAKQG",
        ">two",
        "--TAYIAK--",
    ]


def test_insertions_before_the_first_column_and_in_several():
    deletions = np.array([[0, 0, 0], [1, 0, 3]], np.int32)
    rows = Alignment(sequences=("ACD", "A-D"), deletions=deletions, descriptions=("q", "r"))
    text = alignment.a3m(Query(name="q", sequence="ACD", alignments=(rows,)))
    assert text.splitlines()[-1] == "xA-xxxD"


def test_single_sequence():
    query = Query(name="q", sequence="ACD")
    assert alignment.a3m(query) == "#3\t1\n>101\nACD\n"
    assert alignment.rows(query) == ["ACD"]
