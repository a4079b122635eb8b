"""Runs as a whole: resumed, ended, diverged; what is evaluated and exported of them."""

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import CONFIG

from axfold import cli, config
from axfold.console import Plain
from axfold.errors import AxfoldError, InputError
from axfold.residues import ATOM_INDEX
from axfold.train import checkpoint, log, run
from axfold.train.examples import Examples
from axfold.train.loop import DivergedError
from axfold.train.store import Chain, writing
from axfold.weights.load import load
from axfold.weights.source import find

NAME = "model_5"


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    """A network that trains in moments."""
    monkeypatch.setitem(config.PRESETS, NAME, replace(CONFIG, name=NAME))
    monkeypatch.setattr(run, "CROPS", (16, 32))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    with writing(path) as writer:
        for i in range(6):
            writer.add(chain(i))
    return path


def chain(seed: int) -> Chain:
    """A helix; the last two are held out."""
    rng = np.random.default_rng(seed)
    n = 10 + 3 * seed
    positions, mask = np.zeros((n, 37, 3), np.float32), np.zeros((n, 37), np.float32)
    for name, radius, turn, rise in (("N", 1.6, 0.0, 0.0), ("CA", 2.3, 0.5, 0.9), ("C", 1.7, 1.0, 2.0)):
        angle = 1.745 * np.arange(n) + turn
        place = [radius * np.cos(angle), radius * np.sin(angle), 1.5 * np.arange(n) + rise]
        positions[:, ATOM_INDEX[name]] = np.stack(place, axis=-1)
        mask[:, ATOM_INDEX[name]] = 1
    aatype = rng.integers(0, 20, n).astype(np.uint8)
    return Chain(
        name=f"helix_{seed}",
        aatype=aatype,
        residue_index=np.arange(n, dtype=np.int32),
        positions=positions,
        mask=mask,
        msa=np.stack([aatype, *rng.integers(0, 20, (5, n)).astype(np.uint8)]),
        deletions=np.zeros((6, n), np.uint8),
        split="valid" if seed > 3 else "train",
        resolution=2.0,
        backbone_only=seed % 2 == 1,
    )


def options(store: Path, out: Path, **changes) -> run.Options:
    training = {"crop": 12, "batch": 2, "at_once": 2, "recycles": 1, "warm_up": 4}
    given = {"steps": 3, "device": "cpu", "workers": 0, "validate_every": 0, "precision": "fp32"}
    changed = training | changes.pop("changes", {})
    return run.Options(store=store, out=out, model=NAME, changes=changed, **(given | changes))


