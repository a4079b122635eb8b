"""Commands, as a user types them."""

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from axfold import __version__, cli
from axfold.batch import Options, Outcome
from axfold.config import PRESETS
from axfold.errors import AxfoldError, InputError
from axfold.predictor import Predictor

SEQUENCE = "MKTAYIAKQRQISFVKSH"


@pytest.fixture
def axfold(small, tmp_path, monkeypatch):
    """Runs a command line in a folder with in.fasta; the result."""
    (tmp_path / "in.fasta").write_text(f">first protein\n{SEQUENCE}\n>second\n{SEQUENCE[::-1]}\n")
    (tmp_path / "one.fasta").write_text(f">one\n{SEQUENCE}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXFOLD_CACHE", str(tmp_path / "cache"))
    return lambda line: CliRunner().invoke(cli.app, line.split(), catch_exceptions=False)


PREDICT = "predict one.fasta --out out --params synthetic --device cpu --recycles 0"


@pytest.mark.parametrize(
    ("layout", "structure"),
    [
        ("colabfold", "out/first_protein_unrelaxed_rank_001_alphafold2_ptm_model_1_seed_000.pdb"),
        ("alphafold", "out/first_protein/unrelaxed_model_1_ptm_pred_0.pdb"),
    ],
)
def test_predict_from_end_to_end(axfold, tmp_path, layout, structure):
    line = f"predict in.fasta --out out --params synthetic --device cpu --recycles 1 --layout {layout}"
    result = axfold(line)
    assert result.exit_code == 0
    assert "meaningless" in result.stderr
    assert "\x1b" not in result.output
    head, first, second = result.stdout.splitlines()[-3:]
    assert head.split() == ["protein", "model", "seed", "pLDDT", "pTM", "seconds", "file"]
    assert first.endswith(structure)
    assert second.startswith("second ")
    assert "meaningless" in (tmp_path / structure).read_text()
    assert axfold(line).exit_code == 0


