"""The results' trees: names, keys, ranks; interruption and resumption."""

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from axfold.errors import AxfoldError, InputError
from axfold.output import pdb, plots
from axfold.output.layouts import LAYOUTS
from axfold.output.results import job_names

REQUESTS = [("model_1_ptm", 0), ("model_2_ptm", 0), ("model_1_ptm", 1), ("model_2_ptm", 1)]
SETTINGS = {"parameters": "random numbers", "recycles": 3, "data": {"extra_msa": 1024, "shape": (1, 2)}}
# mean pLDDT; the order of REQUESTS
SCORES = [50.0, 90.0, 70.0, 70.0]
COLABFOLD_ORDER = [  # equals keep the order of the run
    "rank_001_alphafold2_ptm_model_2_seed_000",
    "rank_002_alphafold2_ptm_model_1_seed_001",
    "rank_003_alphafold2_ptm_model_2_seed_001",
    "rank_004_alphafold2_ptm_model_1_seed_000",
]
REAL_PLOTS = {plot: getattr(plots, plot) for plot in ("plddt", "pae", "coverage")}
ALPHAFOLD_TAGS = [
    "model_1_ptm_pred_0",
    "model_2_ptm_pred_0",
    "model_1_ptm_pred_1",
    "model_2_ptm_pred_1",
]


@pytest.fixture
def open_results(tmp_path, query):
    """Opens the results of the query in a folder of the test."""

    def make(
        layout: str, requests=REQUESTS, settings=SETTINGS, query=query, overwrite=False, job="a_protein"
    ):
        return LAYOUTS[layout](tmp_path / "out", job, query, settings, requests, overwrite=overwrite)

    return make


@pytest.fixture
def fold(predict):
    """Runs what is missing, or the first few of it, and finishes if all is there."""

    def run(results, count: int | None = None, **fields):
        results.start()
        for model, seed in results.missing[:count]:
            score = dict(zip(REQUESTS, SCORES, strict=True)).get((model, seed), 30.0)
            results.write(predict(model, seed, plddt=np.full(10, score, np.float32), **fields))
        return results if results.missing else results.finish(features_seconds=2.0)

    return run


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict[str, list]:
    """What was drawn last, by the plot's name; instead of pictures, which take their time."""
    last: dict[str, list] = {}

    def stand_in(plot: str):
        def draw(name, content, **kwargs) -> bytes:
            last[plot] = content
            return f"{plot} {name}".encode()

        return draw

    for plot in REAL_PLOTS:
        monkeypatch.setattr(plots, plot, stand_in(plot))
    return last


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def load(path: Path):
    return json.loads(path.read_text())


def test_colabfold_tree(tmp_path, open_results, fold):
    fold(open_results("colabfold"))
    ranked = [
        f"a_protein_{kind}_{rank}.{extension}"
        for kind, extension in (("unrelaxed", "pdb"), ("unrelaxed", "cif"), ("scores", "json"))
        for rank in COLABFOLD_ORDER
    ]
    others = ["config.json", "cite.bibtex"] + [
        f"a_protein{ending}"
        for ending in (
            ".a3m",
            "_coverage.png",
            "_pae.png",
            "_plddt.png",
            "_predicted_aligned_error_v1.json",
            ".done.txt",
        )
    ]
    assert tree(tmp_path / "out") == sorted(ranked + others)


def test_alphafold_tree(tmp_path, open_results, fold):
    fold(open_results("alphafold"))
    files = [f"ranked_{rank}.{extension}" for rank in range(4) for extension in ("pdb", "cif")]
    for tag in ALPHAFOLD_TAGS:
        files += [f"unrelaxed_{tag}.pdb", f"unrelaxed_{tag}.cif", f"confidence_{tag}.json", f"pae_{tag}.json"]
    files += ["ranking_debug.json", "timings.json", "config.json", "plddt.png", "pae.png", "coverage.png"]
    assert tree(tmp_path / "out") == sorted(f"a_protein/{name}" for name in files)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plots_are_pictures(tmp_path, open_results, fold, monkeypatch, layout):
    for plot, draw in REAL_PLOTS.items():
        monkeypatch.setattr(plots, plot, draw)
    fold(open_results(layout))
    pictures = [text for name, text in contents(tmp_path / "out").items() if name.endswith(".png")]
    assert len(pictures) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plots_are_of_the_best(open_results, fold, drawn, query, layout):
    requests = [("model_1_ptm", seed) for seed in range(2, 10)]
    fold(open_results(layout, [*requests, REQUESTS[1]]))
    assert [curve.label for curve in drawn["plddt"]] == [
        "rank 1: model_2_ptm, seed 0",
        *(f"rank {rank}: model_1_ptm, seed {rank}" for rank in range(2, 6)),
    ]
    assert drawn["plddt"][0].plddt.tolist() == [90.0] * 10
    assert [curve.pae.shape for curve in drawn["pae"]] == [(10, 10)] * 5
    assert drawn["coverage"][0] == query.sequence


