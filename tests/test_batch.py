"""Many proteins, models and seeds into a folder: what is written, continued, refused; what fails."""

import errno
import json
import logging
import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from axfold import batch
from axfold.batch import Options
from axfold.console import Plain
from axfold.errors import AxfoldError, InputError, WeightsError
from axfold.predictor import Predictor

pytestmark = pytest.mark.usefixtures("_quick_plots")

FIRST, SECOND = "MKTAYIAKQRQISFVKSH", "GSTIQPGTGYNNG"
FASTA = f">first protein\n{FIRST}\n>second\n{SECOND}\n"


@pytest.fixture
def _quick_plots(monkeypatch):
    """No plots, which take longer than all else here."""
    for plot in ("plddt", "pae", "coverage"):
        monkeypatch.setattr(f"axfold.output.plots.{plot}", lambda *args, **settings: b"a picture")


@pytest.fixture
def ask(small, tmp_path):
    """The options of a batch of two proteins; arguments replace some."""

    def make(text: str = FASTA, **changed) -> Options:
        fasta = tmp_path / "in.fasta"
        fasta.write_text(text)
        settings = {
            "inputs": (fasta,),
            "out": tmp_path / "out",
            "params": "synthetic",
            "device": "cpu",
            "recycles": 1,
        }
        return Options(**{**settings, **changed})

    return make


@pytest.fixture
def run(ask):
    """Runs such a batch."""
    return lambda *args, **changed: batch.run(ask(*args, **changed), Plain())


@pytest.fixture
def counted(monkeypatch):
    """Names and models of the predictions that ran; `fail` may be set to a function of (query, model, seed)."""

    class Calls(list):
        fail = None

    calls = Calls()
    predict = Predictor.predict

    def counting(self, query, *, seed, **settings):
        if calls.fail is not None:
            calls.fail(query, self.config.name, seed)
        calls.append((query.name, self.config.name, seed))
        return predict(self, query, seed=seed, **settings)

    monkeypatch.setattr(Predictor, "predict", counting)
    return calls


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return set(tree(folder))


