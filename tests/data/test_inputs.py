import gzip
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from axfold.data import inputs
from axfold.data.query import Query
from axfold.data.sequence import file_name
from axfold.errors import InputError

CASES = Path(__file__).parent / "formats/cases/data_parsers/input"
P2Q2K = "MGSSHHHHHHSSGLVPGSHMDKKETKHLLKIKKEDYPQIFDFLENVPRGTKTAHIREALRRYIEEIGENP"


@pytest.fixture
def write(tmp_path):
    """Writes a file under tmp_path, its folders too."""

    def write_file(name: str, content: str | bytes = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def search(tmp_path):
    """Lays out the files of AlphaFold's search for 2Q2K in a folder under tmp_path."""

    def copy_files(folder: str) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        shutil.copy(CASES / "2q2k_A_uniref90_hits.sto", path / "uniref90_hits.sto")
        shutil.copy(CASES / "2q2k_A_mgnify_hits.sto", path / "mgnify_hits.sto")
        shutil.copy(CASES / "2q2k_A_bfd_uniclust_hits.a3m", path / "bfd_uniref_hits.a3m")
        shutil.copy(CASES / "pdb70_hits.hhr", path / "pdb_hits.hhr")
        return path

    return copy_files


def read(*paths: Path, **options) -> dict[str, Query]:
    queries = inputs.read(paths, **options)
    return {query.name: query for query in queries}


def depths(query: Query) -> list[int]:
    return [len(alignment.sequences) for alignment in query.alignments]


class TestSequences:
    def test_every_record_is_a_protein(self, write):
        path = write("a.fasta", ">one of two\nMKtay\n>two\nG\n")
        one, two = inputs.read([path])
        assert (one.name, one.sequence, one.alignments, one.source) == ("one of two", "MKTAY", (), path)
        assert (two.name, two.sequence) == ("two", "G")

    def test_csv(self, write):
        assert [q.sequence for q in inputs.read([write("a.csv", "id,sequence\none,mkt\ntwo,G\n")])] == [
            "MKT",
            "G",
        ]

    @pytest.mark.parametrize("name", ["a.fa", "a.faa", "a.FASTA", "a.txt", "a"])
    def test_fasta_by_suffix_or_content(self, write, name):
        assert list(read(write(name, ">one\nMKT\n"))) == ["one"]

    def test_compressed(self, write):
        (query,) = inputs.read([write("a.a3m.gz", gzip.compress(b">q\nMKT\n>b\nM-T\n"))])
        assert (query.name, depths(query)) == ("a", [2])

    def test_byte_order_mark(self, write):
        assert list(read(write("a.fasta", b"\xef\xbb\xbf>one\nMKT\n"))) == ["one"]

    def test_a_lone_record_without_name_is_called_as_its_file(self, write):
        assert list(read(write("lyso.fasta", ">\nMKT\n"))) == ["lyso"]
        with pytest.raises(InputError, match=r"a\.fasta, line 3: .*no name"):
            inputs.read([write("a.fasta", ">a\nMKT\n>\nMKT\n")])

    def test_letters_that_are_no_amino_acid_are_folded_as_x(self, write):
        path = write("a.fasta", ">one\nMKXUBG\n")
        with pytest.warns(
            UserWarning, match=r"a\.fasta, line 1: 'one' has B, U \(first at residue 4\).*folded as X"
        ):
            (query,) = inputs.read([path])
        assert query.sequence == "MKXXXG"

    def test_x_is_no_reason_to_warn(self, write):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read(write("a.fasta", ">one\nMXK\n"))["one"].sequence == "MXK"

    def test_a_line_of_ten_megabytes(self, write):
        path = write("long.fasta", ">long\n" + "MKTAYIAKQR" * 1_000_000)
        start = time.perf_counter()
        assert len(inputs.read([path])[0].sequence) == 10_000_000
        bad = write("bad.fasta", ">long\n" + "MKTAYIAKQR" * 1_000_000 + "1")
        with pytest.raises(InputError, match=r"line 2, column 10000001: '1' at residue 10000001"):
            inputs.read([bad])
        assert time.perf_counter() - start < 5

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"a\.fasta: the file is empty"),
            (" \n\n", r"a\.fasta: the file is empty"),
            ("# nothing\n", r"a\.fasta: the file holds no sequence"),
            ("MKT\n", r"a\.fasta, line 1: .*'>name'"),
            (">one\n>two\nMKT\n", r"a\.fasta, line 1: 'one' has no sequence"),
            (">one\nMKT\nA?K\n", r"a\.fasta, line 3, column 2: '\?' at residue 5 is no amino acid"),
            (">one\nMKT*\n", r"a\.fasta, line 2, column 4: '\*' at residue 4 .*delete it"),
            (">one\nM-T\n", r"line 2, column 2: '-' .*no gaps.*\.a3m"),
            (">one\n1 MKT\n", r"line 2, column 1: '1' .*delete the numbers"),
            (">one\nMK:AY\n", r"line 2, column 3: ':' .*multimer"),
            (">one\nMKé\n", r"line 2, column 3: 'é' at residue 3"),
            (
                ">one\nMKT\n>one\nMKA\n",
                r"a\.fasta, line 3: the name 'one' is taken \(.*a\.fasta, line 1\); rename",
            ),
            (">one\nACGTACGTACGTNN\n", r"a\.fasta, line 1: 'one' is DNA or RNA"),
            (">one\nacguacguac\n", r"a\.fasta, line 1: 'one' is DNA or RNA"),
            (b">one\nMK\0T\n", r"a\.fasta, line 2: .*binary"),
            (b">one\nMKT\n>tw\xf6\nMKT\n", r"a\.fasta, line 3: byte 0xf6 is not UTF-8"),
            (os.urandom(64) + b"\xff\0", r"a\.fasta, line \d+: "),
            (">one\nMKT\n".encode("utf-16"), r"a\.fasta, line 1: .*not UTF-8"),
        ],
    )
    def test_what_is_no_protein_is_refused(self, write, text, message):
        with pytest.raises(InputError, match=message) as caught:
            inputs.read([write("a.fasta", text)])
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "sequence", ["ACGACGACGACGACG", "GAGAGAGAGAGAGAGA", "ACGT", "G", "ACGTACGTACGTK"]
    )
    def test_proteins_of_few_letters_are_none_of_dna(self, sequence):
        assert inputs.from_sequence("p", sequence).sequence == sequence

    def test_csv_names_the_row(self, write):
        with pytest.raises(InputError, match=r"a\.csv, line 3: '-' at residue 2"):
            inputs.read([write("a.csv", "id,sequence\none,MKT\ntwo,M-K\n")])