def test_models_without_ptm_have_no_pae(tmp_path, open_results, fold):
    requests = [("model_3", 7)]
    fold(open_results("colabfold", requests))
    fold(open_results("alphafold", requests))
    assert [name for name in tree(tmp_path / "out") if "pae" in name or "aligned_error" in name] == []
    tag = "rank_001_alphafold2_model_3_seed_007"
    assert list(load(tmp_path / "out" / f"a_protein_scores_{tag}.json")) == ["plddt"]
    assert (tmp_path / "out" / "a_protein" / "unrelaxed_model_3_pred_0.pdb").exists()


def test_colabfold_contents(tmp_path, open_results, fold):
    fold(open_results("colabfold"))
    out = tmp_path / "out"
    scores = load(out / f"a_protein_scores_{COLABFOLD_ORDER[0]}.json")
    assert list(scores) == ["plddt", "max_pae", "pae", "ptm"]
    assert scores["plddt"] == [90.0] * 10
    best = load(out / "a_protein_predicted_aligned_error_v1.json")
    assert best == {
        "predicted_aligned_error": scores["pae"],
        "max_predicted_aligned_error": scores["max_pae"],
    }
    structure = (out / f"a_protein_unrelaxed_{COLABFOLD_ORDER[0]}.pdb").read_text()
    b_factors = {line[60:66] for line in structure.splitlines() if line.startswith("ATOM")}
    assert b_factors == {" 90.00"}
    assert load(out / "config.json")["settings"] == json.loads(json.dumps(SETTINGS))
    assert "10.1038/s41586-021-03819-2" in (out / "cite.bibtex").read_text()
    assert (out / "a_protein.a3m").read_text().startswith("#10\t1\n>101\nMKTAYIAKQX\n")


def test_alphafold_contents(tmp_path, open_results, fold):
    fold(open_results("alphafold"))
    folder = tmp_path / "out" / "a_protein"
    assert load(folder / "ranking_debug.json") == {
        "plddts": dict(zip(ALPHAFOLD_TAGS, SCORES, strict=True)),
        "order": [ALPHAFOLD_TAGS[i] for i in (1, 2, 3, 0)],
    }
    timings = load(folder / "timings.json")
    assert timings["features"] == 2.0
    assert set(timings) == {"features"} | {
        f"{stage}_{tag}" for tag in ALPHAFOLD_TAGS for stage in ("process_features", "predict_and_compile")
    }
    assert timings["predict_and_compile_model_1_ptm_pred_1"] == 1.5
    confidence = load(folder / "confidence_model_1_ptm_pred_0.json")
    assert list(confidence) == ["residueNumber", "confidenceScore", "confidenceCategory"]
    (pae,) = load(folder / "pae_model_1_ptm_pred_0.json")
    assert list(pae) == ["predicted_aligned_error", "max_predicted_aligned_error"]
    for rank, i in enumerate((1, 2, 3, 0)):
        for extension in ("pdb", "cif"):
            ranked = (folder / f"ranked_{rank}.{extension}").read_bytes()
            assert ranked == (folder / f"unrelaxed_{ALPHAFOLD_TAGS[i]}.{extension}").read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_finished_results_are_found_again(open_results, fold, layout):
    ranked = fold(open_results(layout))
    again = open_results(layout)
    assert again.finished
    assert again.missing == ()
    assert again.results == ranked
    assert [result.ranking_confidence for result in ranked] == [90, 70, 70, 50]
    assert all(again.structure(result).read_text().startswith("MODEL") for result in ranked)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupted_run_goes_on(tmp_path, open_results, fold, layout, stop):
    whole = fold(open_results(layout, job="whole")) and contents(tmp_path / "out")
    fold(open_results(layout), stop)
    assert not [name for name in tree(tmp_path / "out") if "a_protein" in name and "rank" in name]
    again = open_results(layout)
    assert not again.finished
    assert again.missing == tuple(REQUESTS[stop:])
    fold(again)
    assert open_results(layout).finished
    both = contents(tmp_path / "out")
    resumed = {name.replace("a_protein", "whole"): text for name, text in both.items() if "a_protein" in name}
    named = {name: text for name, text in whole.items() if "whole" in name}
    assert resumed.keys() == named.keys()
    for name, text in named.items():
        if not name.endswith(".png"):  # their titles have the name
            assert resumed[name] == text, name


