"""Checkpoints: a run that was killed goes on bit for bit, and what is on disk survives."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from samples import CONFIG, TRAINING
from test_loop import run, trainer

from axfold.errors import AxfoldError, InputError
from axfold.train import checkpoint
from axfold.train.checkpoint import BEST, configuration, restore, save, saved

WHAT = configuration(CONFIG, TRAINING, seed=0)


def state(made) -> list[torch.Tensor]:
    optimizer = made.optimizer
    return [made.masters.values, optimizer.average, *optimizer.moments]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, precision):
    whole = trainer(batch=2, precision=precision)
    records = run(whole, 6)
    killed = trainer(batch=2, precision=precision)
    run(killed, 3)
    path = save(tmp_path, killed, WHAT, score=0.25)
    torch.manual_seed(7)  # another process has another past
    resumed = trainer(seed=5, batch=2, precision=precision)  # and begins with other parameters
    resumed.seed = 0
    about = restore(path, resumed, WHAT)
    assert (about.step, about.score, resumed.steps) == (3, 0.25, 3)
    assert run(resumed, 3) == records[3:]
    for ours, theirs in zip(state(resumed), state(whole), strict=True):
        assert ours.equal(theirs)
    for ours, theirs in zip(resumed.network.parameters(), whole.network.parameters(), strict=True):
        assert ours.equal(theirs)


def test_it_is_a_safetensors_file(tmp_path):
    made = trainer()
    path = save(tmp_path, made, WHAT)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["configuration"]) == WHAT
        names = set(file.keys())
        for name, p in made.network.named_parameters():
            assert file.get_tensor(f"parameters/{name}").equal(p)
            assert file.get_tensor(f"second_moment/{name}").shape == p.shape
    assert len(names) == 4 * len(made.masters.places)
    found = checkpoint.as_numpy(path, list(made.masters.places))
    assert all((found[name] == p.detach().numpy()).all() for name, p in made.network.named_parameters())


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    made = trainer()
    for step, best in ((10, False), (20, True), (30, False), (40, False)):
        made.optimizer.steps = step
        save(tmp_path, made, WHAT, score=step / 100, best=best, keep=2)
    assert [checkpoint.about(path).step for path in saved(tmp_path)] == [30, 40]
    assert checkpoint.about(tmp_path / BEST).step == 20
    made.optimizer.steps = 50
    save(tmp_path, made, WHAT, score=0.5, best=True, keep=1)
    assert [checkpoint.about(path).step for path in saved(tmp_path)] == [50]
    assert checkpoint.about(tmp_path / BEST).step == 50
    assert len(list(tmp_path.iterdir())) == 2


def test_the_best_is_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = save(tmp_path, trainer(), WHAT, best=True)
    assert (tmp_path / BEST).read_bytes() == path.read_bytes()


def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    made = trainer()
    first = save(tmp_path, made, WHAT, keep=1, best=True)
    before = first.read_bytes()
    made.optimizer.steps = 10
    fsync = os.fsync

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AxfoldError, match=r"step_000000010\.safetensors: the disk is full"):
        save(tmp_path, made, WHAT, keep=1, best=True)
    assert {path.name for path in tmp_path.iterdir()} == {first.name, BEST}
    assert first.read_bytes() == before
    monkeypatch.setattr(os, "fsync", fsync)
    restore(first, trainer(), WHAT)


def test_what_a_killed_run_left_goes(tmp_path):
    stray = tmp_path / ".step_000000003.safetensors.0123abcd.tmp"
    stray.write_bytes(b"half")
    save(tmp_path, trainer(), WHAT)
    assert not stray.exists()


def test_compact_moments_take_half(tmp_path):
    made = trainer()
    run(made, 1)
    whole = save(tmp_path / "whole", made, WHAT) if (tmp_path / "whole").mkdir() is None else None
    (tmp_path / "compact").mkdir()
    small = save(tmp_path / "compact", made, WHAT, compact=True)
    numbers = made.masters.parameters
    assert whole is not None
    saving = whole.stat().st_size - small.stat().st_size
    assert abs(saving - 4 * numbers) < 0.05 * numbers + 100 * len(made.masters.places)
    other = trainer(seed=1)
    restore(small, other, WHAT)
    assert other.masters.values.equal(made.masters.values)
    assert other.optimizer.average.equal(made.optimizer.average)
    for ours, theirs in zip(other.optimizer.moments, made.optimizer.moments, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-8, atol=0)


def test_another_configuration_is_refused(tmp_path):
    path = save(tmp_path, trainer(), WHAT)
    other = configuration(CONFIG, replace(TRAINING, crop=16), seed=0)
    with pytest.raises(InputError, match=r"this run has training\.crop = 12, and 16 is asked for"):
        restore(path, trainer(), other)
    with pytest.raises(InputError, match="this run has seed = 0, and 1 is asked for"):
        restore(path, trainer(), configuration(CONFIG, TRAINING, seed=1))
    with pytest.raises(InputError, match="this run has precision = None, and bf16 is asked for"):
        restore(path, trainer(), configuration(CONFIG, TRAINING, seed=0, precision="bf16"))


def test_what_is_no_checkpoint_is_refused(tmp_path):
    good = save(tmp_path, trainer(), WHAT)
    content = good.read_bytes()
    bad = tmp_path / "bad.safetensors"
    for damaged in (b"", content[:100], content[: len(content) // 2], b"\0" * 1000):
        bad.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or incomplete"):
            checkpoint.about(bad)
    with pytest.raises(InputError, match="there is no such checkpoint"):
        checkpoint.about(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, bad)
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        checkpoint.about(bad)
    save_file({"x": torch.zeros(1)}, bad, {"format": checkpoint.FORMAT, "format_version": "99"})
    with pytest.raises(InputError, match="has format version 99, and 1 is read"):
        checkpoint.about(bad)
    save_file({"x": torch.zeros(1)}, bad, {"format": checkpoint.FORMAT, "format_version": "1", "step": "x"})
    with pytest.raises(InputError, match="damaged"):
        checkpoint.about(bad)
    with safe_open(good, framework="pt") as file:
        metadata = file.metadata()
    save_file({"x": torch.zeros(1)}, bad, metadata)
    with pytest.raises(InputError, match=r"average/\S+ is missing"):
        restore(bad, trainer(), WHAT)