class TestFiles:
    def test_nothing(self):
        with pytest.raises(InputError, match="nothing to fold"):
            inputs.read([])

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("missing.fasta", "missing.fasta: there is no such file"),
            ("MKTAYIAKQR" * 40, "write a sequence into a FASTA file"),
            ("a\0b", "can't be read"),
        ],
    )
    def test_paths_that_lead_nowhere(self, path, message):
        with pytest.raises(InputError, match=message):
            inputs.read([Path(path)])

    def test_other_formats(self, write):
        with pytest.raises(InputError, match=r"a\.pdb: this is none of FASTA, a3m, Stockholm and CSV"):
            inputs.read([write("a.pdb", "ATOM\n")])

    @pytest.mark.parametrize("content", [b"", b"junk", gzip.compress(b">a\nMKT\n")[:-9]])
    def test_damaged_compression(self, write, content):
        with pytest.raises(InputError, match=r"a\.fasta\.gz: "):
            inputs.read([write("a.fasta.gz", content)])

    def test_the_same_name_in_two_files(self, write):
        with pytest.raises(
            InputError, match=r"b\.fasta, line 1: the name 'one' is taken \(.*a\.fasta, line 1\)"
        ):
            read(write("a.fasta", ">one\nMKT"), write("b.fasta", ">one\nMKT"))

    def test_templates_must_exist(self, write):
        path = write("a.fasta", ">one\nMKT\n")
        assert read(path, templates=[path.parent])["one"].templates == (path.parent,)
        with pytest.raises(InputError, match=r"none\.cif: .*templates"):
            read(path, templates=[path.parent / "none.cif"])