class Quiet(Plain):
    """Remembers what it is told."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_leaves_tables_a_curve_and_checkpoints(store, tmp_path):
    display = Quiet()
    path = run.run(options(store, tmp_path, steps=4, validate_every=2), display)
    assert path == tmp_path / "step_000000004.safetensors"
    names = {"best.safetensors", "curve.png", "steps.csv", "validation.csv"}
    assert {p.name for p in tmp_path.iterdir() if "step_" not in p.name} - {"tensorboard"} == names
    steps, validation = log.read(tmp_path / log.STEPS), log.read(tmp_path / log.VALIDATION)
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["samples"] for row in validation] == [4, 8]
    assert all(0 <= row["lddt_ca"] <= 1 and row["chains"] == 2 for row in validation)
    assert all(row["seconds"] > 0 and row["waited"] >= 0 for row in steps)
    best = max(row["lddt_ca"] for row in validation)
    assert checkpoint.about(tmp_path / checkpoint.BEST).score == pytest.approx(best)
    assert "waiting for data" in display.lines[-1]


def test_a_run_goes_on_bit_for_bit(store, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run.run(options(store, whole, steps=4), Quiet())
    run.run(options(store, parts, steps=2), Quiet())
    with (parts / log.STEPS).open("a") as file:  # a killed run may have told of more than it saved
        file.write((parts / log.STEPS).read_text().splitlines()[-1].replace("2,4,", "3,6,", 1) + "\n4,8,0.")
    display = Quiet()
    run.run(options(store, parts, steps=4), display)
    assert any("going on from" in line and "step 2" in line for line in display.lines)
    name = "step_000000004.safetensors"
    assert (whole / name).read_bytes() == (parts / name).read_bytes()
    theirs, ours = (log.read(folder / log.STEPS) for folder in (whole, parts))
    for one, other in zip(theirs, ours, strict=True):
        timed = "seconds", "waited"
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }
    run.run(options(store, parts, steps=4), Quiet())  # there is nothing left to do
    assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_run_of_another_configuration_is_refused(store, tmp_path):
    run.run(options(store, tmp_path, steps=1), Quiet())
    with pytest.raises(InputError, match=r"this run has training\.learning_rate = 0\.001, and 0\.01 is"):
        run.run(options(store, tmp_path, changes={"learning_rate": 0.01}), Quiet())
    with pytest.raises(InputError, match="this run has seed = 0, and 3 is asked for"):
        run.run(options(store, tmp_path, seed=3), Quiet())


def test_a_process_that_is_asked_to_end_saves_first(store, tmp_path, monkeypatch):
    class Asking(Examples):
        def __getitem__(self, i):
            if i == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(i)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "Examples", Asking)
    path = run.run(options(store, tmp_path, steps=1000), Quiet())
    assert 1 <= checkpoint.about(path).step < 20
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_ends_after_its_minutes(store, tmp_path):
    path = run.run(options(store, tmp_path, steps=1000, minutes=0.02, validate_every=500), Quiet())
    step = checkpoint.about(path).step
    assert 1 <= step < 100
    assert log.read(tmp_path / log.VALIDATION)[-1]["step"] == step


def test_a_run_that_diverges_names_the_tensor_and_keeps_the_last_state(store, tmp_path, monkeypatch):
    path = run.run(options(store, tmp_path, steps=1), Quiet())
    before = path.read_bytes()

    class Bad(Examples):
        def __getitem__(self, i):
            example = super().__getitem__(i)
            if i == 5:
                example.passes[-1]["msa_feat"][0, 0, 0] = torch.inf
            return example

    monkeypatch.setattr(run, "Examples", Bad)
    said = (
        r"Step 3: the input passes\.\d\.msa_feat holds infinity, of the samples 4, 5\. .*step_000000001\.saf"
    )
    with pytest.raises(DivergedError, match=said):
        run.run(options(store, tmp_path, steps=9), Quiet())
    assert checkpoint.saved(tmp_path) == [path]
    assert path.read_bytes() == before


def test_a_full_disk_ends_a_run_with_what_was_saved(store, tmp_path, monkeypatch):
    path = run.run(options(store, tmp_path, steps=1), Quiet())

    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AxfoldError, match="the disk is full"):
            run.run(options(store, tmp_path, steps=2), Quiet())
    assert checkpoint.saved(tmp_path) == [path]
    assert checkpoint.about(run.run(options(store, tmp_path, steps=2), Quiet())).step == 2


def test_training_can_begin_with_parameters(store, tmp_path):
    path = run.run(
        options(store, tmp_path, steps=1, start="synthetic:3", changes={"learning_rate": 1e-12}), Quiet()
    )
    wanted = run.evaluator(config.PRESETS[NAME], "fp32", torch.device("cpu"))
    load(wanted, config.PRESETS[NAME], find(NAME, "synthetic:3"))
    for name, value in checkpoint.averaged(path, [name for name, _ in wanted.named_parameters()]):
        torch.testing.assert_close(value, wanted.get_parameter(name), rtol=0, atol=1e-6)


def test_exported_parameters_are_the_average(store, tmp_path):
    path = run.run(options(store, tmp_path / "run", steps=2), Quiet())
    out = tmp_path / "small.safetensors"
    text = run.export(tmp_path / "run", out)
    assert text.startswith(f"{out}: {NAME}, step 2")
    network = run.evaluator(config.PRESETS[NAME], "fp32", torch.device("cpu"))
    load(network, config.PRESETS[NAME], find(NAME, out))
    for name, value in checkpoint.averaged(path, [name for name, _ in network.named_parameters()]):
        assert value.equal(network.get_parameter(name)), name
    halves = tmp_path / "half.safetensors"
    run.export(path, halves, half=True)
    assert halves.stat().st_size < 0.6 * out.stat().st_size
    load(network, config.PRESETS[NAME], find(NAME, halves))
    for name, value in checkpoint.averaged(path, [name for name, _ in network.named_parameters()]):
        assert value.half().float().equal(network.get_parameter(name)), name
    with pytest.raises(InputError, match="must end in"):
        run.export(path, tmp_path / "small.npz")
    with pytest.raises(InputError, match="there is no checkpoint"):
        run.export(tmp_path, out)
    with pytest.raises(InputError, match="there is no checkpoint"):
        run.export(out, tmp_path / "again.safetensors")


def test_a_checkpoint_and_its_exported_parameters_score_alike(store, tmp_path, capsys):
    run.run(options(store, tmp_path / "run", steps=1, validate_every=1), Quiet())
    parameters = tmp_path / "p.safetensors"
    run.export(tmp_path / "run", parameters)
    found = []
    for name, model in ((tmp_path / "run", None), (parameters, NAME)):
        out = tmp_path / "scores.json"
        arguments = ["train", "evaluate", str(name), str(store), "--out", str(out), "--device", "cpu"]
        arguments += ["--workers", "0", "--precision", "fp32"]
        with pytest.raises(SystemExit) as end:
            cli.app([*arguments, *(["--model", model] if model else [])])
        assert end.value.code == 0
        found.append(json.loads(out.read_text()))
    assert found[0]["chains"] == found[1]["chains"]
    assert set(found[0]["chains"]) == {"helix_4", "helix_5"}
    assert found[0]["means"]["all"]["chains"] == 2
    assert found[0]["means"]["backbone"]["chains"] == 1
    text = capsys.readouterr().out
    assert "lddt_ca" in text
    (row,) = log.read(tmp_path / "run" / log.VALIDATION)
    assert found[0]["means"]["all"]["lddt_ca"] == pytest.approx(row["lddt_ca"], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"changes": {"batch": 3}}, "--batch 3 is no multiple of 2: 2 samples at once"),
        ({"changes": {"learning_rate": -1.0}}, r"--learning-rate -1\.0: give more than 0"),
        ({"stage": "late"}, "--stage late: choose one of initial, fine_tuning"),
        ({"precision": "fp16"}, "--precision fp16: choose one of auto, fp32, tf32, bf16"),
        ({"start": "nowhere.npz"}, "nowhere.npz: there is no such file"),
        ({"store": Path("nowhere")}, "there is no training store here"),
    ],
)
def test_wrong_options_are_refused(store, tmp_path, changes, said):
    given = {"store": store} | changes
    with pytest.raises(AxfoldError, match=said):
        run.run(options(given.pop("store"), tmp_path, **given), Quiet())


def test_a_checkpoint_is_told_from_parameters(store, tmp_path):
    arguments = {"split": "valid", "out": None, "device": "cpu", "precision": "fp32"}
    rest = {"processes": 0, "chains": 1, "display": Quiet()}
    other = tmp_path / "other.npz"
    other.write_bytes(b"")
    with pytest.raises(InputError, match="this is no checkpoint; say with --model"):
        run.evaluate(str(other), store, model=None, **arguments, **rest)
    with pytest.raises(InputError, match="has no chains of the split none"):
        run.evaluate("synthetic", store, model=NAME, **(arguments | {"split": "none"}), **rest)


def test_commands_reach_their_options(store, tmp_path):
    arguments = f"train run {store} --out {tmp_path} --preset {NAME} --steps 1 --batch 2 --at-once 1 --crop 8"
    more = (
        "--max-msa 3:4 --recycles 0 --workers 0 --device cpu --precision fp32 --validate-every 0 --recompute"
    )
    with pytest.raises(SystemExit) as end:
        cli.app(f"{arguments} {more}".split())
    assert end.value.code == 0
    found = checkpoint.about(checkpoint.saved(tmp_path)[-1]).configuration["training"]
    assert (found["crop"], found["msa_clusters"], found["extra_msa"], found["at_once"]) == (8, 3, 4, 1)
