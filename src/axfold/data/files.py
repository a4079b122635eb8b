"""Files of sequences and alignments: their text, and what they are."""

import gzip
import zlib
from pathlib import Path

from axfold.errors import InputError

SUFFIXES = {
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fas"), "fasta"),
    ".a3m": "a3m",
    **dict.fromkeys((".sto", ".stk", ".stockholm"), "stockholm"),
    ".csv": "csv",
}
"""Suffix -> format of the sequences and alignments that are read; .gz may follow."""


def read_text(path: Path) -> str:
    """The text of a file, decompressed if it ends in .gz. Raises InputError unless it is UTF-8 and not empty."""
    if is_folder(path):
        raise InputError(f"{path}: this is a folder, and a file is needed here.")
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: the compressed file is damaged ({error}).") from error
    except (OSError, ValueError) as error:
        if str(path).isalpha():
            reason = "there is no such file; write a sequence into a FASTA file, behind a line '>name'"
        else:
            missing = isinstance(error, FileNotFoundError)
            reason = "there is no such file" if missing else f"the file can't be read ({error})"
        raise InputError(f"{path}: {reason}.") from error
    if not data.strip():
        raise InputError(f"{path}: the file is empty.")
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: the file holds binary data, not UTF-8 text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8 text; "
            "if it is no text, it is the wrong file."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether there is a folder; paths too long or not for us to see are none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, without hidden files; nothing if it isn't one."""
    if not is_folder(folder):
        return []
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: the folder can't be read ({error}).") from error


def suffix(path: Path) -> str:
    """Lower case, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def stem(path: Path) -> str:
    """The file's name without `suffix` and .gz."""
    return Path(path.name.removesuffix(".gz")).stem


def kind(path: Path, text: str) -> str:
    """Format of a file by its suffix, or by how its text starts where that says nothing. Raises InputError."""
    if suffix(path) in SUFFIXES:
        return SUFFIXES[suffix(path)]
    for start, format_ in (("# STOCKHOLM", "stockholm"), ("#A3M#", "a3m"), (">", "fasta")):
        if text.lstrip().startswith(start):
            return format_
    raise InputError(
        f"{path}: this is none of FASTA, a3m, Stockholm and CSV. A FASTA file has a line '>name' ahead of each "
        f"sequence; known suffixes are {', '.join(SUFFIXES)}."
    )