class TestAlignments:
    def test_an_alignment_is_a_protein(self, write):
        queries = read(
            write("one.a3m", ">q\nMKT\n>b\nMaKT\n"), write("two.sto", "# STOCKHOLM 1.0\nq M-K\na MAK\n//\n")
        )
        assert queries["one"].sequence == "MKT"
        np.testing.assert_array_equal(queries["one"].alignments[0].deletions, [[0, 0, 0], [0, 1, 0]])
        assert queries["two"].sequence == "MK"

    def test_the_alignment_keeps_letters_the_sequence_does_not(self, write):
        with pytest.warns(UserWarning, match="has U"):
            (query,) = inputs.read([write("one.a3m", ">q\nMUT\n")])
        assert query.sequence == "MXT"
        assert query.alignments[0].sequences == ("MUT",)

    def test_msa_file(self, write):
        fasta = write("a.fasta", ">one\nMKT\n")
        assert depths(read(fasta, msa=write("any.a3m", ">q\nMKT\n>b\nMKT\n"))["one"]) == [2]

    @pytest.mark.parametrize("sequence", ["MUT", "MXT"])
    def test_unknown_letters_may_differ(self, write, sequence):
        msa = write("any.a3m", ">q\nMCT\n")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert depths(read(write("a.fasta", f">one\n{sequence}\n"), msa=msa)["one"]) == [1]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (
                "MAT",
                r"any\.a3m: .*another protein than 'one' \(.*a\.fasta, line 1\).*residue 2, A in the .* and K",
            ),
            ("MK", r"its first row has 2 residues, the sequence 3; one is the start"),
            ("AMKT", r"first row has 4 residues, the sequence 3; they first differ at residue 1"),
        ],
    )
    def test_the_alignment_of_another_protein(self, write, row, message):
        with pytest.raises(InputError, match=message):
            read(write("a.fasta", ">one\nMKT\n"), msa=write("any.a3m", f">q\n{row}\n"))

    def test_one_alignment_and_two_proteins(self, write):
        fasta = write("a.fasta", ">one\nMKT\n>two\nMKT\n")
        with pytest.raises(InputError, match=r"any\.a3m: .*one protein, and there are 2.*folder"):
            read(fasta, msa=write("any.a3m", ">q\nMKT\n"))

    def test_two_alignments_of_a_protein(self, write):
        with pytest.raises(InputError, match="has an alignment already"):
            read(write("one.a3m", ">q\nMKT\n"), msa=write("any.a3m", ">q\nMKT\n"))

    def test_msa_that_is_none(self, write):
        fasta = write("a.fasta", ">one\nMKT\n")
        with pytest.raises(InputError, match=r"a\.fasta: this is no alignment"):
            read(fasta, msa=fasta)
        with pytest.raises(InputError, match=r"missing\.a3m: there is no such file"):
            read(fasta, msa=fasta.parent / "missing.a3m")
        with pytest.raises(InputError, match=r"e\.a3m: the alignment holds no sequence"):
            read(fasta, msa=write("e.a3m", "#only a comment\n"))

    def test_msa_folder_by_names(self, write, search):
        fasta = write("a.fasta", f">one/x first\nMKT\n>two second\nMKA\n>three\n{P2Q2K}\n")
        write("msas_/one_x_first.a3m", ">q\nMKT\n")
        write("msas_/two.sto.gz", gzip.compress(b"q MKA\na MKA\n"))
        folder = search("msas_/three").parent
        assert {name: depths(query) for name, query in read(fasta, msa=folder).items()} == {
            "one/x first": [1],
            "two second": [2],
            "three": [16, 4, 7],
        }

    def test_msa_folder_by_the_name_of_the_file(self, write):
        write("msa/T1024.a3m", ">q\nMKT\n")
        assert depths(
            read(write("T1024.fasta", ">6XYZ_1|Chain A\nMKT"), msa=write("msa/x").parent)["6XYZ_1|Chain A"]
        )

    def test_msa_folder_without_the_protein(self, write):
        write("msa/one.a3m", ">q\nMKT\n")
        with pytest.raises(InputError, match=r"msa: .*no alignment of 'two' \(.*line 3\).*two\.a3m"):
            read(write("a.fasta", ">one\nMKT\n>two\nMKT\n"), msa=write("msa/x").parent)

    def test_msa_folder_with_two_of_a_name(self, write):
        write("msa/one.a3m", ">q\nMKT\n")
        write("msa/one.sto", "q MKT\n")
        with pytest.raises(InputError, match=r"one\.sto: one\.a3m is an alignment of one too"):
            read(write("a.fasta", ">one\nMKT\n"), msa=write("msa/x").parent)