def test_an_interrupted_colabfold_run_leaves_structures_without_rank(tmp_path, open_results, fold):
    fold(open_results("colabfold"), 2)
    tags = ("alphafold2_ptm_model_1_seed_000", "alphafold2_ptm_model_2_seed_000")
    assert tree(tmp_path / "out") == sorted(
        [
            f"a_protein_{kind}_{tag}.{end}"
            for tag in tags
            for kind, end in (("unrelaxed", "pdb"), ("unrelaxed", "cif"))
        ]
        + [f"a_protein_scores_{tag}.json" for tag in tags]
        + ["a_protein.a3m", "a_protein.progress.json", "cite.bibtex", "config.json"]
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_any_write(tmp_path, open_results, fold, monkeypatch, layout):
    """Whichever write or rename is the last one, the next run ends with the same tree as an undisturbed one."""
    fold(open_results(layout, REQUESTS[:2]))
    expected = contents(tmp_path / "out")
    empty(tmp_path / "out")
    replace_file, left = os.replace, 0

    def replace_or_die(source, target):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace_file(source, target)

    deaths = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_die)
            left = deaths
            try:
                fold(open_results(layout, REQUESTS[:2]))
            except KeyboardInterrupt:
                deaths += 1
            else:
                break
        assert not [name for name in tree(tmp_path / "out") if name.endswith(".tmp")]
        fold(open_results(layout, REQUESTS[:2]))
        assert contents(tmp_path / "out") == expected
        empty(tmp_path / "out")
    assert deaths > 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_disk_loses_only_the_file_under_way(tmp_path, open_results, fold, predict, monkeypatch, layout):
    results = fold(open_results(layout), 1)
    before = contents(tmp_path / "out")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AxfoldError, match=r"unrelaxed_\S+: the disk is full"):
            results.write(predict(*REQUESTS[1]))
    assert contents(tmp_path / "out") == before
    assert open_results(layout).missing == tuple(REQUESTS[1:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_killed_run_left_half_written_is_removed(tmp_path, open_results, fold, layout):
    results = fold(open_results(layout), 1)
    structure = results.structure(results.results[0])
    (structure.parent / f".{structure.name}.0123abcd.tmp").write_text("half a struct")
    stranger = structure.parent / ".of_another_program.0123abcd.tmp"
    stranger.touch()
    fold(open_results(layout))
    assert [name for name in tree(structure.parent) if name.endswith(".tmp")] == [stranger.name]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_seeds_are_added_and_all_are_ranked_anew(tmp_path, open_results, fold, layout):
    fold(open_results(layout, REQUESTS[:2]))
    more = open_results(layout)
    assert not more.finished
    assert more.missing == tuple(REQUESTS[2:])
    fold(more)
    added = contents(tmp_path / "out")
    fold(open_results(layout, overwrite=True))
    assert contents(tmp_path / "out") == added


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fewer_than_there_are_is_finished(open_results, fold, layout):
    fold(open_results(layout))
    for request in REQUESTS:
        if layout == "colabfold" or request[1] == 0:
            assert open_results(layout, [request]).finished


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, None], ids=["under way", "finished"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": SETTINGS | {"recycles": 20}}, "recycles is 3 there and 20 now"),
        (
            {"settings": SETTINGS | {"parameters": "others"}},
            'parameters is "random numbers" there and "others" now',
        ),
        ({"settings": SETTINGS | {"data": {"extra_msa": 8}}}, "data.extra_msa is 1024 there and 8 now"),
        ({"settings": SETTINGS | {"new": None, "tolerance": 0.5}}, "tolerance is null there and 0.5 now"),
        ({"requests": [("model_1_ptm", 5)]}, "model_1_ptm with seed 0, which this run doesn't ask for"),
        ({"requests": [("model_3_ptm", 0)]}, "model_1_ptm with seed 0, which this run doesn't ask for"),
    ],
)
def test_results_of_other_settings_are_not_reused(open_results, fold, layout, count, changes, reason):
    fold(open_results(layout, REQUESTS[:2] if count else REQUESTS[:1]), count)
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        open_results(layout, **changes)
    assert "a_protein" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_of_another_input_are_not_reused(open_results, fold, query, layout):
    fold(open_results(layout))
    shallow = replace(
        query.alignments[0],
        sequences=query.alignments[0].sequences[:2],
        descriptions=query.alignments[0].descriptions[:2],
        deletions=query.alignments[0].deletions[:2],
    )
    others = [
        replace(query, sequence="MKTAYIAKQA"),
        replace(query, alignments=()),
        replace(query, alignments=(shallow,)),
        replace(
            query, alignments=(replace(query.alignments[0], deletions=query.alignments[0].deletions + 1),)
        ),
        replace(query, templates=(Path("template.cif"),)),
    ]
    for other in others:
        with pytest.raises(InputError, match="of another sequence, alignment or templates"):
            open_results(layout, query=other)
    assert open_results(layout, query=replace(query, name="renamed")).finished


