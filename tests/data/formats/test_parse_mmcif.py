import json

import numpy as np
import pytest

from axfold.data.formats import mmcif
from axfold.errors import InputError
from axfold.residues import ATOM_INDEX

TABLES = """data_1ABC
_entry.id 1ABC
_exptl.method 'X-RAY DIFFRACTION'
_refine.ls_d_res_high ?
_reflns.d_resolution_high 1.5
loop_
_pdbx_audit_revision_history.ordinal
_pdbx_audit_revision_history.revision_date
1 2020-05-01
2 2019-01-02
loop_
_entity_poly_seq.entity_id
_entity_poly_seq.num
_entity_poly_seq.mon_id
1 1 GLY
1 2 MSE
1 3 ARG
1 4 SER
1 4 THR
1 5 ALA
2 1 DA
loop_
_chem_comp.id
_chem_comp.type
GLY 'peptide linking'
ARG 'L-peptide linking'
DA 'DNA linking'
loop_
_struct_asym.id
_struct_asym.entity_id
A 1
B 2
C 1
"""

COLUMNS = [
    "group_PDB",
    "label_atom_id",
    "label_alt_id",
    "label_comp_id",
    "label_asym_id",
    "label_seq_id",
    "pdbx_PDB_ins_code",
    "Cartn_x",
    "Cartn_y",
    "Cartn_z",
    "occupancy",
    "auth_seq_id",
    "auth_asym_id",
    "pdbx_PDB_model_num",
]

ATOMS = [
    "HETATM CA . MSE A 2 ? 1 0 0 1 11 H 1",
    "HETATM SE . MSE A 2 ? 2 0 0 1 11 H 1",
    "ATOM CD . ARG A 3 A 0 0 0 1 11 H 1",
    "ATOM NH1 . ARG A 3 A 3 0 0 1 11 H 1",
    "ATOM NH2 . ARG A 3 A 2 0 0 1 11 H 1",
    "ATOM CA A SER A 4 ? 1 0 0 .7 12 H 1",
    "ATOM CA B THR A 4 ? 2 0 0 .3 12 H 1",
    "ATOM CA A ALA A 5 ? 1 0 0 .3 13 H 1",
    "ATOM CA B ALA A 5 ? 2 0 0 .4 13 H 1",
    "ATOM CA C ALA A 5 ? 3 0 0 .4 13 H 1",
    "ATOM P . DA B 1 ? 9 0 0 1 1 I 1",
    "HETATM O . HOH D . ? 9 0 0 1 90 H 1",
    "ATOM CA . ALA A 5 ? 7 0 0 1 13 H 2",
]


def structure(atoms: list[str] = ATOMS, tables: str = TABLES) -> str:
    header = "".join(f"_atom_site.{column}\n" for column in COLUMNS)
    return f"{tables}loop_\n{header}" + "\n".join(atoms) + "\n"


def test_equals_alphafold(cases):
    inputs = sorted((cases / "data_mmcif/input").glob("*.cif"))
    assert inputs
    for path in inputs:
        found = mmcif.parse(path.read_text(), path.name)
        expected = json.loads((cases / f"data_mmcif/{path.stem}.json").read_text())
        assert found.file_id == path.stem
        assert found.chain_to_seqres == expected["chain_to_seqres"], path.name
        header = {
            "release_date": found.header.release_date,
            "resolution": found.header.resolution,
            "structure_method": found.header.method,
        }
        assert header == expected["header"], path.name
        residues = {
            chain: {
                str(index): [r.name, r.is_missing, r.hetflag, r.chain, r.number, r.insertion_code]
                for index, r in enumerate(residues)
            }
            for chain, residues in found.seqres_to_structure.items()
        }
        assert residues == expected["seqres_to_structure"], path.name
        arrays = np.load(cases / f"data_mmcif/{path.stem}.npz")
        for chain in {key.split("/")[0] for key in arrays}:
            positions, mask = mmcif.atom_positions(found, chain)
            np.testing.assert_array_equal(positions, arrays[f"{chain}/all_atom_positions"], path.name)
            np.testing.assert_array_equal(mask, arrays[f"{chain}/all_atom_mask"], path.name)
            assert positions.dtype == mask.dtype == np.float32


