import gemmi
import numpy as np
import pytest

from axfold.output import mmcif
from axfold.output.prediction import Prediction
from axfold.residues import RESTYPES_WITH_X

ATOM_SITE = [
    *("type_symbol", "label_atom_id", "label_comp_id", "label_asym_id", "auth_asym_id", "auth_seq_id"),
    *("Cartn_x", "Cartn_y", "Cartn_z", "B_iso_or_equiv", "occupancy", "pdbx_PDB_model_num"),
]


def prediction_of(case) -> Prediction:
    """A prediction whose atoms are those of a golden case; its B factors differ from atom to atom."""
    return Prediction(
        name="golden",
        sequence="".join(RESTYPES_WITH_X[residue] for residue in case["aatype"]),
        model="model_1",
        seed=0,
        aatype=case["aatype"],
        residue_index=case["residue_index"] - 1,
        chain_index=case["chain_index"],
        atom_positions=case["atom_positions"],
        atom_mask=case["atom_mask"],
        plddt=case["b_factors"][:, 1],
    )


def atom_site(text: str) -> list[list[str]]:
    block = gemmi.cif.read_string(text).sole_block()
    return [list(row) for row in block.find("_atom_site.", ATOM_SITE)]


def assert_same_atoms(folder, name: str) -> None:
    case = np.load(folder / f"{name}.npz")
    ours = atom_site(mmcif.write(prediction_of(case)))
    theirs = atom_site((folder / f"{name}.out.cif").read_text())
    alpha_carbon = np.repeat(case["b_factors"][:, 1], case["atom_mask"].sum(axis=1).astype(int))
    assert len(ours) == len(theirs)
    for mine, other, b_factor in zip(ours, theirs, alpha_carbon, strict=True):
        assert mine[:6] == other[:6]
        assert [float(x) for x in mine[6:9]] == [float(x) for x in other[6:9]]
        assert float(mine[9]) == pytest.approx(b_factor, abs=5.1e-4)
        assert [float(x) for x in mine[10:]] == [float(x) for x in other[10:]]


def test_atoms_are_deepminds(golden):
    assert_same_atoms(golden, "glucagon")


@pytest.mark.parametrize("name", ["2rbg", "5nmu"])
def test_atoms_of_several_chains_are_deepminds(parity, name):
    assert_same_atoms(parity / "cases" / "data_pdb", name)


def test_gemmi_reads_it_back(predict):
    prediction = predict(residue_index=np.arange(10) + 5)
    structure = gemmi.make_structure_from_block(gemmi.cif.read_string(mmcif.write(prediction)).sole_block())
    (chain,) = structure[0]
    assert [residue.seqid.num for residue in chain] == list(range(6, 15))  # X has no atoms
    assert [residue.label_seq for residue in chain] == list(range(1, 10))
    for i, residue in enumerate(chain):
        placed = prediction.atom_positions[i][prediction.atom_mask[i] > 0]
        np.testing.assert_allclose([atom.pos.tolist() for atom in residue], placed, atol=5.1e-4)
        assert [atom.b_iso for atom in residue] == pytest.approx(
            [prediction.plddt[i]] * len(residue), abs=5.1e-4
        )
    (entity,) = structure.entities
    assert entity.full_sequence == ["MET", "LYS", "THR", "ALA", "TYR", "ILE", "ALA", "LYS", "GLN", "UNK"]


def test_biotite_reads_it_back(predict, tmp_path):
    pdbx = pytest.importorskip("biotite.structure.io.pdbx")
    prediction = predict()
    path = tmp_path / "a.cif"
    path.write_text(mmcif.write(prediction))
    file = pdbx.CIFFile.read(path)
    atoms = pdbx.get_structure(file, model=1, extra_fields=["b_factor"], use_author_fields=False)
    mask = prediction.atom_mask > 0
    np.testing.assert_allclose(atoms.coord, prediction.atom_positions[mask], atol=5.1e-4)
    np.testing.assert_allclose(atoms.b_factor, np.repeat(prediction.plddt, mask.sum(axis=1)), atol=5.1e-4)


def test_says_how_good_it_is_and_how_it_was_made(predict):
    prediction = predict(iptm=0.25)
    block = gemmi.cif.read_string(mmcif.write(prediction)).sole_block()
    kinds = {row[0]: (row[1], row[2]) for row in block.find("_ma_qa_metric.", ["id", "type", "mode"])}
    values = {
        kinds[row[0]]: float(row[1])
        for row in block.find("_ma_qa_metric_global.", ["metric_id", "metric_value"])
    }
    assert values == {
        ("pLDDT", "global"): pytest.approx(prediction.plddt.mean(), abs=5.1e-4),
        ("pTM", "global"): 0.457,
        ("ipTM", "global"): 0.25,
    }
    local = [float(row[0]) for row in block.find("_ma_qa_metric_local.", ["metric_value"])]
    np.testing.assert_allclose(local, prediction.plddt, atol=5.1e-4)
    (citation,) = block.find(["_citation.pdbx_database_id_DOI"])
    assert citation[0] == "10.1038/s41586-021-03819-2"
    (software,) = block.find(["_software.name"])
    assert software[0] == "axfold"
    (step,) = block.find(["_ma_protocol_step.details"])
    assert "Network model_1_ptm, seed 0, 2 recycles, parameters random numbers." in step[0]


def test_models_without_ptm_have_none(predict):
    block = gemmi.cif.read_string(mmcif.write(predict("model_1"))).sole_block()
    assert sorted(row[0] for row in block.find(["_ma_qa_metric.type"])) == ["pLDDT", "pLDDT"]


def test_equal_chains_share_their_entity(predict):
    chains = np.repeat([0, 1, 2], [4, 4, 2])
    prediction = predict(sequence="ACDEACDEGG", chain_index=chains, residue_index=np.r_[0:4, 0:4, 0:2])
    structure = gemmi.make_structure_from_block(gemmi.cif.read_string(mmcif.write(prediction)).sole_block())
    assert [chain.name for chain in structure[0]] == ["A", "B", "C"]
    assert [entity.subchains for entity in structure.entities] == [["A", "B"], ["C"]]


def test_one_residue_is_a_polymer(predict):
    block = gemmi.cif.read_string(mmcif.write(predict(sequence="G"))).sole_block()
    assert [row[0] for row in block.find(["_entity.type"])] == ["polymer"]
    assert {row[0] for row in block.find(["_atom_site.label_seq_id"])} == {"1"}


def test_holds_more_chains_than_pdb(predict):
    prediction = predict(sequence="G" * 70, chain_index=np.arange(70), residue_index=np.full(70, 20_000))
    structure = gemmi.make_structure_from_block(gemmi.cif.read_string(mmcif.write(prediction)).sole_block())
    assert len({chain.name for chain in structure[0]}) == 70
    assert structure[0][69][0].seqid.num == 20_001


def test_meaningless_structures_say_so(predict):
    assert "meaningless" not in mmcif.write(predict())
    block = gemmi.cif.read_string(mmcif.write(predict(meaningless=True))).sole_block()
    assert "meaningless" in block.find_value("_struct.pdbx_model_details")
    assert "meaningless" in block.find(["_ma_protocol_step.details"])[0][0]


@pytest.mark.parametrize("name", ["../é 'x'", "two\nlines", "a;b\n;c", "data_x #", "日本"])
def test_any_name_makes_a_valid_file(predict, name):
    text = mmcif.write(predict(name=name))
    assert text.isascii()
    assert len(atom_site(text)) == predict().atom_mask.sum()