def steady(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files without what tells the time."""
    timed = ("log.txt", "timings.json", "config.json", ".done.txt")
    return {name: content for name, content in files.items() if not name.endswith(timed)}


def test_both_proteins_with_all_models_and_seeds(run, counted, tmp_path):
    outcome = run(models=("model_1_ptm,model_3_ptm",), seed=5, num_seeds=2)
    order = [(5, "model_1_ptm"), (5, "model_3_ptm"), (6, "model_1_ptm"), (6, "model_3_ptm")]
    assert counted == [(name, model, seed) for name in ("first protein", "second") for seed, model in order]
    assert not outcome.failures
    assert len(outcome.finished) == 8
    assert all(item.path.exists() for item in outcome.finished)
    scores = [item.result.plddt for item in outcome.finished if item.name == "second"]
    assert scores == sorted(scores, reverse=True)
    found = names(tmp_path / "out")
    assert {"log.txt", "config.json", "cite.bibtex", "first_protein.a3m", "first_protein.done.txt"} <= found
    assert "failures.json" not in found


def test_the_other_layout(run, tmp_path):
    outcome = run(layout="alphafold")
    assert len(outcome.finished) == 2
    found = names(tmp_path / "out")
    assert {
        "log.txt",
        "first_protein/ranked_0.pdb",
        "second/ranking_debug.json",
        "second/timings.json",
    } <= found


@pytest.mark.parametrize("layout", ["colabfold", "alphafold"])
def test_two_runs_write_the_same_bytes(run, tmp_path, layout):
    settings = {"layout": layout, "save_recycles": True, "save_representations": True, "num_models": 2}
    run(out=tmp_path / "a", **settings)
    run(out=tmp_path / "b", **settings)
    one, other = steady(tree(tmp_path / "a")), steady(tree(tmp_path / "b"))
    assert len(one) > 20
    assert one == other


def test_what_is_saved_on_request(run, tmp_path):
    run(save_recycles=True, save_representations=True)
    found = names(tmp_path / "out")
    tag = "rank_001_alphafold2_ptm_model_1_seed_000"
    for name in (
        f"second_unrelaxed_{tag}.r1.pdb",
        f"second_single_repr_{tag}.npy",
        f"second_pair_repr_{tag}.npy",
    ):
        assert name in found


def test_a_finished_batch_is_not_done_again(run, counted, tmp_path, capsys):
    first = run()
    before = tree(tmp_path / "out")
    del counted[:]
    capsys.readouterr()
    again = run()
    assert counted == []
    assert again == first
    after = tree(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"log.txt"}
    assert after["log.txt"].startswith(before["log.txt"])
    assert "second is finished already" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["colabfold", "alphafold"])
def test_an_interrupted_batch_is_continued(run, counted, tmp_path, layout):
    run(out=tmp_path / "whole", num_models=3, layout=layout)
    del counted[:]

    def stop(query, model, seed):
        if (query.name, model) == ("second", "model_2_ptm"):
            raise KeyboardInterrupt

    counted.fail = stop
    with pytest.raises(KeyboardInterrupt):
        run(num_models=3, layout=layout)
    done = list(counted)
    assert len(done) == 4
    assert (tmp_path / "out" / "log.txt").read_text().endswith("Interrupted\n")
    counted.fail = None
    run(num_models=3, layout=layout)
    assert counted[4:] == [("second", "model_2_ptm", 0), ("second", "model_3_ptm", 0)]
    assert steady(tree(tmp_path / "out")) == steady(tree(tmp_path / "whole"))


def test_more_models_are_added(run, counted, tmp_path):
    run()
    del counted[:]
    outcome = run(num_models=2)
    assert counted == [("first protein", "model_2_ptm", 0), ("second", "model_2_ptm", 0)]
    assert len(outcome.finished) == 4


def test_other_settings_are_refused_and_overwritten(run, counted):
    run()
    for changed in ({"recycles": 0}, {"max_msa": "4:4"}, {"params": "synthetic:1"}, {"precision": "bf16"}):
        with pytest.raises(InputError, match=r"already has results named first_protein: .* --overwrite"):
            run(**changed)
    del counted[:]
    run(recycles=0, overwrite=True)
    assert len(counted) == 2


def test_settings_are_told_alike(run, counted, tmp_path, monkeypatch):
    """`synthetic` is `synthetic:0`, and what a preset has may be said."""
    run()
    run(params="synthetic:0", tolerance=0.0, ensembles=1, precision="fp32")
    assert len(counted) == 2


def test_one_failure_stops_no_other(run, counted, tmp_path, capsys):
    def fail(query, model, seed):
        if query.name == "first protein":
            raise AxfoldError("first protein: it does not fit.")

    counted.fail = fail
    outcome = run()
    failure = {"name": "first protein", "error": "first protein: it does not fit.", "stage": "features"}
    assert [vars(item) for item in outcome.failures] == [failure]
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == [failure]
    assert {item.name for item in outcome.finished} == {"second"}
    assert (
        "error: first protein failed (features): first protein: it does not fit." in capsys.readouterr().err
    )
    assert "failed: first protein (features): first protein: it does not fit." in batch.table(outcome)

    counted.fail = None
    assert not run().failures
    assert not (tmp_path / "out" / "failures.json").exists()


def test_a_defect_is_told_in_the_log(run, counted, tmp_path, capsys):
    def fail(query, model, seed):
        if query.name == "first protein":
            raise ZeroDivisionError("by zero\nsecond line")

    counted.fail = fail
    outcome = run()
    (failure,) = outcome.failures
    assert failure.error == "An unexpected error, see log.txt: ZeroDivisionError: by zero"
    assert "Traceback (most recent call last)" in (tmp_path / "out" / "log.txt").read_text()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert len(outcome.finished) == 1


def test_the_stage_of_a_failure_is_told(run, monkeypatch, tmp_path):
    real = os.replace

    def full(source, target):
        if "scores" in Path(target).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr("axfold.output.files.os.replace", full)
    outcome = run()
    assert [failure.stage for failure in outcome.failures] == ["writing", "writing"]
    assert "the disk is full" in outcome.failures[0].error
    assert str(tmp_path / "out") in outcome.failures[0].error
    monkeypatch.undo()


def test_a_network_that_fails(run, monkeypatch):
    monkeypatch.setattr("axfold.model.structure.StructureModule.forward", lambda *args: 1 / 0)
    assert [failure.stage for failure in run().failures] == ["network", "network"]


def test_numbers_that_are_none(run, monkeypatch):
    monkeypatch.setattr("axfold.predictor.confidence.plddt", lambda logits: np.full(len(logits), np.nan))
    (failure, _) = run().failures
    assert failure.stage == "writing"
    assert "pLDDT that aren't numbers" in failure.error


def test_the_log_reads_like_colabfolds(run, tmp_path):
    run()
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    assert lines[0].startswith("Running axfold ")
    assert "Query 2/2: second (length 13)" in lines
    tag = "alphafold2_ptm_model_1_seed_000"
    assert any(line.startswith(f"{tag} recycle=0 pLDDT=") for line in lines)
    assert any(line.startswith(f"{tag} recycle=1 pLDDT=") and " tol=" in line for line in lines)
    assert any(line.startswith(f"{tag} took ") and line.endswith("s (1 recycles)") for line in lines)
    assert any(line.startswith(f"rank_001_{tag} pLDDT=") and " pTM=" in line for line in lines)
    assert lines[-1] == "Done"


def test_synthetic_parameters_are_warned_of_once(run, capsys):
    run(num_models=2)
    assert capsys.readouterr().err.count("meaningless") == 1


def test_warnings_about_the_input_are_lines(run, capsys, tmp_path):
    run(">odd\nMKTUYIAKQRB\n")
    err = capsys.readouterr().err
    assert "warning: " in err
    assert "has B, U" in err
    assert "has B, U" in (tmp_path / "out" / "log.txt").read_text()


def test_bf16_on_a_cpu_is_warned_of(run, capsys):
    outcome = run(precision="bf16", recycles=0)
    assert len(outcome.finished) == 2
    assert "mostly slower than fp32" in capsys.readouterr().err


def test_tf32_on_a_cpu_is_fp32(run, capsys):
    assert len(run(precision="tf32", recycles=0).finished) == 2
    assert "This device has no TF32: precision fp32 is used." in capsys.readouterr().err
    run(precision="fp32", recycles=0)  # the same settings: nothing is left to do
    assert capsys.readouterr().out.count("is finished already") == 2


def test_nothing_stays_behind(run):
    logger = logging.getLogger("axfold")
    before = logger.level, list(logger.handlers)
    run()
    assert (logger.level, list(logger.handlers)) == before


def pdb(path: Path, sequence_name: str = "ALA", residues: int = 18) -> Path:
    """A chain of one kind of residue."""
    atoms = (("N", 0.0), ("CA", 1.4), ("C", 2.1), ("O", 2.4))
    lines = [
        f"ATOM  {4 * i + j + 1:5d}  {atom:<3s} {sequence_name} A{i + 1:4d}    {3.8 * i + x:8.3f}{x:8.3f}   0.000"
        f"  1.00  0.00           {atom[0]}  "
        for i in range(residues)
        for j, (atom, x) in enumerate(atoms)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


@pytest.mark.parametrize(
    ("layout", "report"), [("colabfold", "chain_templates.json"), ("alphafold", "chain/templates.json")]
)
def test_every_template_has_its_report(run, tmp_path, capsys, layout, report):
    good = pdb(tmp_path / "good.pdb")
    bad = tmp_path / "bad.cif"
    bad.write_text("junk")
    outcome = run(f">chain\n{'A' * 18}\n", templates=(good, bad), layout=layout)
    assert not outcome.failures
    reports = {item["name"]: item for item in json.loads((tmp_path / "out" / report).read_text())}
    assert reports[str(good)]["used"]
    assert reports[str(good)]["aligned"] == [1, 18]
    assert not reports[str(bad)]["used"]
    captured = capsys.readouterr()
    assert f"warning: chain: template {bad} is not used: " in captured.err
    assert "templates used: good_A" in captured.out


def test_templates_change_the_prediction(run, tmp_path):
    text = f">chain\n{'A' * 18}\n"
    plain = run(text, out=tmp_path / "a")
    templated = run(text, out=tmp_path / "b", templates=(pdb(tmp_path / "good.pdb"),))
    assert plain.finished[0].result.plddt != templated.finished[0].result.plddt


def test_models_without_templates_say_so(run, tmp_path, capsys):
    run(templates=(pdb(tmp_path / "good.pdb"),), models=("model_1_ptm", "model_3_ptm"), recycles=0)
    assert "Templates are not used by model_3_ptm; models 1 and 2 use them." in capsys.readouterr().err


def test_a_folder_of_mmcifs_needs_an_hhr(run, tmp_path, capsys):
    folder = tmp_path / "mmcifs"
    folder.mkdir()
    run(template_mmcifs=folder, recycles=0)
    err = capsys.readouterr().err
    assert f"warning: second: there is no hhr that says which structures of {folder} to use." in err
    with pytest.raises(InputError, match=r"--template-mmcifs .*none: there is no such folder"):
        run(template_mmcifs=tmp_path / "none")


def test_a_single_sequence_leaves_alignments_out(run, counted, tmp_path):
    a3m = tmp_path / "aligned.a3m"
    a3m.write_text(f">aligned\n{SECOND}\n>other\n{SECOND[::-1]}\n")
    aligned = run(inputs=(a3m,), out=tmp_path / "a")
    single = run(inputs=(a3m,), out=tmp_path / "b", single_sequence=True)
    assert aligned.finished[0].result.plddt != single.finished[0].result.plddt
    with pytest.raises(InputError, match="--single-sequence and --msa exclude each other"):
        run(single_sequence=True, msa=a3m)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"models": ("model_6",)}, InputError),
        ({"recycles": -1}, InputError),
        ({"num_seeds": 0}, InputError),
        ({"max_msa": "0:0"}, InputError),
        ({"layout": "boltz"}, InputError),
        ({"precision": "fp8"}, InputError),
        ({"device": "cuda:7777"}, InputError),
        ({"device": "cuda:77"}, InputError),
        ({"params": "/nowhere/params.npz"}, WeightsError),
        ({"params": "synthetic:x"}, WeightsError),
        ({"inputs": (Path("/nowhere.fasta"),)}, InputError),
        ({"inputs": ()}, InputError),
    ],
    ids=str,
)
def test_everything_is_checked_before_a_model_is_loaded(run, monkeypatch, changed, error):
    monkeypatch.setattr("axfold.network.load_network", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(error):
        run(**changed)


def test_parameters_of_another_model_are_found_before(run, tmp_path, monkeypatch):
    from axfold.config import PRESETS
    from axfold.weights.convert import convert
    from axfold.weights.source import Source

    file = tmp_path / "model_3.safetensors"
    convert(Source(seed=0), "model_3", file)
    assert PRESETS["model_3"].model.templates is None
    outcome = run(models=("model_3",), params=str(file))
    assert len(outcome.finished) == 2
    assert outcome.finished[0].result.parameters == str(file)
    monkeypatch.setattr("axfold.network.load_network", lambda *args: pytest.fail("a model was loaded"))
    with pytest.raises(WeightsError, match=r"model_3\.safetensors"):
        run(models=("model_1_ptm",), params=str(file), out=tmp_path / "other")


def test_a_folder_that_cannot_be_written(run, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(InputError, match=f"{blocked}: can't be written"):
        run(out=blocked)


def test_the_table_has_a_line_for_each(run):
    outcome = run(models=("model_3",))
    head, first, second = batch.table(outcome).splitlines()
    assert head.split() == ["protein", "model", "seed", "pLDDT", "pTM", "seconds", "file"]
    assert first.startswith("first protein  model_3  0 ")
    assert second.endswith(str(outcome.finished[1].path))


@pytest.mark.filterwarnings("default:attention is left to PyTorch")
def test_what_is_warned_of_while_a_protein_is_folded_is_in_the_log(run, counted, tmp_path, capsys):
    counted.fail = lambda *args: warnings.warn("attention is left to PyTorch", stacklevel=1)
    run()
    assert "warning: attention is left to PyTorch" in capsys.readouterr().err
    assert "attention is left to PyTorch\n" in (tmp_path / "out" / "log.txt").read_text()


@pytest.fixture
def beside(monkeypatch):
    """The network as on a GPU: features are made ahead, other processes write."""
    monkeypatch.setattr(batch._Batch, "_overlaps", lambda self: True)
    monkeypatch.setattr(batch, "WRITERS", 1)


def pictureless(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in steady(tree(folder)).items() if not name.endswith(".png")}


def test_writing_behind_and_features_ahead_change_no_file(run, tmp_path, monkeypatch, capsys):
    plain = run(out=tmp_path / "a", num_models=2)
    monkeypatch.setattr(batch._Batch, "_overlaps", lambda self: True)
    monkeypatch.setattr(batch, "WRITERS", 1)
    threads = threading.active_count()
    beside = run(out=tmp_path / "b", num_models=2)
    assert threading.active_count() == threads
    assert pictureless(tmp_path / "a") == pictureless(tmp_path / "b")
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert [(item.name, item.result.tag) for item in beside.finished] == [
        (item.name, item.result.tag) for item in plain.finished
    ]
    log = (tmp_path / "b" / "log.txt").read_text()
    assert log.index("first protein: reranking") < log.index("second: reranking") < log.index("Done")
    assert run(out=tmp_path / "b", num_models=2) == beside  # all is there


def test_failures_beside_the_device_stay_with_their_protein(run, counted, tmp_path, monkeypatch, beside):
    """One in the features, one in the network, one in writing."""
    monomer_samples = batch.pipelines.monomer_samples

    def samples(query, *args, **settings):
        if query.name == "first protein":
            raise AxfoldError("first protein: no features.")
        return monomer_samples(query, *args, **settings)

    monkeypatch.setattr(batch.pipelines, "monomer_samples", samples)

    def fail(query, model, seed):
        if query.name == "third":
            raise AxfoldError("third: it does not fit.")

    counted.fail = fail
    real = Predictor._fold

    def fold(self, query, *args, **settings):
        prediction = real(self, query, *args, **settings)
        if query.name == "fourth":
            prediction.atom_positions[:] = np.nan
        return prediction

    monkeypatch.setattr(Predictor, "_fold", fold)
    outcome = run(FASTA + f">third\n{SECOND}A\n>fourth\n{SECOND}G\n>fifth\n{SECOND}V\n")
    assert [(item.name, item.stage) for item in outcome.failures] == [
        ("first protein", "features"),
        ("third", "features"),
        ("fourth", "writing"),
    ]
    assert "that aren't numbers" in outcome.failures[2].error
    assert [item.name for item in outcome.finished] == ["second", "fifth"]
    assert len(json.loads((tmp_path / "out" / "failures.json").read_text())) == 3


def test_an_interruption_beside_the_device_loses_nothing_that_is_folded(run, counted, tmp_path, beside):
    def stop(query, model, seed):
        if (query.name, model) == ("second", "model_2_ptm"):
            raise KeyboardInterrupt

    counted.fail = stop
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(num_models=2)
    assert threading.active_count() == threads
    found = names(tmp_path / "out")
    assert "first_protein.done.txt" in found
    assert any(name.startswith("second_unrelaxed") for name in found)
    assert not [name for name in found if name.endswith((".part", ".tmp"))]
    counted.fail = None
    del counted[:]
    run(num_models=2)
    assert counted == [("second", "model_2_ptm", 0)]
