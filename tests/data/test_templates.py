import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from axfold.data import templates
from axfold.data.formats import hhr, mmcif
from axfold.residues import ATOM_INDEX, MSA_INDEX

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def case(parity):
    """DeepMind's HhsearchHitFeaturizer: its result, the query, the hits and the structures."""
    folder = parity / "cases/data_templates"
    result = json.loads((folder / "result.json").read_text())
    hits = hhr.parse((folder / "pdb70_hits.hhr").read_text(), "pdb70_hits.hhr")
    recorded = np.load(folder / "template_features.npz", allow_pickle=False)
    return result, result["query"], hits, folder / result["mmcif_dir"], recorded


def assert_deepminds(found, recorded, rows):
    """`found` are the given rows of the recorded templates."""
    constants = np.load(HERE / "cases/data_constants/residue_constants.npz", allow_pickle=False)
    own_order = constants["MAP_HHBLITS_AATYPE_TO_OUR_AATYPE"]
    assert found.names == tuple(recorded["template_domain_names"][rows])
    np.testing.assert_array_equal(found.aatype, own_order[recorded["template_aatype"][rows].argmax(-1)])
    np.testing.assert_array_equal(found.masks, recorded["template_all_atom_masks"][rows])
    np.testing.assert_allclose(found.positions, recorded["template_all_atom_positions"][rows], rtol=1e-6)
    np.testing.assert_array_equal(found.sum_probs[:, None], recorded["template_sum_probs"][rows])
    letters = {index: letter for letter, index in MSA_INDEX.items() if letter not in "BJOUZ"}
    sequences = ["".join(letters[i] for i in row) for row in found.aatype]
    assert sequences == list(recorded["template_sequence"][rows])


def test_hits_are_deepminds(case):
    result, query, hits, structures, recorded = case
    found, reports = templates.from_hits(query, hits, structures, limit=20, max_date=date(2021, 1, 1))
    assert_deepminds(found, recorded, slice(None))

    refused = {report.name: report.reason for report in reports if not report.used}
    assert "There is no 1hf9.cif" in refused.pop("1hf9_B")
    assert set(refused) == {warning.split()[0] for warning in result["warnings"]} == {"5kc1_F", "5kc1_J"}
    assert set(refused.values()) == {"None of its residues that are aligned to the query was seen."}


def test_the_hit_whose_structure_is_copied_here_is_deepminds():
    query = json.loads((HERE / "cases/data_templates/result.json").read_text())["query"]
    recorded = np.load(HERE / "cases/data_templates/template_features.npz", allow_pickle=False)
    inputs = HERE / "formats/cases"
    paths = [inputs / "data_parsers/input/pdb70_hits.hhr", inputs / "data_mmcif/input"]
    found, reports = templates.read(query, paths, max_date=date(2021, 1, 1))
    assert_deepminds(found, recorded, recorded["template_domain_names"] == "3zee_A")
    assert [report.name for report in reports if report.used] == ["3zee_A"]


def test_reports_say_what_was_used(case):
    _, query, hits, structures, _ = case
    found, reports = templates.from_hits(query, hits, structures, limit=1)
    assert found.names == ("3u8v_A",)
    (report,) = (report for report in reports if report.used)
    covered = np.flatnonzero(found.aatype[0] != templates.GAP) + 1
    assert report.aligned == (covered[0], covered[-1])
    same = [MSA_INDEX[query[i - 1]] == found.aatype[0, i - 1] for i in covered]
    assert report.identity == pytest.approx(np.mean(same))


def test_best_hits_come_first_and_the_limit_holds(case):
    _, query, hits, structures, _ = case
    found, _ = templates.from_hits(query, reversed(hits), structures, limit=3)
    assert list(found.sum_probs) == sorted(found.sum_probs, reverse=True)
    assert found.positions.shape == (3, len(query), 37, 3)


def test_a_template_released_later_is_refused(case):
    _, query, hits, structures, _ = case
    found, reports = templates.from_hits(query, hits, structures, limit=20, max_date=date(2012, 1, 1))
    assert 0 < len(found.names) < 7
    assert any(report.reason.startswith("It was released on 20") for report in reports)


def prefilter(hit, query):
    try:
        templates._prefilter(query, hit, hit.hit_sequence.replace("-", ""))
    except templates._Unusable as error:
        return str(error)
    return "kept"


