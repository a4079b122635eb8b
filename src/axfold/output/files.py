"""Files that are whole or not there: written under a temporary name, then renamed."""

import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from axfold.errors import AxfoldError, InputError

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")
"""Names of files under way; one that is found later was left by a run that was killed."""


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which becomes `path` when the block ends well and leaves nothing when it doesn't.

    Raises AxfoldError when the disk is full or fails, InputError when the folder can't be written to.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise failure(path, error) from error
    finally:
        with suppress(OSError):  # gone by now, or never made
            temporary.unlink()


def read(path: Path) -> bytes:
    """What is in a file that was found before. Raises AxfoldError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AxfoldError(f"{path}: can't be read ({error.strerror}).") from error


def write(path: Path, content: bytes) -> None:
    """Write a whole file; errors as in `writing`."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix line ends; errors as in `writing`."""
    write(path, text.encode())


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON; errors as in `writing`."""
    write_text(path, json.dumps(content, indent=4) + "\n")


def rename(source: Path, target: Path) -> None:
    """Rename within a folder, over what may be there; errors as in `writing`."""
    try:
        os.replace(source, target)
    except OSError as error:
        raise failure(target, error) from error


def remove(path: Path) -> None:
    """Remove a file, if it is there; errors as in `writing`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise failure(path, error) from error


def make_folder(folder: Path) -> None:
    """Make `folder` with its parents and see that files can be written there.

    Raises InputError if they can't, also because the disk is full: nothing has been done yet.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(str(failure(folder, error))) from error


def failure(path: Path, error: OSError, *, again: str = "it continues where it stopped") -> AxfoldError:
    """What to tell the user when `path` could not be written, and what the same command does `again`."""
    # NumPy reports fewer bytes written than asked for, without a number
    if error.errno in (errno.ENOSPC, errno.EDQUOT, None):
        return AxfoldError(
            f"{path}: the disk is full. Free some space and run the same command again; {again}."
        )
    reason = error.strerror or str(error)
    if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)) or (
        error.errno in (errno.EROFS, errno.ENAMETOOLONG)
    ):
        return InputError(f"{path}: can't be written ({reason}). Choose another folder with --out.")
    return AxfoldError(f"{path}: can't be written ({reason}).")
