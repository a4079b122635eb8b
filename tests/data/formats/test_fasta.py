import json

import pytest

from axfold.data.formats import fasta
from axfold.errors import InputError


def test_equals_alphafold(cases):
    inputs = sorted((cases / "data_parsers/input").glob("*.fasta"))
    assert inputs
    for path in inputs:
        expected = json.loads((cases / f"data_parsers/{path.name}.json").read_text())
        records = fasta.parse(path.read_text(), path.name)
        assert [record.sequence for record in records] == expected["sequences"], path.name
        assert [record.description for record in records] == expected["descriptions"], path.name


def test_records_know_their_name_and_line():
    first, second = fasta.parse("# sizes\n\n>sp|P1|A_B some protein\nMK T\n\nAY\n >two\nG", "x.fasta")
    assert (first.name, first.description) == ("sp|P1|A_B", "sp|P1|A_B some protein")
    assert (first.sequence, first.line) == ("MKTAY", 3)
    assert (second.name, second.sequence, second.line) == ("two", "G", 7)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "mac"])
def test_line_ends(end):
    (record,) = fasta.parse(end.join([">a", "MK", "TA", ""]), "x.fasta")
    assert record.sequence == "MKTA"


def test_separators_of_unicode_stay_in_a_description():
    (record,) = fasta.parse(">a\u2028b\nMK", "x.fasta")
    assert (record.description, record.sequence) == ("a\u2028b", "MK")


def test_empty_names_and_sequences_are_kept():
    records = fasta.parse(">\n>b\nMK", "x.fasta")
    assert [(record.name, record.sequence) for record in records] == [("", ""), ("b", "MK")]


def test_sequence_without_header():
    with pytest.raises(InputError, match=r"x\.fasta, line 2: .*'>name'"):
        fasta.parse("\nMKTAY\n", "x.fasta")