def test_header():
    found = mmcif.parse(structure(), "x.cif")
    assert found.file_id == "1abc"
    assert found.header == mmcif.Header("2019-01-02", 1.5, "x-ray diffraction")
    bare = mmcif.parse(
        structure(tables=TABLES[TABLES.index("loop_\n_entity") :].join(["data_X\n", ""])), "x.cif"
    )
    assert bare.header == mmcif.Header(None, 0.0, "")


def test_chains_are_the_authors_and_what_was_not_seen_is_missing():
    found = mmcif.parse(structure(), "x.cif")
    assert found.chain_to_seqres == {"H": "GMRTA"}  # C was not seen at all, B is DNA
    first, mse, arg, mutated, _ = found.seqres_to_structure["H"]
    assert first == mmcif.Residue("GLY", is_missing=True)
    assert (mse.hetflag, mse.chain, mse.number, mse.insertion_code) == ("H_MSE", "H", 11, " ")
    assert (arg.hetflag, arg.number, arg.insertion_code) == (" ", 11, "A")
    assert mutated.name == "THR"


def test_positions_of_conformers_selenium_and_swapped_arginine():
    positions, mask = mmcif.atom_positions(mmcif.parse(structure(), "x.cif"), "H")
    x = {name: positions[:, ATOM_INDEX[name], 0].tolist() for name in ("CA", "SD", "NH1", "NH2")}
    assert x["SD"] == [0, 2, 0, 0, 0]
    assert (x["NH1"][2], x["NH2"][2]) == (2, 3)
    assert x["CA"] == [0, 1, 0, 2, 2]  # the last mutant, the fullest conformer, of the first model
    assert mask.sum() == 7
    assert mask[0].sum() == 0


def test_a_chain_that_is_not_there():
    with pytest.raises(KeyError):
        mmcif.atom_positions(mmcif.parse(structure(), "x.cif"), "Z")


def test_files_without_sequence_tables():
    atoms = [
        f"ATOM {name} . {residue} A {n} ? {n} 0 0 1 {n} A 1"
        for n, residue in enumerate(["GLY", "SEP"])
        for name in ("N", "CA", "C")
    ]
    found = mmcif.parse(structure([*atoms, "HETATM O . HOH B . ? 9 0 0 1 90 A 1"], "data_viewer\n"), "x.cif")
    assert found.file_id == "viewer"
    assert found.chain_to_seqres == {"A": "GS"}
    assert mmcif.atom_positions(found, "A")[1].sum() == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x\.cif: this is no mmCIF"),
        ("junk", r"x\.cif, line 1: this is no mmCIF file \(expected"),
        (TABLES, r"x\.cif: the structure has no atoms"),
        (structure().replace("_atom_site.Cartn_x", "_atom_site.other"), r"_atom_site\.Cartn_x"),
        (structure(["ATOM CA . GLY A 1 ? here 0 0 1 11 H 1"]), r"x\.cif, atom 1: Cartn_x is 'here'"),
        (structure(["ATOM CA . GLY A 1 ? nan 0 0 1 11 H 1"]), r"x\.cif, atom 1: Cartn_x is 'nan'"),
        (structure(["ATOM CA . GLY A . ? 0 0 0 1 11 H 1"]), r"label_seq_id of a residue of chain H is ''"),
        (structure(["ATOM CA . GLY A 1 ? 0 0 0 1 x H 1"]), r"number of a residue of chain H is 'x'"),
        (structure(["ATOM P . DA B 1 ? 9 0 0 1 1 I 1"]), r"x\.cif: the structure holds no protein chain"),
    ],
)
def test_what_is_no_structure_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        mmcif.parse(text, "x.cif")
