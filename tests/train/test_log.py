"""The tables of a run."""

import errno
import sys
from types import ModuleType

import pytest

from axfold.errors import AxfoldError
from axfold.train import log
from axfold.train.log import CURVE, STEPS, VALIDATION, Log, Table, read


def test_steps_that_are_done_again_are_cut_off(tmp_path):
    path = tmp_path / STEPS
    table = Table(path, 0)
    for step in range(1, 6):
        table.add({"step": float(step), "loss": 0.1 * step})
    table.close()
    path.write_text(path.read_text() + "6,0.")  # as a killed run may leave it
    assert [row["step"] for row in read(path)] == [1, 2, 3, 4, 5, 6]
    again = Table(path, 3)
    again.add({"loss": 9.0, "step": 4.0})
    again.close()
    assert path.read_text() == "step,loss\n1,0.1\n2,0.2\n3,0.3\n4,9\n"
    path.write_text("step,loss\n1,0.5\n2")
    assert read(path) == [{"step": 1.0, "loss": 0.5}]


def test_a_validation_draws_the_curve(tmp_path):
    told = Log(tmp_path, 0)
    for step in range(1, 400):
        told.step(step, {"samples": 4.0 * step, "loss": 100 / step})
    told.validated(399, {"samples": 1596.0, "lddt_ca": 0.5, "gdt_ts": 0.4, "tm": 0.3})
    told.close()
    assert len(read(tmp_path / STEPS)) == 399
    assert len(read(tmp_path / VALIDATION)) == 1
    assert (tmp_path / CURVE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    empty = log.curve("nothing yet", [], [])
    assert empty[:8] == b"\x89PNG\r\n\x1a\n"


def test_tensorboard_is_told_where_it_is_installed(tmp_path, monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            told.append(purge_step)

        def add_scalar(self, name, value, step):
            told.append((name, value, step))

        def flush(self):
            pass

        close = flush

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    writer = Log(tmp_path, 6)
    writer.step(7, {"samples": 28.0, "loss": 1.5})
    writer.close()
    assert told == [7, ("train/samples", 28.0, 7), ("train/loss", 1.5, 7)]


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    table = Table(tmp_path / STEPS, 0)

    class Full:
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(table, "_file", Full())
        with pytest.raises(AxfoldError, match=r"steps\.csv: the disk is full"):
            table.flush()
    table.close()