def test_every_option_reaches_the_batch(axfold, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "axfold.batch.run",
        lambda request, display: asked.append(request) or Outcome(finished=(), failures=()),
    )
    monkeypatch.setattr("axfold.batch.table", lambda outcome: "")
    result = axfold(
        "predict in.fasta one.fasta -o out --model model_1 --model model_2,model_3 --params synthetic:3 --msa msas"
        " --single-sequence --templates a.pdb --templates hits.hhr --template-mmcifs cifs"
        " --max-template-date 2020-05-14 --recycles 7 --tolerance 0.5 --seed 4 --num-seeds 2 --max-msa 32:64"
        " --ensembles 8 --precision bf16 --device cuda:1 --layout alphafold --overwrite --save-recycles"
        " --save-representations"
    )
    assert result.exit_code == 0
    assert asked == [
        Options(
            inputs=(Path("in.fasta"), Path("one.fasta")),
            out=Path("out"),
            models=("model_1", "model_2,model_3"),
            params="synthetic:3",
            msa=Path("msas"),
            single_sequence=True,
            templates=(Path("a.pdb"), Path("hits.hhr")),
            template_mmcifs=Path("cifs"),
            max_template_date=date(2020, 5, 14),
            recycles=7,
            tolerance=0.5,
            seed=4,
            num_seeds=2,
            max_msa="32:64",
            ensembles=8,
            precision="bf16",
            device="cuda:1",
            layout="alphafold",
            overwrite=True,
            save_recycles=True,
            save_representations=True,
        )
    ]
    axfold("predict one.fasta -o out --num-models 3")
    assert asked[1] == Options(inputs=(Path("one.fasta"),), out=Path("out"), num_models=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--recycles -1", "--recycles -1"),
        ("--max-msa 0:0", "--max-msa 0:0"),
        ("--num-seeds 0", "--num-seeds 0"),
        ("--seed -1", "--seed -1"),
        ("--tolerance -1", "--tolerance -1"),
        ("--ensembles 0", "--ensembles 0"),
        ("--model model_9", "--model model_9"),
        ("--num-models 9", "--num-models 9"),
        ("--num-models 1 --model model_1", "exclude each other"),
        ("--layout boltz", "--layout boltz: choose one of colabfold, alphafold"),
        ("--precision fp8", "--precision fp8"),
        ("--device tpu", "--device tpu"),
        ("--device cuda:77", "--device cuda:77"),
        ("--params none.npz", "none.npz: there is no such file"),
        ("--params synthetic:x", "synthetic:x"),
        ("--msa none", "none"),
        ("--templates none", "none: there is no such file"),
        ("--template-mmcifs none", "--template-mmcifs none"),
        ("--max-template-date yesterday", "--max-template-date yesterday"),
        ("--single-sequence --msa one.fasta", "exclude each other"),
        ("--out one.fasta", "one.fasta: can't be written"),
        ("none.fasta", "none.fasta: there is no such file"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(axfold, monkeypatch, options, message):
    monkeypatch.setattr("axfold.network.load_network", lambda *args: pytest.fail("a model was loaded"))
    result = axfold(f"{PREDICT} {options}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("axfold: ")
    assert result.stderr.count("\n") == 1
    assert len(re.findall(r"[.!](?:\s|$)", result.stderr)) <= 3


def test_without_parameters_the_way_to_them_is_told(axfold):
    result = axfold("predict one.fasta --out out")
    assert result.exit_code == 2
    assert "axfold weights download" in result.stderr


@pytest.mark.parametrize("options", ["--recycles few", "--unknown", "--seed"])
def test_what_cannot_be_read_at_all(axfold, options):
    result = axfold(f"{PREDICT} {options}")
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_protein_that_fails_sets_the_exit_code(axfold, monkeypatch, tmp_path):
    predict = Predictor.predict

    def fail(self, query, **settings):
        if query.name == "second":
            raise AxfoldError("second: it does not fit.")
        return predict(self, query, **settings)

    monkeypatch.setattr(Predictor, "predict", fail)
    result = axfold("predict in.fasta --out out --params synthetic --device cpu --recycles 0")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "failed: second (features): second: it does not fit."
    (failure,) = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert failure["name"] == "second"


def test_interruption_tells_how_to_continue(axfold, monkeypatch):
    def stop(self, query, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "predict", stop)
    result = axfold(PREDICT)
    assert result.exit_code == 130
    assert "axfold: stopped. The same command (without --overwrite) continues" in result.stderr


def test_forward(axfold, tmp_path):
    from axfold.data import pipelines
    from axfold.data.query import Query

    features = pipelines.monomer(Query(name="q", sequence="MKTAYIAKQ"), PRESETS["model_3_ptm"], 0, passes=2)
    np.savez("features.npz", **features)
    line = "forward --inputs features.npz --params synthetic:1 --model model_3_ptm --out outputs.npz --device cpu"
    result = axfold(f"{line} --recycles 1")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "outputs.npz"
    with np.load("outputs.npz", allow_pickle=False) as outputs:
        assert outputs["pair"].shape == (9, 9, 12)
    result = axfold(f"{line} --recycles 2")
    assert result.exit_code == 2
    assert "hold 2 samples, and 2 recycles need 3" in result.stderr


def test_doctor(axfold, tmp_path):
    result = axfold("doctor")
    assert result.exit_code == 1
    assert "absent  parameters: 0 of 10 models" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("Run `axfold weights download`")
    (tmp_path / "cache" / "params").mkdir(parents=True)
    (tmp_path / "cache" / "params" / "params_model_1.npz").write_bytes(b"PK")
    result = axfold("doctor")
    assert result.exit_code == 0
    assert re.search(r"ok +gated_attention, fp32: sdpa, error", result.stdout)


def test_weights_are_listed_with_their_licence(axfold, tmp_path):
    (tmp_path / "cache" / "params").mkdir(parents=True)
    (tmp_path / "cache" / "params" / "params_model_2.npz").write_bytes(b"PK")
    result = axfold("weights list")
    assert result.exit_code == 0
    assert re.search(r"^model_1 +not here$", result.stdout, re.M)
    assert re.search(r"^model_2 +.*params_model_2\.npz$", result.stdout, re.M)
    assert re.search(r"^model_1_multimer_v3 +not supported yet$", result.stdout, re.M)
    assert "CC BY 4.0" in result.stdout
    assert "Jumper et al." in result.stdout
    assert "elsewhere" in axfold("weights list --cache elsewhere").stdout


def test_weights_are_converted_and_verified(axfold, tmp_path):
    result = axfold("weights verify")
    assert result.exit_code == 2
    assert "There are no parameters in" in result.stderr
    target = tmp_path / "cache" / "params" / "model_3.safetensors"
    result = axfold(f"weights convert synthetic:1 {target} --model model_3")
    assert result.exit_code == 0
    assert re.search(r"model_3, \d+ parameters of [\d,]+ numbers", result.stdout)
    result = axfold("weights verify")
    assert result.exit_code == 0
    assert f"{target}: whole" in result.stdout
    target.write_bytes(target.read_bytes()[:-100])
    result = axfold("weights verify")
    assert result.exit_code == 1
    assert str(target) in result.stdout


def test_weights_that_cannot_be_converted(axfold):
    assert axfold("weights convert none.npz out.safetensors").exit_code == 2
    assert axfold("weights convert synthetic out.npz").exit_code == 2
    assert axfold("weights convert synthetic out.safetensors --model model_9").exit_code == 2


def test_weights_are_downloaded_from_the_mirror(axfold, monkeypatch, tmp_path):
    from axfold.weights.download import Downloaded
    from axfold.weights.registry import ALPHAFOLD

    asked = []

    def download(cache, *, mirror, progress):
        asked.append((cache, mirror))
        progress("download", 1, 2)
        return Downloaded(tmp_path, (), ALPHAFOLD, fetched=len(asked) == 1)

    monkeypatch.setattr("axfold.weights.download.download", download)
    result = axfold("weights download --mirror https://example.org --cache here")
    assert asked == [(Path("here"), "https://example.org")]
    assert f"Downloaded to {tmp_path}" in result.stdout
    assert "CC BY 4.0" in result.stdout
    result = axfold("weights download")
    assert asked[1] == (None, None)
    assert "They are there already" in result.stdout


def test_a_wrong_mirror(axfold):
    result = axfold("weights download --mirror ftp://example.org")
    assert result.exit_code == 2
    assert "must begin with https://" in result.stderr


def test_version_and_help(axfold):
    assert axfold("--version").stdout == f"axfold {__version__}\n"
    for command in ("", "predict", "forward", "doctor", "weights", "weights download"):
        result = axfold(f"{command} --help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout


def test_errors_keep_their_exit_codes(axfold, monkeypatch):
    for error in (AxfoldError("no"), InputError("no")):

        def fail(request, display, error=error):
            raise error

        monkeypatch.setattr("axfold.batch.run", fail)
        result = axfold(PREDICT)
        assert (result.exit_code, result.stderr) == (error.exit_code, "axfold: no\n")


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "axfold", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"axfold {__version__}\n"
