"""Files as people have them -> a store, and what is told of what isn't in it."""

import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from chains import a3m_text, pdb_text
from typer.testing import CliRunner

from axfold import cli, residues
from axfold.data.formats import a3m, mmcif, pdb
from axfold.errors import InputError
from axfold.train import openproteinset
from axfold.train.prepare import Options, prepare
from axfold.train.store import Store

FORMATS = Path(__file__).parents[1] / "data" / "formats"
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRG"
CA, CB, OG = (residues.ATOM_INDEX[name] for name in ("CA", "CB", "OG"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pdbs").mkdir()
    (tmp_path / "msas").mkdir()
    return tmp_path


def made(*structures: str, **options) -> Store:
    options = {"workers": 0, "min_length": 4, "out": Path("out"), **options}
    prepare(Options(structures=tuple(map(Path, structures)), **options))
    return Store(Path("out"))


def report() -> dict[str, tuple[str, str, str]]:
    """Chain -> outcome, reason, text; the last of several."""
    with open("out/report.csv", newline="") as file:
        return {row["chain"]: (row["outcome"], row["reason"], row["text"]) for row in csv.DictReader(file)}


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def good(name: str = "good") -> None:
    """A structure and its alignment, so that a store isn't empty."""
    write(f"pdbs/{name}.pdb", pdb_text(SEQUENCE))
    write(f"msas/{name}.a3m", a3m_text(SEQUENCE, SEQUENCE.replace("K", "-"), "aa" + SEQUENCE.lower().upper()))


def test_a_pdb_file_and_its_alignment(folder):
    good()
    store = made("pdbs", msas=(Path("msas"),))
    chain = store[0]
    assert (chain.name, chain.sequence, chain.split, chain.set) == ("good", SEQUENCE, "train", "experimental")
    assert not chain.backbone_only
    assert len(chain.msa) == 2  # of rows that occur twice the first is taken, with its deletions
    found = pdb.parse(Path("pdbs/good.pdb").read_text(), "")
    there = chain.mask > 0
    off = found.positions[there] - found.positions[0, 0] - chain.positions[there]
    assert np.abs(off).max() < 0.0101
    glycine = residues.RESTYPE_INDEX["G"]
    assert not chain.mask[chain.aatype == glycine, CB].any()  # no such atom, whatever the file says
    assert chain.mask[chain.aatype != glycine, CB].all()
    np.testing.assert_array_equal(chain.residue_index, np.arange(len(SEQUENCE)))


def test_an_mmcif_file_keeps_residues_that_were_not_seen(folder):
    path = FORMATS / "cases/data_mmcif/input/3zee.cif"
    structure = mmcif.parse(path.read_text(), "")
    store = made(str(path))
    for place, row in enumerate(store.rows):
        name = row.name.removeprefix("3zee_")
        assert row.entry == "3zee"
        assert row.released == structure.header.release_date
        assert row.resolution == structure.header.resolution
        chain = store[place]
        assert chain.sequence == structure.chain_to_seqres[name]
        np.testing.assert_array_equal(chain.residue_index, np.arange(row.length))
        _, mask = mmcif.atom_positions(structure, name)
        np.testing.assert_array_equal(chain.mask[:, CA], mask[:, CA])


def test_gzip_tar_and_processes_give_the_same(folder):
    for i in range(5):
        good(f"g{i}")
    made("pdbs", msas=(Path("msas"),))
    wanted = {p.name: p.read_bytes() for p in Path("out").iterdir() if p.name != "report.csv"}
    for name in ("pdbs", "msas"):
        with tarfile.open(f"{name}.tar.xz", "w:xz") as archive:
            for path in Path(name).iterdir():
                content = gzip.compress(path.read_bytes())
                member = tarfile.TarInfo(f"{name}/inner/{path.name}.gz")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    made("pdbs.tar.xz", msas=(Path("msas.tar.xz"),), overwrite=True, workers=2)
    assert wanted == {p.name: p.read_bytes() for p in Path("out").iterdir() if p.name != "report.csv"}


def test_a_tar_that_climbs_out_or_is_cut(folder):
    with tarfile.open("evil.tar", "w") as archive:
        member = tarfile.TarInfo("../evil.pdb")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(InputError, match=r"evil.tar: the archive can't be unpacked"):
        made("evil.tar")
    Path("cut.tar.gz").write_bytes(gzip.compress(Path("evil.tar").read_bytes())[:40])
    with pytest.raises(InputError, match=r"cut.tar.gz: the archive can't be unpacked"):
        made("cut.tar.gz")


def backbones(path: str, sequence: str, *, profile: bool = True, **changes) -> None:
    n = len(sequence)
    atoms = np.array([[(380 * i + 100 * a, 10 * a, 0) for a in range(4)] for i in range(n)], np.int16)
    atoms[:, 3, 1] = 120
    arrays = {
        "ids": np.array(["1aaa_A", "1bbb_B"]),
        "offsets": np.array([0, n, 2 * n]),
        "seq": np.frombuffer((sequence + sequence).encode(), np.uint8),
        "coords_centiA": np.concatenate([atoms, atoms]),
    }
    if profile:
        arrays["profile_u8"] = np.tile(np.arange(20, dtype=np.uint8), (2 * n, 1))
    np.savez_compressed(path, **(arrays | changes))


TABLE = "id,file,chain,split,cluster,resolution,pdb\n"


def test_a_table_of_full_structures_and_backbones(folder):
    good("1aaa_A")
    backbones("bb.npz", SEQUENCE)
    write(
        "index.csv",
        TABLE
        + "1bbb_B,bb.npz,B,valid,7,1.5,1bbb\n1aaa_A,bb.npz,A,train,8,2.5,1aaa\n"
        + "1aaa_A,full/1aaa_A.pdb.gz,X,train,8,2.5,1aaa\nlost,none.pdb,A,train,,,\n",
    )
    store = made("index.csv", "pdbs", msas=(Path("msas"),))
    assert [row.name for row in store.rows] == ["1aaa_A", "1bbb_B"]
    full, backbone = store[0], store[1]
    assert not full.backbone_only
    assert (full.cluster, full.resolution, len(full.msa), full.profile) == ("8", 2.5, 2, None)
    assert backbone.backbone_only
    assert (backbone.split, backbone.cluster, backbone.entry) == ("valid", "7", "1bbb")
    assert backbone.mask.sum() == 4 * len(SEQUENCE)
    np.testing.assert_allclose(
        backbone.positions[3, CA] - backbone.positions[0, 0], [12.4, 0.1, 0], atol=1e-5
    )
    # profiles have their columns by letter, and the store by residue type
    wanted = ["ACDEFGHIKLMNPQRSTVWY".index(letter) for letter in residues.RESTYPES]
    np.testing.assert_array_equal(backbone.profile[0], wanted)
    told = report()
    assert told["1aaa_A"][:2] == ("left out", "occurs twice")
    assert told["lost"] == (
        "left out",
        "no file",
        "index.csv: there is no none.pdb beside it, nor in the folders that were given.",
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"coords_centiA": np.zeros((3, 4, 3), np.int16)}, "arrays are not of one length"),
        ({"ids": np.array(["x", "y"])}, "there is no chain '1aaa_A'"),
    ],
)
def test_damaged_backbones(folder, changes, text):
    good()
    backbones("bb.npz", SEQUENCE, **changes)
    write("index.csv", "id,file\n1aaa_A,bb.npz\ngood,pdbs/good.pdb\n")
    made("index.csv")
    assert text in report()["1aaa_A"][2]
    Path("bb.npz").write_bytes(b"junk")
    made("index.csv", overwrite=True)
    assert "the npz file can't be read" in report()["1aaa_A"][2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,path\n", "index.csv, line 1: a table of structures has the columns id and file"),
        ("id,file\na\n", "index.csv, line 2: the row has not as many cells as the header"),
    ],
)
def test_wrong_tables(folder, text, message):
    write("index.csv", text)
    with pytest.raises(InputError, match=message):
        made("index.csv")


