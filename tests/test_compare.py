"""Two structures, file to file."""

from pathlib import Path

import pytest

from axfold.compare import compare
from axfold.errors import InputError

DEMO = Path(__file__).parents[1] / "examples" / "demo.pdb"
GLUCAGON = Path(__file__).parent / "data" / "formats" / "cases" / "data_pdb" / "glucagon.pdb"


def test_a_structure_is_itself():
    found = compare(DEMO, DEMO)
    assert (found.residues, found.of) == (68, 68)
    assert found.lddt_ca == found.lddt == 1
    assert found.tm == pytest.approx(1)
    assert found.gdt_ts == 1
    assert found.rmsd == pytest.approx(0, abs=1e-4)


def test_what_is_missing_counts_for_the_whole(tmp_path):
    """Half of the residues, moved as a whole."""
    half = tmp_path / "half.pdb"
    with half.open("w") as file:
        for line in DEMO.read_text().splitlines(keepends=True):
            if line.startswith("ATOM") and int(line[22:26]) <= 34:
                file.write(f"{line[:30]}{float(line[30:38]) + 100:8.3f}{line[38:]}")
    found = compare(half, DEMO)
    assert (found.residues, found.of) == (34, 68)
    assert found.lddt_ca == 1
    assert found.tm == pytest.approx(0.5)
    assert found.gdt_ts == pytest.approx(0.5)
    assert found.rmsd == pytest.approx(0, abs=2e-3)


def test_a_wrong_place_is_seen(tmp_path):
    moved = tmp_path / "moved.pdb"
    with moved.open("w") as file:
        for line in DEMO.read_text().splitlines(keepends=True):
            if line.startswith("ATOM") and int(line[22:26]) > 34:
                line = f"{line[:30]}{float(line[30:38]) + 30:8.3f}{line[38:]}"
            file.write(line)
    found = compare(moved, DEMO)
    assert 0.4 < found.lddt_ca < 0.9
    assert 0.4 < found.tm < 0.8
    assert found.rmsd > 3


def test_other_proteins_are_not_compared(tmp_path):
    other = tmp_path / "other.pdb"
    other.write_text("ATOM      1  CA  TRP A   1       0.000   0.000   0.000  1.00  0.00           C\n")
    with pytest.raises(InputError, match="nothing in common"):
        compare(other, DEMO)
    empty = tmp_path / "empty.pdb"
    empty.write_text("ATOM      1  N   TRP A   1       0.000   0.000   0.000  1.00  0.00           N\n")
    with pytest.raises(InputError, match="no residue has a C-alpha"):
        compare(empty, DEMO)
    assert compare(GLUCAGON, GLUCAGON).lddt_ca == 1