class TestSearches:
    def test_stacked_as_alphafold_does(self, write, search):
        (query,) = inputs.read([write("a.fasta", f">one\n{P2Q2K}\n")], msa=search("msas"))
        assert depths(query) == [16, 4, 7]  # UniRef90, BFD, MGnify

    @pytest.mark.parametrize(("inner", "given"), [("T1/msas", "T1"), ("T1/msas", "T1/msas"), ("T1", "T1")])
    def test_a_search_is_a_protein_named_as_its_folder(self, tmp_path, search, inner, given):
        search(inner)
        (query,) = inputs.read([tmp_path / given])
        assert (query.name, query.sequence, depths(query)) == ("T1", P2Q2K, [16, 4, 7])

    def test_a_folder_of_searches(self, tmp_path, search):
        search("out/b/msas")
        search("out/a")
        assert [query.name for query in inputs.read([tmp_path / "out"])] == ["a", "b"]

    def test_a_sequence_beside_its_search(self, tmp_path, write, search):
        search("T1/msas")
        write("T1/seq.fasta", f">mine\n{P2Q2K}\n")
        assert depths(read(tmp_path / "T1")["mine"]) == [16, 4, 7]
        write("T1/seq2.fasta", ">other\nMKT\n")
        with pytest.raises(InputError, match=r"T1: .*one protein and 2 sequences"):
            read(tmp_path / "T1")

    def test_rows_taken(self, write):
        rows = "".join(f"r{i} MKT\n" for i in range(10_100))
        folder = write("T1/mgnify_hits.sto", rows).parent
        write("T1/uniref90_hits.sto", rows)
        write("T1/bfd_uniref_hits.a3m", rows.replace("r", ">r").replace(" ", "\n"))
        (query,) = inputs.read([folder])
        assert depths(query) == [10_000, 10_100, 501]
        assert [len(alignment.deletions) for alignment in query.alignments] == [10_000, 10_100, 501]

    def test_searches_that_found_nothing(self, write, search):
        folder = search("T1")
        write("T1/uniref90_hits.sto")
        assert depths(read(folder)["T1"]) == [4, 7]
        empty = write("T2/uniref90_hits.sto").parent
        with pytest.raises(InputError, match=r"T2: every alignment in the folder is empty"):
            read(empty)

    def test_template_hits_go_with_a_folder_of_structures(self, write, search):
        folder = search("T1/msas")
        structures = write("mmcif/1abc.cif").parent
        hhr = write("own.hhr", "x")
        hits = folder / "pdb_hits.hhr"
        assert read(folder)["T1"].templates == ()
        assert read(folder, templates=[structures])["T1"].templates == (hits, structures)
        assert read(folder, templates=[hhr, structures])["T1"].templates == (hhr, structures)
        assert read(folder, templates=[structures / "1abc.cif"])["T1"].templates == (structures / "1abc.cif",)

    def test_complexes_are_refused(self, tmp_path, write, search):
        search("T1/msas/A")
        write("T1/msas/chain_id_map.json", "{}")
        for folder in (tmp_path / "T1", tmp_path / "T1/msas"):
            with pytest.raises(InputError, match="multimer"):
                read(folder)


