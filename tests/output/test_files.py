import errno
import os
import stat

import numpy as np
import pytest

from axfold.errors import AxfoldError, InputError
from axfold.output import files


def fails_with(number: int):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_writes_a_file_that_others_may_read(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    before = os.umask(0o022)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~before
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_is_written_in_part_is_never_seen(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def killed_half_way():
        with files.writing(path) as file:
            file.write(b"new, but not yet wh")
            assert path.read_text() == "old"
            (half,) = (name for name in os.listdir(tmp_path) if name != "a.txt")
            assert files.TEMPORARY.fullmatch(half)["name"] == "a.txt"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(os, call, fails_with(errno.ENOSPC))
    with pytest.raises(
        AxfoldError, match=r"a\.txt: the disk is full\. .*run the same command again"
    ) as caught:
        files.write_text(path, "new")
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_full_disk_as_numpy_reports_it(tmp_path, monkeypatch):
    def short_write(file, array):
        raise OSError("20 requested and 8 written")

    monkeypatch.setattr(np, "save", short_write)
    with pytest.raises(AxfoldError, match="disk is full"), files.writing(tmp_path / "a.npy") as file:
        np.save(file, np.zeros(20))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_folder_that_cannot_be_written_to(tmp_path, monkeypatch, number):
    monkeypatch.setattr("tempfile.TemporaryFile", fails_with(number))
    with pytest.raises(InputError, match=rf"{tmp_path}.*can't be written.*--out"):
        files.make_folder(tmp_path)


def test_folder_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"can't be written.*--out"):
            files.make_folder(folder)
    with pytest.raises(InputError, match="can't be written"):
        files.write_text(tmp_path / "file" / "a.txt", "text")


def test_other_failures_name_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", fails_with(errno.EIO))
    with pytest.raises(AxfoldError, match=r"b\.txt: can't be written \(Input/output error\)"):
        files.rename(tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(AxfoldError, match="can't be read"):
        files.read(tmp_path / "nothing")