def test_a_resolution_that_is_no_number(folder):
    good()
    write("index.csv", "id,file,resolution\nbad,pdbs/good.pdb,high\ngood,pdbs/good.pdb,2\n")
    made("index.csv")
    assert report()["bad"] == (
        "left out",
        "wrong table",
        "bad has the resolution 'high' in its table, which is no number.",
    )


# What is left out


def left_out(name: str) -> tuple[str, str]:
    outcome, reason, text = report()[name]
    assert outcome == "left out"
    return reason, text


def test_structures_without_coordinates(folder):
    good()
    write("pdbs/empty.pdb", "")
    write("pdbs/header.pdb", "HEADER    A PROTEIN\nEND\n")
    write("pdbs/water.pdb", "HETATM    1  O   HOH A   1       0.000   0.000   0.000  1.00 20.00\n")
    made("pdbs")
    assert left_out("empty") == ("structure can't be read", "pdbs/empty.pdb: the file is empty.")
    assert left_out("header")[1] == "pdbs/header.pdb: the file holds no atoms of a protein."
    assert left_out("water")[1] == "pdbs/water.pdb: the structure holds no protein chain."


def test_nothing_but_what_is_left_out(folder):
    write("pdbs/empty.pdb", "")
    with pytest.raises(InputError, match=r"No chain can be trained on\. pdbs/empty.pdb: the file is empty\."):
        made("pdbs")
    assert not Path("out").exists()
    with pytest.raises(InputError, match="There are no structures"):
        made("msas")
    with pytest.raises(InputError, match="nowhere: there is no such file or folder"):
        made("nowhere")
    with pytest.raises(InputError, match="msas: there are no alignments here"):
        made("pdbs", msas=(Path("msas"),))


