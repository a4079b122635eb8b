import gemmi
import numpy as np
import pytest

from axfold.errors import InputError
from axfold.output import pdb


def arrays(case) -> dict[str, np.ndarray]:
    names = ("aatype", "atom_positions", "atom_mask", "chain_index", "b_factors")
    return {name: case[name] for name in names} | {"residue_number": case["residue_index"]}


def test_text_is_deepminds(golden):
    text = pdb.format_atoms(**arrays(np.load(golden / "glucagon.npz")))
    assert text == (golden / "glucagon.out.pdb").read_text()


@pytest.mark.parametrize("name", ["2rbg", "5nmu"])
def test_text_of_several_chains_is_deepminds(parity, name):
    folder = parity / "cases" / "data_pdb"
    assert (
        pdb.format_atoms(**arrays(np.load(folder / f"{name}.npz")))
        == (folder / f"{name}.out.pdb").read_text()
    )


def test_reads_back(predict):
    prediction = predict(residue_index=np.arange(10) + 5)
    text = pdb.write(prediction)
    assert "REMARK" not in text
    (chain,) = gemmi.read_pdb_string(text)[0]
    assert [residue.seqid.num for residue in chain] == list(range(6, 15))  # X has no atoms
    for i, residue in enumerate(chain):
        placed = prediction.atom_positions[i][prediction.atom_mask[i] > 0]
        np.testing.assert_allclose([atom.pos.tolist() for atom in residue], placed, atol=5.1e-4)
        assert [atom.b_iso for atom in residue] == pytest.approx(
            [prediction.plddt[i]] * len(residue), abs=5.1e-3
        )


def test_one_residue(predict):
    lines = pdb.write(predict(sequence="G")).splitlines()
    assert [line[:6].strip() for line in lines] == ["MODEL", *["ATOM"] * 4, "TER", "ENDMDL", "END"]
    assert {len(line) for line in lines} == {80}


def test_meaningless_structures_say_so(predict):
    lines = pdb.write(predict(meaningless=True)).splitlines()
    remarks = [line[11:].strip() for line in lines if line.startswith("REMARK   1 ")]
    assert "meaningless" in " ".join(remarks)
    assert {len(line) for line in lines} == {80}
    assert lines[len(remarks) :] == pdb.write(predict()).splitlines()


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"sequence": "G" * 63, "chain_index": np.arange(63)}, "63 chains"),
        ({"residue_index": np.arange(10) + 9_990}, "residue number 10,000"),
        ({"model": "model_1", "sequence": "W" * 7200}, "100,801 atoms"),
        ({"atom_positions": np.full((10, 37, 3), 10_000.0)}, "coordinates"),
        ({"atom_positions": np.full((10, 37, 3), -1000.0)}, "coordinates"),
    ],
)
def test_refuses_what_the_format_cannot_hold(predict, fields, what):
    prediction = predict(**fields)
    assert what in pdb.why_not(prediction)
    with pytest.raises(InputError, match=rf"{what}.*mmCIF"):
        pdb.write(prediction)


def test_holds_what_just_fits(predict):
    text = pdb.write(predict(sequence="G" * 62, chain_index=np.arange(62), residue_index=np.full(62, 9_998)))
    assert len(gemmi.read_pdb_string(text)[0]) == 62
    assert text.count("GLY 99999 ") == 5  # four atoms and the end of the chain called 9