class TestFolders:
    def test_sorted_and_matched(self, tmp_path, write):
        write("in/b.fasta", ">b\nMKT\n>a\nMKA\n")
        write("in/a.a3m", ">q\nMKA\n")
        write("in/c.sto", "q MKG\n")
        write("in/A.fasta", ">z\nMKV\n")
        write("in/.hidden.fasta", ">h\nMKV\n")
        write("in/README.md", "no sequence")
        write("in/sub/x.txt", "no alignment")
        queries = inputs.read([tmp_path / "in"])
        assert [(query.name, depths(query)) for query in queries] == [
            ("z", []),
            ("b", []),
            ("a", [1]),
            ("c", [1]),
        ]

    def test_matched_by_the_name_of_the_file(self, tmp_path, write):
        write("in/T1.fasta", ">sp|P1\nMKT\n")
        write("in/T1.a3m", ">q\nMKT\n")
        assert {name: depths(query) for name, query in read(tmp_path / "in").items()} == {"sp|P1": [1]}

    def test_nothing_usable(self, tmp_path, write):
        write("in/README.md", "no sequence")
        with pytest.raises(InputError, match=r"in: the folder holds nothing to fold; .*\.fasta"):
            read(tmp_path / "in")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_what_may_not_be_read(self, tmp_path, write):
        path = write("in/a.fasta", ">a\nMKT\n")
        path.chmod(0)
        with pytest.raises(InputError, match=r"a\.fasta: the file can't be read"):
            read(tmp_path / "in")


class TestFromSequence:
    def test_checked_as_files_are(self):
        query = inputs.from_sequence("one", " mkt\nay ")
        assert (query.name, query.sequence, query.alignments, query.source) == ("one", "MKTAY", (), None)
        with pytest.raises(InputError, match=r"sequence 'one': '1' at residue 3"):
            inputs.from_sequence("one", "MK1")
        with pytest.raises(InputError, match=r"sequence 'one' has no sequence|is empty"):
            inputs.from_sequence("one", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P54025", "P54025"),
        ("sp|P54025|RL41_METJA 50S", "sp_P54025_RL41_METJA_50S"),
        ("a.b-c_d", "a.b-c_d"),
        ("..", "__"),
        (".", "_"),
        ("", "_"),
        ("../../etc/passwd", "___.._etc_passwd"),
        ("/abs", "_abs"),
        ("-rf", "_rf"),
        ("蛋白 é\0\n", "______"),
        ("x" * 300, "x" * 120),
    ],
)
def test_file_names(name, expected):
    assert file_name(name) == expected


def test_only_input_errors_escape(write, search):
    """Files of every kind, cut and altered, are read or refused."""
    folder = search("T1")
    samples = {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "a.fasta": b">one\nMKTAY\n>two\nMKTAY\n",
        "a.csv": b"id,sequence\none,MKTAY\n",
        "a.fasta.gz": gzip.compress(b">one\nMKTAY\n"),
    }
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(300):
        name = list(samples)[number % len(samples)]
        data = bytearray(samples[name])
        for at in rng.integers(len(data), size=rng.integers(5)):
            data[at] = rng.integers(256)
        if number % 3 == 0:
            del data[rng.integers(len(data)) :]
        path = write(f"fuzz/{name}", bytes(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                inputs.read([path])
            except InputError as error:
                refused += str(path) in str(error)
    assert refused > 100
