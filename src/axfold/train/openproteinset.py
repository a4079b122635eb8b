"""OpenProteinSet as it is downloaded: a folder of alignments for each chain, and which chains share one.

`<root>/<chain>/` holds the files, or a3m/ and hhr/ there do, as in the archive itself; OpenFold's databases have them
one behind the other in a few files, with their places in an index.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from axfold.data import alignments, files
from axfold.data.formats.lines import lines
from axfold.errors import InputError


@dataclass(frozen=True)
class Part:
    """An alignment within a database of OpenFold."""

    name: str  # of the file that it was
    database: Path
    start: int  # bytes
    size: int

    def read(self) -> str:
        """Its text. Raises InputError where the database lacks it."""
        try:
            with open(self.database, "rb") as file:
                file.seek(self.start)
                content = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self.database}: can't be read ({error.strerror}).") from error
        if len(content) < self.size:
            raise InputError(f"{self.database}: the database ends before {self.name}, which its index has.")
        return content.decode("utf-8", "replace")


Place = Path | tuple[Part, ...]
"""Of a chain's alignments: a file, the folder of a search, or parts of a database."""


def find(root: Path) -> dict[str, Place]:
    """Chain -> its alignments, of a folder with files NAME.a3m (or .sto, .gz), folders of searches or both, at any
    depth, or of the index of a database. Raises InputError for two of one name, and where there are none."""
    found = _database(root) if root.suffix == ".index" else {}
    if files.is_folder(root):
        _collect(root, found)
    if not found:
        raise InputError(
            f"{root}: there are no alignments here; they would be NAME.a3m, or folders of a search."
        )
    return found


def _collect(folder: Path, found: dict[str, Place]) -> None:
    for path in files.visible(folder):
        if files.is_folder(path):
            if not alignments.searched(path):
                _collect(path, found)
                continue
            name = path.name
        elif files.SUFFIXES.get(files.suffix(path)) in alignments.FORMATS:
            name = files.stem(path)
        else:
            continue
        if name in found:
            raise InputError(f"{path}: {found[name]} is an alignment of {name} too; keep one of them.")
        found[name] = path


def _database(index: Path) -> dict[str, Place]:
    try:
        content = json.loads(index.read_bytes())
        return {
            str(chain): tuple(
                Part(str(name), index.parent / entry["db"], int(start), int(size))
                for name, start, size in entry["files"]
                if name in alignments.SEARCHED
            )
            for chain, entry in content.items()
        }
    except OSError as error:
        raise InputError(f"{index}: can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: this is not the index of a database of alignments.") from error


def groups(path: Path) -> dict[str, tuple[str, ...]]:
    """Chain -> all chains of its line: of files of duplicates and of clusters, whose lines are names with spaces."""
    found: dict[str, tuple[str, ...]] = {}
    for line in lines(files.read_text(path)):
        names = tuple(line.split())
        for name in names:
            found.setdefault(name, names)
    return found


def representative(
    name: str, places: Container[str], duplicates: Mapping[str, tuple[str, ...]]
) -> str | None:
    """The chain whose alignment is that of `name`: itself, or one with the same sequence."""
    return next((one for one in (name, *duplicates.get(name, ())) if one in places), None)