def test_alphafold_names_of_seeds_must_stay(open_results, fold):
    fold(open_results("alphafold", [("model_1_ptm", 1)]))
    with pytest.raises(InputError, match="model_1_ptm_pred_0 there and model_1_ptm_pred_1 now"):
        open_results("alphafold", [("model_1_ptm", 0), ("model_1_ptm", 1)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_overwriting_leaves_nothing_of_before(tmp_path, open_results, fold, layout):
    fold(open_results(layout), representations={"single": np.zeros((10, 4), np.float32)})
    other = SETTINGS | {"recycles": 0}
    results = open_results(layout, [("model_3", 0)], other, overwrite=True)
    assert not results.finished
    assert results.missing == (("model_3", 0),)
    fold(results)
    after = contents(tmp_path / "out")
    empty(tmp_path / "out")
    fold(open_results(layout, [("model_3", 0)], other))
    assert contents(tmp_path / "out") == after


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_deleted_file_is_made_again(open_results, fold, layout):
    ranked = fold(open_results(layout))
    open_results(layout).structure(ranked[-1]).unlink()
    again = open_results(layout)
    assert not again.finished
    assert again.missing == ((ranked[-1].model, ranked[-1].seed),)
    assert fold(again) == ranked


@pytest.mark.parametrize(
    ("layout", "name", "text"),
    [
        ("colabfold", "a_protein.done.txt", ""),
        ("colabfold", "a_protein_unrelaxed_alphafold2_ptm_model_1_seed_000.pdb", "MODEL"),
        ("colabfold", "a_protein_unrelaxed_rank_001_alphafold2_ptm_model_2_seed_000.pdb", "MODEL"),
        ("alphafold", "a_protein/ranking_debug.json", "{}"),
        ("alphafold", "a_protein/config.json", '{"results": [{"tag": 1}]}'),
    ],
)
def test_results_of_another_program_are_refused(tmp_path, open_results, fold, layout, name, text):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match=rf"{re.escape(path.name)}.*--overwrite"):
        open_results(layout)
    assert path.read_text() == text
    fold(open_results(layout, overwrite=True))
    assert open_results(layout).finished


def test_the_users_alignment_stays(tmp_path, open_results, fold, query):
    path = tmp_path / "out" / "a_protein.a3m"
    path.parent.mkdir()
    path.write_bytes(b">q\nMKTAYIAKQX\n>r \xff\nMKTAYIAKQaQX\n")
    before = path.read_bytes()
    fold(open_results("colabfold"))
    fold(open_results("colabfold", overwrite=True))
    assert path.read_bytes() == before


def test_our_alignment_is_replaced(tmp_path, open_results, fold, query):
    fold(open_results("colabfold"))
    fold(open_results("colabfold", query=replace(query, alignments=()), overwrite=True))
    assert (tmp_path / "out" / "a_protein.a3m").read_text() == "#10\t1\n>101\nMKTAYIAKQX\n"


def test_alphafold_leaves_the_msas_alone(tmp_path, open_results, fold):
    msas = tmp_path / "out" / "a_protein" / "msas"
    msas.mkdir(parents=True)
    (msas / "uniref90_hits.sto").write_text("# STOCKHOLM 1.0\n//\n")
    fold(open_results("alphafold"))
    fold(open_results("alphafold", overwrite=True))
    assert tree(msas) == ["uniref90_hits.sto"]


def test_proteins_in_one_folder_do_not_disturb_each_other(tmp_path, open_results, fold):
    for job in ("a", "a_unrelaxed", "a.b"):
        fold(open_results("colabfold", REQUESTS[:1], job=job))
    before = contents(tmp_path / "out")
    fold(open_results("colabfold", REQUESTS[:1], job="a", overwrite=True))
    assert contents(tmp_path / "out") == before


def test_recycles_and_representations(tmp_path, open_results, fold, predict):
    passes = tuple(predict(seed=seed) for seed in (5, 6))
    fields = {
        "representations": {"single": np.ones((10, 4), np.float32), "pair": np.ones((10, 10, 2), np.float32)},
        "atom_positions_by_pass": tuple(each.atom_positions for each in passes),
        "plddt_by_pass": tuple(each.plddt for each in passes),
    }
    fold(open_results("colabfold", REQUESTS[:1]), **fields)
    fold(open_results("alphafold", REQUESTS[:1]), **fields)
    out = tmp_path / "out"
    tag = "rank_001_alphafold2_ptm_model_1_seed_000"
    assert np.load(out / f"a_protein_single_repr_{tag}.npy").shape == (10, 4)
    assert np.load(out / f"a_protein_pair_repr_{tag}.npy").shape == (10, 10, 2)
    for number, each in enumerate(passes):
        name = f"a_protein_unrelaxed_{tag}.r{number}.pdb"
        assert (out / name).read_text() == pdb.write(each)
    assert [name for name in tree(out) if ".r2." in name] == []
    arrays = np.load(out / "a_protein" / "result_model_1_ptm_pred_0.npz", allow_pickle=False)
    assert set(arrays) == {
        "single",
        "pair",
        "plddt",
        "ranking_confidence",
        "final_atom_positions",
        "final_atom_mask",
        "predicted_aligned_error",
        "max_predicted_aligned_error",
        "ptm",
    }
    assert arrays["ranking_confidence"] == 50
    assert (out / "a_protein" / "unrelaxed_model_1_ptm_pred_0.r1.pdb").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_meaningless_predictions_say_so_everywhere(tmp_path, open_results, fold, layout):
    fold(open_results(layout), meaningless=True)
    folder = tmp_path / "out"
    silent = [
        name
        for name, text in contents(folder).items()
        if name.endswith((".pdb", ".cif", ".json", ".done.txt"))
        and b"meaningless" not in text
        and not name.endswith("timings.json")
    ]
    assert silent == (["config.json"] if layout == "colabfold" else [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_pdb_cannot_hold_is_written_as_mmcif(tmp_path, open_results, fold, layout, caplog):
    ranked = fold(open_results(layout, REQUESTS[:1]), residue_index=np.arange(10) + 10_000)
    assert [name for name in tree(tmp_path / "out") if name.endswith(".pdb")] == []
    assert "residue number 10,010" in caplog.text
    again = open_results(layout, REQUESTS[:1])
    assert again.finished
    assert again.structure(ranked[0]).suffix == ".cif"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("field", ["plddt", "atom_positions", "predicted_aligned_error"])
def test_values_that_are_not_numbers_are_refused(tmp_path, open_results, predict, layout, field):
    results = open_results(layout)
    results.start()
    before = tree(tmp_path / "out")
    broken = np.array(getattr(predict(), field))
    broken[3] = np.nan
    with pytest.raises(AxfoldError, match=r"model_1_ptm with seed 0 .* aren't numbers"):
        results.write(predict(**{field: broken}))
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_residue_without_alignment(open_results, predict, layout, query):
    results = open_results(layout, REQUESTS[:1], query=replace(query, sequence="G", alignments=()))
    results.start()
    results.write(predict(sequence="G"))
    results.finish()
    assert results.finished


def test_looking_writes_nothing(tmp_path, open_results):
    for layout in LAYOUTS:
        results = open_results(layout)
        assert not results.finished
        assert results.missing == tuple(REQUESTS)
    assert tree(tmp_path) == []


def test_folder_that_cannot_be_written_to(tmp_path, open_results):
    (tmp_path / "out").touch()
    for layout in LAYOUTS:
        with pytest.raises(InputError, match=r"out.*can't be written.*--out"):
            open_results(layout)


@pytest.mark.parametrize(
    ("names", "jobs"),
    [
        (["sp|P12345|X y"], ["sp_P12345_X_y"]),
        (
            ["../../etc/passwd", "..", ".", "", "-rf", ".hidden"],
            ["___.._etc_passwd", "__", "_", "__2", "_rf", "_hidden"],
        ),
        (["a b", "a_b", "A_B", "a_b_2"], ["a_b", "a_b_2", "A_B_3", "a_b_2_2"]),
        (["日本é", "a\nb\0c"], ["___", "a_b_c"]),
        (["x" * 300, "x" * 301], ["x" * 120, "x" * 120 + "_2"]),
    ],
)
def test_job_names(names, jobs):
    assert job_names(names) == jobs