def test_prefilter(case):
    result, query, hits, _, _ = case
    for hit in hits:
        assert prefilter(hit, query) == result["prefilter"][hit.name[:6]]
    hit = hits[0]
    assert "too few" in prefilter(replace(hit, aligned_cols=len(query) // 10), query)
    assert "the query itself" in prefilter(replace(hit, hit_sequence=query[2:]), query)
    assert prefilter(replace(hit, hit_sequence=query[10:]), query) == "kept"
    assert "fewer than 10" in prefilter(replace(hit, hit_sequence="WWWWWWWWW--"), query)


def structure(sequence, name="A"):
    """A chain of alanine-like atoms along x."""
    mask = np.zeros((len(sequence), 37), np.float32)
    mask[:, :5] = 1
    positions = np.zeros((len(sequence), 37, 3), np.float32)
    positions[..., 0] = 3.8 * np.arange(len(sequence))[:, None]
    return templates._Chain(name, sequence, lambda: (positions * mask[..., None], mask))


SEQUENCE = "MKVLITGGAGFIGSHLVDRLLEEGHEVVVLDNLSTGSKENIPEG"


def hit_of(query, start, hit_sequence, hit_start, name="1abc_B"):
    """A hit that aligns `hit_sequence` without gaps from residue `start` of the query on."""
    n = len(hit_sequence)
    return hhr.TemplateHit(
        1, name, n, 1.0, query[start : start + n], hit_sequence,
        tuple(range(start, start + n)), tuple(range(hit_start, hit_start + n)),
    )  # fmt: skip


@pytest.fixture
def one_structure(monkeypatch, tmp_path):
    """Makes the only mmCIF file hold the given chains."""
    (tmp_path / "1abc.cif").touch()

    def put(*chains):
        monkeypatch.setattr(templates, "_mmcif", lambda path: templates._Structure(chains, "2000-01-01"))
        return tmp_path

    return put


def test_a_hit_is_found_in_the_chain_of_its_name(one_structure):
    hit = hit_of(SEQUENCE, 5, "W" * 3 + SEQUENCE[8:30], 40)
    sequence = "GGG" + hit.hit_sequence
    folder = one_structure(structure(sequence, "A"), structure("S" + sequence, "B"))
    found, (report,) = templates.from_hits(SEQUENCE, [hit], folder)
    assert found.names == ("1abc_B",)
    ca = found.positions[0, :, ATOM_INDEX["CA"], 0]
    np.testing.assert_allclose(ca[5:30], 3.8 * np.arange(4, 29), rtol=1e-6)
    assert not found.masks[0, :5].any()
    assert not found.masks[0, 30:].any()
    assert report.aligned == (6, 30)


def test_a_hit_is_found_in_another_chain_or_behind_unknown_residues(one_structure):
    hit = hit_of(SEQUENCE, 0, SEQUENCE[:30], 0)
    folder = one_structure(structure("W" * 40, "B"), structure("CC" + SEQUENCE, "C"))
    assert templates.from_hits(SEQUENCE, [hit], folder)[0].names == ("1abc_C",)
    folder = one_structure(structure("CC" + SEQUENCE[:9] + "X" + SEQUENCE[10:], "C"))
    found, _ = templates.from_hits(SEQUENCE, [hit], folder)
    assert found.aatype[0, 9] == MSA_INDEX[SEQUENCE[9]]


def test_a_hit_whose_structure_differs_is_realigned(one_structure):
    hit = hit_of(SEQUENCE, 0, SEQUENCE[:40], 0)
    # Residue 10 mutated and residues 20, 21 missing in the structure.
    folder = one_structure(structure("AC" + SEQUENCE[:10] + "W" + SEQUENCE[11:20] + SEQUENCE[22:40], "B"))
    found, (report,) = templates.from_hits(SEQUENCE, [hit], folder)
    assert "differs" in report.reason
    assert report.used
    ca = found.positions[0, :, ATOM_INDEX["CA"], 0] / 3.8
    np.testing.assert_allclose(ca[:20], np.arange(2, 22), rtol=1e-5)
    np.testing.assert_allclose(ca[22:40], np.arange(22, 40), rtol=1e-5)
    assert (found.aatype[0, 20:22] == templates.GAP).all()
    assert found.aatype[0, 10] == MSA_INDEX["W"]


def test_a_hit_of_another_sequence_is_refused(one_structure):
    hit = hit_of(SEQUENCE, 0, SEQUENCE[:40], 0)
    folder = one_structure(structure(SEQUENCE[10:] + SEQUENCE[:10], "B"))
    found, (report,) = templates.from_hits(SEQUENCE, [hit], folder)
    assert found.names == ()
    assert report.reason == "The sequence in its mmCIF file is another than the hit's."
    folder = one_structure(structure("W" * 50, "A"), structure("C" * 50, "C"))
    _, (report,) = templates.from_hits(SEQUENCE, [hit], folder)
    assert report.reason == "Its mmCIF file has no protein chain B."


def test_a_hit_searched_with_a_longer_sequence_is_moved(one_structure):
    long = "PPPPP" + SEQUENCE
    hit = hit_of(long, 10, "W" + long[11:40], 0)
    folder = one_structure(structure(hit.hit_sequence, "B"))
    found, _ = templates.from_hits(SEQUENCE, [hit], folder)
    np.testing.assert_allclose(found.positions[0, 5:35, 1, 0], 3.8 * np.arange(30), rtol=1e-6)
    _, (report,) = templates.from_hits("W" * 60, [hit], folder)
    assert report.reason == "The search was made with another sequence than the query."


def test_the_second_of_two_repeats_is_found(one_structure):
    query = SEQUENCE + SEQUENCE
    hit = hit_of(query, 44, "W" + SEQUENCE[1:30], 0)
    found, _ = templates.from_hits(query, [hit], one_structure(structure(hit.hit_sequence, "B")))
    assert not found.masks[0, :44].any()
    assert found.masks[0, 44:74].any(axis=-1).all()


def test_parts_of_an_alignment_that_do_not_follow_each_other_are_left_out(one_structure):
    hit = hit_of(SEQUENCE, 0, SEQUENCE[:40], 0)
    folder = one_structure(structure(SEQUENCE, "B"))
    for side in ("indices_query", "indices_hit"):
        indices = (*range(30), *range(10**6, 10**6 + 10))
        found, (report,) = templates.from_hits(SEQUENCE, [replace(hit, **{side: indices})], folder)
        assert report.aligned == (1, 30)
        assert not found.masks[0, 30:].any()


def test_names_of_hits_are_no_paths(one_structure):
    folder = one_structure(structure(SEQUENCE))
    hit = hit_of(SEQUENCE, 0, SEQUENCE[:30], 0, name="../1abc_B")
    _, (report,) = templates.from_hits(SEQUENCE, [hit], folder)
    assert "does not begin with a PDB code" in report.reason


def test_far_atoms_are_refused(one_structure):
    positions, mask = structure(SEQUENCE).atoms()
    hit = hit_of(SEQUENCE, 0, SEQUENCE[:30], 0)
    for scale, reason in ((100, "150 Å apart"), (1e30, "beyond 1000000 Å")):
        chain = templates._Chain("B", SEQUENCE, lambda scale=scale: (positions * np.float32(scale), mask))
        _, (report,) = templates.from_hits(SEQUENCE, [hit], one_structure(chain))
        assert reason in report.reason


def test_own_structures(case):
    """The chain's own sequence with its ends cut is laid over itself."""
    _, _, _, folder, _ = case
    text = (folder / "2q2k.cif").read_text()
    parsed = mmcif.parse(text, "2q2k.cif")
    sequence = parsed.chain_to_seqres["A"]
    query = "W" * 3 + sequence[4:-2]
    found, reports = templates.read(query, [folder / "2q2k.cif"])
    positions, mask = mmcif.atom_positions(parsed, "A")
    assert found.names == ("2q2k_A",)
    np.testing.assert_array_equal(found.positions[0, 3:], positions[4:-2])
    np.testing.assert_array_equal(found.masks[0, 3:], mask[4:-2])
    used = reports[0]
    assert (used.used, used.identity, used.aligned) == (True, 1.0, (4, len(query)))
    assert [report.chain for report in reports[1:]] == list(parsed.chain_to_seqres)[1:]
    assert all("Chain A of this file" in report.reason for report in reports[1:])


def test_own_pdb_file_gives_what_the_mmcif_gives(parity):
    folder = parity / "cases/data_pdb"
    aatype = np.load(folder / "5nmu.npz", allow_pickle=False)["aatype"]
    query = "".join("ARNDCQEGHILKMFPSTWYVX"[i] for i in aatype[:60])
    found, (report, *_) = templates.read(query, [folder / "5nmu.pdb"])
    assert report.used
    np.testing.assert_array_equal(found.aatype[0], aatype[:60])
    recorded = np.load(folder / "5nmu.npz", allow_pickle=False)
    np.testing.assert_allclose(found.positions[0], recorded["atom_positions"][:60], atol=1e-3)


def test_a_folder_is_ranked_and_cut(case):
    _, query, _, folder, _ = case
    found, reports = templates.read(query, [folder], limit=2)
    used = [report for report in reports if report.used]
    assert len(used) == len(found.names) <= 2
    assert {report.name for report in reports} == {str(path) for path in folder.glob("*.cif")}
    assert all(report.reason for report in reports if not report.used)


def test_an_hhr_file_with_a_folder_gives_its_hits(case, parity):
    _, query, hits, folder, _ = case
    search = parity / "cases/data_templates/pdb70_hits.hhr"
    found, _ = templates.read(query, [folder, search], limit=4)
    direct, _ = templates.from_hits(query, hits, folder, limit=4)
    assert found.names == direct.names
    found, reports = templates.read(query, [search])
    assert found.names == ()
    assert {report.reason for report in reports} == {"No folder of mmCIF files was given."}


def test_nothing_named():
    found, reports = templates.read("MKV", [])
    assert reports == ()
    assert found.features(4)["template_all_atom_positions"].shape == (0, 3, 37, 3)


def test_features(case):
    _, query, hits, structures, _ = case
    found, _ = templates.from_hits(query, hits, structures, limit=3)
    features = found.features(2)
    assert features["template_mask"].tolist() == [1, 1]
    assert features["template_sum_probs"].shape == (2, 1)
    np.testing.assert_array_equal(features["template_aatype"], found.aatype[:2])


JUNK = {
    "missing.cif": None,
    "empty.cif": b"",
    "empty.pdb": b"",
    "binary.cif": bytes(range(256)) * 40,
    "binary.pdb": bytes(range(256)) * 40,
    "binary.hhr": bytes(range(256)) * 40,
    "text.cif": b"This is no structure.\n",
    "text.ent": b"This is no structure.\n",
    "text.hhr": b"No 1\n>x\nProbab=\n",
    "block.mmcif": b"data_x\n_a.b 1\n",
    "loop.cif": b"data_x\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n1\n",
    "numbers.pdb": b"ATOM      1  N   MET A   1      xx.xxx  yy.yyy  zz.zzz  1.00  0.00           N\n",
    "nan.pdb": b"ATOM      1  CA  MET A   1         nan     nan     nan  1.00  0.00           N\n",
    "calcium.pdb": b"HETATM    1 CA    CA A   1       1.000   2.000   3.000  1.00  0.00          CA\n",
    "other.xyz": b"1\n",
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_reported(tmp_path, name):
    path = tmp_path / name
    if JUNK[name] is not None:
        path.write_bytes(JUNK[name])
    found, reports = templates.read(SEQUENCE, [path])
    assert found.names == ()
    (report,) = reports
    assert not report.used
    assert report.reason


def test_a_folder_without_structures_is_reported(tmp_path):
    _, (report,) = templates.read(SEQUENCE, [tmp_path])
    assert report.reason == "There is no structure in it."


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    _, (report,) = templates.read(SEQUENCE, [tmp_path])
    assert report.reason == "It can't be read: Permission denied."


def test_a_folder_named_as_a_file(tmp_path):
    (tmp_path / "odd.cif").mkdir()
    (tmp_path / "odd.hhr").mkdir()
    _, reports = templates.read(SEQUENCE, [tmp_path, tmp_path / "odd.hhr"])
    assert all("can't be read" in report.reason for report in reports)
    assert len(reports) == 1


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_never_raise(case, parity, tmp_path, seed):
    """Bytes and lines of real files are cut out, doubled and overwritten."""
    _, query, _, folder, _ = case
    rng = np.random.default_rng(seed)
    sources = [
        folder / "2q2k.cif",
        parity / "cases/data_pdb/glucagon.pdb",
        parity / "cases/data_templates/pdb70_hits.hhr",
    ]
    source = sources[seed % 3]
    lines = source.read_bytes().splitlines(keepends=True)
    if source.suffix == ".cif":  # most lines of the file are atoms; a few of them will do
        lines = [line for line in lines if not line.startswith(b"ATOM")] + lines[-400:]
    data = bytearray(b"".join(line for line in lines if rng.random() > 0.002))
    for _ in range(rng.integers(1, 30)):
        at = int(rng.integers(len(data)))
        match rng.integers(3):
            case 0:
                data[at] = rng.integers(256)
            case 1:
                del data[at : at + int(rng.integers(1, 200))]
            case 2:
                data[at:at] = data[at : at + int(rng.integers(1, 200))]
    path = tmp_path / source.name
    path.write_bytes(data)
    found, reports = templates.read(query, [path, folder] if path.suffix == ".hhr" else [path])
    assert len(found.names) == sum(report.used for report in reports)
    assert np.isfinite(found.positions).all()