def test_lengths(folder):
    good()
    write("pdbs/short.pdb", pdb_text("MKT"))
    write("pdbs/long.pdb", pdb_text(SEQUENCE * 2))
    write("pdbs/alphas.pdb", pdb_text(SEQUENCE, atoms=("CA",)))
    made("pdbs", max_length=30)
    assert left_out("short") == (
        "too short",
        "short has 3 residues with a backbone, and --min-length asks for 4.",
    )
    assert left_out("long") == ("too long", "long has 44 residues, and --max-length allows 30.")
    assert left_out("alphas")[1].startswith("alphas has 0 residues with a backbone")


def test_an_alignment_of_another_sequence(folder):
    for name in ("good", "changed", "longer", "broken"):
        good(name)
    other = SEQUENCE[:4] + "W" + SEQUENCE[5:]
    write("msas/changed.a3m", a3m_text(other, SEQUENCE))
    write("msas/longer.a3m", a3m_text(SEQUENCE + "A"))
    write("msas/broken.a3m", a3m_text(SEQUENCE, "AA"))
    assert len(made("pdbs", msas=(Path("msas"),))) == 1
    assert left_out("changed") == (
        "alignment of another sequence",
        "msas/changed.a3m: the first sequence differs from changed in 1 residues, first in residue 5 (W and Y); "
        "align to the chain's own sequence.",
    )
    assert left_out("longer")[1] == (
        "msas/longer.a3m: the first sequence has 23 residues and longer 22; align to the chain's own sequence."
    )
    assert left_out("broken")[0] == "alignment can't be read"
    assert "line 3: row 2 ('1') has 2 columns" in left_out("broken")[1]


def test_the_first_folder_with_an_alignment_of_the_sequence_counts(folder):
    good()
    write("more/good.a3m", a3m_text(SEQUENCE + "A"))
    write("other/good.a3m", a3m_text(SEQUENCE))
    store = made("pdbs", msas=(Path("more"), Path("other"), Path("msas")))
    assert store.rows[0].rows == 1


def test_rows_that_are_kept(folder):
    good()
    assert made("pdbs", msas=(Path("msas"),), max_rows=1).rows[0].rows == 1


# What is kept, with a remark


def test_missing_side_chains_are_masked(folder):
    write("pdbs/bare.pdb", pdb_text("S" * 6, atoms=("N", "CA", "C", "O")))
    chain = made("pdbs")[0]
    assert chain.mask.sum() == 24
    assert report()["bare"] == ("kept", "", "Residues that lack atoms, which are masked: 6.")


def test_unknown_residues_have_a_backbone(folder):
    text = pdb_text("SSSSSS").replace("SER A   3", "UNK A   3").replace("SER A   4", "XYZ A   4")
    write("pdbs/odd.pdb", text)
    chain = made("pdbs")[0]
    assert chain.sequence == "SSXXSS"
    assert chain.mask[2].sum() == 5
    with open("out/report.csv", newline="") as file:
        assert "Residues of unknown type, which have a backbone alone: 2." in file.read()
    # an alignment may know their types
    write("msas/odd.a3m", a3m_text("SSMKSS"))
    assert made("pdbs", msas=(Path("msas"),), overwrite=True).rows[0].rows == 1


def test_one_residue_type_is_counted_as_filtered(folder):
    good()
    write("pdbs/same.pdb", pdb_text("A" * 10))
    summary = prepare(Options(structures=(Path("pdbs"),), out=Path("out"), workers=0, min_length=4))
    assert summary.filtered == 1
    assert "1 that training will not draw" in summary.text()


def test_several_models(folder):
    one = pdb_text(SEQUENCE)
    write(
        "pdbs/nmr.pdb",
        f"MODEL        1\n{one}ENDMDL\nMODEL        2\n{one.replace('ALA', 'GLY')}ENDMDL\nEND\n",
    )
    assert made("pdbs")[0].sequence == SEQUENCE
    with open("out/report.csv", newline="") as file:
        assert "The file has several models, of which the first is taken." in file.read()


