"""Alignments where users and search programs leave them: files, and the folders of searches."""

from collections.abc import Mapping
from pathlib import Path

from axfold.data import files
from axfold.data.formats import a3m, stockholm
from axfold.data.query import Alignment
from axfold.data.sequence import file_name
from axfold.errors import InputError

FORMATS = {"a3m": a3m.parse, "stockholm": stockholm.parse}
"""Formats (`files.SUFFIXES`) that hold an alignment -> how they are read."""

SEARCHED = {
    "uniref90_hits.sto": 10_000,
    "uniref90_hits.a3m": 10_000,
    "bfd_uniref_hits.a3m": None,
    "bfd_uniclust_hits.a3m": None,
    "small_bfd_hits.sto": None,
    "mgnify_hits.sto": 501,
    "mgnify_hits.a3m": 501,
    "uniclust30.a3m": None,
}
"""Files that a search leaves, in the order AlphaFold stacks them -> rows it takes at most. Names of OpenFold, FastFold
and OpenProteinSet too."""
_TEMPLATE_HITS = ("pdb_hits.hhr", "hhsearch_output.hhr", "pdb70_hits.hhr")


def searched(folder: Path) -> dict[Path, int | None]:
    """Alignments of a search in `folder`, or in msas/ or a3m/ there, and the rows to take of each (None: all).

    In the order in which they are stacked; empty if it isn't the folder of a search.
    """
    for place in (folder, folder / "msas", folder / "a3m"):
        known = {path.name.removesuffix(".gz"): path for path in reversed(files.visible(place))}
        if found := {known[name]: rows for name, rows in SEARCHED.items() if name in known}:
            return found
    return {}


def template_hits(path: Path) -> tuple[Path, ...]:
    """The hhr that the search in `path` left; nothing if `path` is a file."""
    candidates = (place / name for place in (path, path / "msas", path / "hhr") for name in _TEMPLATE_HITS)
    return tuple(candidate for candidate in candidates if candidate.is_file())[:1]


def read(path: Path) -> tuple[tuple[Path, Alignment], ...]:
    """The alignment in a file, or those of a search's folder with their files. None is without rows.

    A search that found nothing leaves an empty file, which is skipped. Raises InputError.
    """
    if not files.is_folder(path):
        return ((path, parse(path, files.read_text(path))),)
    found = []
    for file, rows in searched(path).items():
        if file.stat().st_size:
            whole = parse(file, files.read_text(file))
            top = Alignment(whole.sequences[:rows], whole.deletions[:rows], whole.descriptions[:rows])
            found.append((file, top))
    if not found:
        raise InputError(f"{path}: every alignment in the folder is empty.")
    return tuple(found)


def parse(path: Path, text: str) -> Alignment:
    """The alignment in the `text` of the file `path`. Raises InputError, as for one without rows."""
    kind = files.kind(path, text)
    if kind not in FORMATS:
        raise InputError(f"{path}: this is no alignment; it would be a3m (.a3m) or Stockholm (.sto).")
    alignment = FORMATS[kind](text, str(path))
    if not alignment.sequences:
        raise InputError(f"{path}: the alignment holds no sequence.")
    return alignment


def named(folder: Path) -> dict[str, Path]:
    """Name -> alignment, for the files and the folders of searches in `folder`, sorted.

    Raises InputError for two of one name.
    """
    found: dict[str, Path] = {}
    for path in files.visible(folder):
        is_alignment = (
            searched(path) if files.is_folder(path) else files.SUFFIXES.get(files.suffix(path)) in FORMATS
        )
        if not is_alignment:
            continue
        name = path.name if files.is_folder(path) else files.stem(path)
        if name in found:
            raise InputError(f"{path}: {found[name].name} is an alignment of {name} too; keep one of them.")
        found[name] = path
    return found


def match(names: tuple[str, ...], alignments: Mapping[str, Path]) -> Path | None:
    """The alignment of the protein that goes by any of `names`, the first that fits; `alignments` as `named`."""
    by_file_name = {file_name(name): path for name, path in alignments.items()}
    return next((by_file_name[key] for key in map(file_name, names) if key in by_file_name), None)
