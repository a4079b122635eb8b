import numpy as np
import pytest

from axfold.data.formats import pdb
from axfold.errors import InputError
from axfold.residues import ATOM_INDEX, RESTYPE_INDEX

FIELDS = {
    "atom_positions": "positions",
    "atom_mask": "mask",
    "b_factors": "b_factors",
    "aatype": "aatype",
    "residue_index": "residue_index",
    "chain_index": "chain_index",
}


def atom(name, residue, chain, number, x=0.0, *, record="ATOM", altloc=" ", code=" ", occupancy=1.0) -> str:
    return (
        f"{record:6}    1 {f' {name}':4}{altloc}{residue:>3} {chain}{number:>4}{code}   {x:8.3f}{0:8.3f}{0:8.3f}"
        f"{occupancy:6.2f}{20:6.2f}\n"
    )


def test_equals_alphafold(cases):
    inputs = sorted((cases / "data_pdb").glob("*.pdb"))
    assert inputs
    for path in inputs:
        found = pdb.parse(path.read_text(), path.name)
        expected = np.load(path.with_name(f"{path.name.split('.')[0]}.npz"))
        for theirs, ours in FIELDS.items():
            array = getattr(found, ours)
            np.testing.assert_array_equal(array, expected[theirs].astype(array.dtype), f"{path.name} {ours}")


def test_residues_stand_chain_by_chain():
    text = (
        atom("CA", "GLY", "B", 5)
        + atom("CA", "MSE", "A", 7, record="HETATM")
        + atom("CA", "SER", "A", 7, code="A")
        + atom("O", "HOH", "B", 5, record="HETATM")
        + atom("ZN", "ZN", "B", 6, record="HETATM")
    )
    found = pdb.parse(text, "x.pdb")
    assert found.names == ("GLY", "HOH", "MSE", "SER")  # zinc is none of the 37 atoms
    assert found.insertion_codes == (" ", " ", " ", "A")
    assert found.residue_index.tolist() == [5, 5, 7, 7]
    assert found.chain_ids == ("A", "B")
    assert found.chain_index.tolist() == [1, 1, 0, 0]
    assert found.aatype.tolist() == [RESTYPE_INDEX["G"], 20, 20, RESTYPE_INDEX["S"]]


def test_conformers_mutants_and_models():
    text = (
        atom("CA", "SER", "A", 1, 1, altloc="A", occupancy=0.3)
        + atom("CA", "SER", "A", 1, 2, altloc="B", occupancy=0.7)
        + atom("CB", "SER", "A", 1, 3)
        + atom("CB", "SER", "A", 1, 4)
        + atom("CA", "GLY", "A", 2, 5, altloc="A")
        + atom("CA", "ALA", "A", 2, 6, altloc="B")
        + "ENDMDL\n"
        + atom("CA", "VAL", "A", 3, 7)
    )
    found = pdb.parse(text, "x.pdb")
    assert found.names == ("SER", "ALA")
    assert found.positions[:, ATOM_INDEX["CA"], 0].tolist() == [2, 6]
    assert found.positions[0, ATOM_INDEX["CB"], 0] == 3
    assert found.b_factors[0, ATOM_INDEX["CA"]] == 20


def test_short_lines_lack_occupancy_and_b_factor():
    found = pdb.parse(atom("CA", "GLY", "A", 1)[:54], "x.pdb")
    assert found.mask.sum() == 1
    assert found.b_factors.sum() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x\.pdb: the file holds no atoms"),
        ("HEADER\nEND\n", r"x\.pdb: the file holds no atoms"),
        (atom("CA", "GLY", "A", 1)[:50], r"x\.pdb, line 1: .*may be cut"),
        ("REMARK\n" + atom("CA", "GLY", "A", "x"), r"x\.pdb, line 2: the residue's number is 'x'"),
        (
            atom("CA", "GLY", "A", 1).replace("   0.000", "   0.0x0", 1),
            r"x\.pdb, line 1: a coordinate is '0\.0x0'",
        ),
    ],
)
def test_what_is_no_structure_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        pdb.parse(text, "x.pdb")