@pytest.mark.parametrize(
    ("numbers", "shifts", "wanted"),
    [
        (["1 ", "2 ", "3 ", "4 ", "5 "], None, [0, 1, 2, 3, 4]),
        (["-3 ", "-2 ", "0 ", "1 ", "2 "], None, [0, 1, 2, 3, 4]),  # numbers jump, bonds don't
        (["9 ", "9A", "9B", "10 ", "11 "], None, [0, 1, 2, 3, 4]),
        (["9 ", "9A", "9B", "5 ", "6 "], None, [0, 1, 2, 3, 4]),
        (["1 ", "2 ", "9 ", "10 ", "11 "], [0, 0, 20, 20, 20], [0, 1, 8, 9, 10]),
        (["1 ", "2 ", "3 ", "4 ", "5 "], [0, 0, 20, 20, 20], [0, 1, 3, 4, 5]),  # a break that numbers hide
        (["9 ", "9A", "9B", "10 ", "11 "], [0, 20, 20, 20, 20], [0, 2, 3, 4, 5]),
    ],
)
def test_numbers_insertion_codes_and_breaks(folder, numbers, shifts, wanted):
    write("pdbs/x.pdb", pdb_text("MKTAY", numbers=numbers, shifts=shifts))
    np.testing.assert_array_equal(made("pdbs")[0].residue_index, wanted)
    if any(number[-1] != " " for number in numbers):
        with open("out/report.csv", newline="") as file:
            assert "Residues with insertion codes, which are counted on: 2." in file.read()


def test_residues_of_predictions_below_the_limit_are_masked(folder):
    confidence = [90.0] * 20 + [30.0] * 2
    write("pdbs/p.pdb", pdb_text(SEQUENCE, b_factors=confidence))
    write("pdbs/share.pdb", pdb_text(SEQUENCE, b_factors=[x / 100 for x in confidence]))
    store = made("pdbs", set="predicted")
    for place in range(2):
        np.testing.assert_array_equal(store[place].mask.any(-1), np.arange(22) < 20)
        assert store[place].set == "predicted"
    assert made("pdbs", overwrite=True)[0].mask.any(-1).all()


def test_names_and_chains_of_pdb_files(folder):
    two = pdb_text(SEQUENCE) + pdb_text("GGGGG", chain="B")
    write("pdbs/1abc.pdb", "REMARK   2 RESOLUTION.    1.85 ANGSTROMS.\n" + two)
    write("pdbs/model.pdb", pdb_text(SEQUENCE))
    store = made("pdbs")
    assert [row.name for row in store.rows] == ["1abc_A", "1abc_B", "model"]
    assert [row.entry for row in store.rows] == ["1abc", "1abc", "model"]
    assert [row.resolution for row in store.rows] == [1.85, 1.85, 0]
    write("index.csv", "id,file,chain\nx,pdbs/1abc.pdb,B\ny,pdbs/1abc.pdb,C\nz,pdbs/model.pdb,Q\n")
    store = made("index.csv", overwrite=True)
    assert [(row.name, row.length) for row in store.rows] == [("x", 5), ("z", 22)]
    assert left_out("y") == ("no such chain", "pdbs/1abc.pdb: there is no chain 'C'; the chains are A, B.")


# OpenProteinSet


def open_protein_set(nested: bool) -> None:
    """6kwc_A with a search, 1xyz_A and 1xyz_B with the same sequence and one search."""
    inner = "a3m/" if nested else ""
    for chain in ("6kwc_A", "1xyz_B"):
        write(f"ops/{chain}/{inner}uniref90_hits.a3m", a3m_text(SEQUENCE, SEQUENCE.replace("A", "G")))
        write(f"ops/{chain}/{inner}bfd_uniclust_hits.a3m", a3m_text(SEQUENCE, SEQUENCE.replace("K", "R")))
        write(f"ops/{chain}/{inner}mgnify_hits.a3m", a3m_text(SEQUENCE))
        write(f"ops/{chain}/{'hhr/' if nested else ''}pdb70_hits.hhr", "")
    write("duplicate_pdb_chains.txt", "6kwc_A\n1xyz_A 1xyz_B\n")
    write("clusters.txt", "1xyz_A 1xyz_B 6kwc_A\n")
    write("mmcifs/6kwc.pdb", pdb_text(SEQUENCE))
    write("mmcifs/1xyz.pdb", pdb_text(SEQUENCE) + pdb_text(SEQUENCE, chain="B"))


