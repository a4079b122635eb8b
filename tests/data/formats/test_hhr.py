import json
from dataclasses import asdict
from pathlib import Path

import pytest

from axfold.data.formats import hhr
from axfold.errors import InputError

HITS = (Path(__file__).parent / "cases/data_parsers/input/pdb70_hits.hhr").read_text()


def test_equals_alphafold(cases):
    inputs = sorted((cases / "data_parsers/input").glob("*.hhr"))
    assert inputs
    for path in inputs:
        hits = hhr.parse(path.read_text(), path.name)
        expected = json.loads((cases / f"data_parsers/{path.name}.json").read_text())
        assert json.loads(json.dumps([asdict(hit) for hit in hits])) == expected, path.name


def test_columns_name_the_residues_they_hold():
    for hit in hhr.parse(HITS, "x.hhr"):
        assert len(hit.query) == len(hit.hit_sequence) == len(hit.indices_query) == len(hit.indices_hit)
        for letters, indices in ((hit.query, hit.indices_query), (hit.hit_sequence, hit.indices_hit)):
            residues = [index for index in indices if index >= 0]
            assert residues == list(range(residues[0], residues[0] + len(residues)))
            assert [index < 0 for index in indices] == [letter == "-" for letter in letters]


def test_no_hits():
    assert hhr.parse(HITS[: HITS.index("No 1")], "x.hhr") == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("No 2\n", "No two\n", r"x\.hhr, line \d+: the number of the hit is 'two'"),
        ("Probab=6.35", "Prob=6.35", r"line \d+: hit 2 lacks"),
        ("Sum_probs=11.0", "Sum_probs=many", r"line \d+: Sum_probs is 'many'"),
        ("Q query            11 HKAAE", "Q query            10 HKAAE", r"line \d+: .*don't agree"),
        ("Q query            11 HKAAE", "X query            11 HKAAE", r"hit 2 aligns 0 columns"),
    ],
)
def test_damage_is_named(old, new, message):
    assert old in HITS
    with pytest.raises(InputError, match=message):
        hhr.parse(HITS.replace(old, new, 1), "x.hhr")


def test_line_numbers():
    line = HITS[: HITS.index("Q query            11 HKAAE")].count("\n") + 1
    with pytest.raises(InputError, match=rf"x\.hhr, line {line}:"):
        hhr.parse(HITS.replace("Q query            11 HKAAE", "Q query            11 H1AAE", 1), "x.hhr")