@pytest.mark.parametrize("nested", [False, True])
def test_open_protein_set_is_read_as_it_is(folder, nested):
    open_protein_set(nested)
    store = made(
        "mmcifs",
        msas=(Path("ops"),),
        duplicates=Path("duplicate_pdb_chains.txt"),
        clusters=Path("clusters.txt"),
    )
    rows = {row.name: row for row in store.rows}
    assert set(rows) == {"6kwc_A", "1xyz_A", "1xyz_B"}
    assert {row.rows for row in rows.values()} == {3}
    assert rows["1xyz_A"].first_letter == rows["1xyz_B"].first_letter != rows["6kwc_A"].first_letter
    assert {row.cluster for row in rows.values()} == {"1xyz_A"}
    assert "".join(residues.RESTYPES_WITH_X[i] for i in store[0].msa[1]) == SEQUENCE.replace("A", "G")


def test_a_database_of_openfold(folder):
    open_protein_set(False)
    files, content = [], b"...."
    for path in sorted(Path("ops/6kwc_A").iterdir()):
        text = path.read_bytes()
        files.append([path.name, len(content), len(text)])
        content += text
    write("db/a.index", json.dumps({"6kwc_A": {"db": "a_0.db", "files": files}}))
    Path("db/a_0.db").write_bytes(content)
    store = made("mmcifs/6kwc.pdb", msas=(Path("db/a.index"),))
    assert store.rows[0].rows == 3
    Path("db/a_0.db").write_bytes(content[:-4])
    Path("ops/good").mkdir()
    made("mmcifs", msas=(Path("db/a.index"),), overwrite=True)
    assert "a_0.db: the database ends before uniref90_hits.a3m" in left_out("6kwc_A")[1]
    write("db/b.index", "{}[]")
    with pytest.raises(InputError, match="this is not the index of a database of alignments"):
        openproteinset.find(Path("db/b.index"))


def test_two_alignments_of_one_name_in_one_folder(folder):
    write("msas/a/x.a3m", a3m_text(SEQUENCE))
    write("msas/b/x.a3m", a3m_text(SEQUENCE))
    with pytest.raises(InputError, match="is an alignment of x too; keep one of them"):
        openproteinset.find(Path("msas"))


# The command


def test_the_command(folder):
    good()
    write("pdbs/empty.pdb", "")
    line = "train prepare pdbs --msas msas --out out --min-length 4 --workers 0 --set mine --split valid --min-plddt 0"
    result = CliRunner().invoke(cli.app, line.split(), catch_exceptions=False)
    assert result.exit_code == 0
    assert "out: 1 chains, 22 residues" in result.stdout
    assert "1 of mine, valid" in result.stdout
    assert "1: structure can't be read" in result.stdout
    again = CliRunner().invoke(cli.app, line.split(), catch_exceptions=False)
    assert again.exit_code == 2
    assert "out is there already. Name another folder, or add --overwrite." in again.stderr


def test_real_data(tmp_path):
    """Chains beside the checkout, of both kinds."""
    data = Path(os.environ.get("AXFOLD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not data.is_dir():
        pytest.skip(f"real structures are not in {data}; AXFOLD_DATA names another folder")
    lines = (data / "structures" / "index.csv").read_text().splitlines()
    backbone = [line for line in lines if ",backbone_valid.npz," in line][:4]
    full = [line for line in lines if ",full_atom," in line and ",valid," in line][:4]
    table = tmp_path / "index.csv"
    table.write_text("\n".join([lines[0], *full, *backbone]) + "\n")
    (tmp_path / "backbone_valid.npz").symlink_to(data / "structures" / "backbone_valid.npz")
    summary = prepare(
        Options(
            structures=(table, data / "structures" / "full_atom.tar.xz"),
            msas=(data / "msas" / "full_atom.tar.xz",),
            out=tmp_path / "out",
            workers=0,
        )
    )
    assert summary.full_atom == 4
    assert summary.aligned == 4
    assert summary.profiles == 4
    opened = Store(tmp_path / "out")
    opened.verify()
    for row, line in zip(opened.rows[:4], full, strict=True):
        assert opened[opened.places[row.name]].sequence == line.split(",")[-1]
    with tarfile.open(data / "msas" / "full_atom.tar.xz") as archive:
        name = opened.rows[0].name
        member = next(x for x in archive if x.name.split("/")[-1].startswith(f"{name}.a3m"))
        text = archive.extractfile(member).read()
    alignment = a3m.parse((gzip.decompress(text) if member.name.endswith(".gz") else text).decode(), name)
    assert opened.rows[0].rows == len(set(alignment.sequences))
