"""The training store: chains with known structures and their alignments, in flat files that are mapped into memory.

A store is a folder. `store.json` says its format, version and sizes, `chains.csv` has one row a chain, and each other
file is one array without a header, in which the chains stand one after the other. Nothing is compressed or pickled, so
that any number of processes read the same pages. It is written under another name and renamed when it is whole.

Atoms are differences from the atom before, of one residue after the other in the order of `residues.ATOM_TYPES`: in
hundredths of an Å they fit 16 bits at any distance that neighbours have, and compress well where a store is shipped.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO, get_type_hints

import numpy as np

from axfold import residues
from axfold.data.templates import Template
from axfold.errors import InputError
from axfold.output.files import failure, write_text

FORMAT = "axfold training store"
VERSION = 1
EXPERIMENTAL = "experimental"
"""The set of structures from experiments; others are of predictions (self-distillation, supplement 1.3)."""
UNIT = 100  # of coordinates, in an Å
LONGEST_STEP = 32767 / UNIT
"""Å from an atom to the next along an axis, at most."""

_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {  # name -> type and the shape of one item
    "residue_types": ("u1", ()),
    "residue_numbers": ("<i4", ()),
    "atoms_seen": ("<u8", ()),  # by residue, one bit for each of the 37 atoms
    "atoms": ("<i2", (3,)),
    "alignments": ("u1", ()),
    "deletion_places": ("<u4", ()),  # in the chain's alignment, flat
    "deletion_counts": ("u1", ()),
    "profiles": ("u1", (20,)),
    "template_types": ("u1", ()),
    "template_atoms_seen": ("<u8", ()),
    "template_atoms": ("<i2", (3,)),
    "template_scores": ("<f4", ()),
}
_BITS = np.left_shift(np.uint64(1), np.arange(37, dtype=np.uint64))


@dataclass(frozen=True)
class Row:
    """A chain in `chains.csv`. `first_*` are places in the arrays, counted in items."""

    name: str
    set: str  # EXPERIMENTAL, or the name of a set of predictions
    split: str  # train, valid, ...
    cluster: str  # of similar sequences; empty where the chain is one of its own
    entry: str  # what chains of one complex share; the PDB code, as a rule
    resolution: float  # Å; 0 where there is none
    released: str  # YYYY-MM-DD, empty where it isn't known
    backbone_only: bool  # side chains were never known, rather than not seen
    commonest: float  # share of the most frequent residue type; supplement 1.2.5
    length: int
    first_residue: int
    atoms: int
    first_atom: int
    rows: int  # of the alignment, the chain's own included; 0 where there is none
    first_letter: int
    deletions: int
    first_deletion: int
    first_profile: int  # -1 where there is none
    templates: int
    first_template: int
    first_template_residue: int
    template_atoms: int
    first_template_atom: int
    checksum: int  # CRC-32 of the chain's part of all arrays, in their order


@dataclass(frozen=True, eq=False, kw_only=True)
class Chain:
    """A chain with what is known of it; N residues, S rows.

    aatype: (N,) uint8 of residues.RESTYPES_WITH_X; residue_index: (N,) int32, from 0, jumps at breaks
    positions: (N, 37, 3) float32, Å, from the first atom; mask: (N, 37) float32, 1 where the atom was seen
    msa: (S, N) uint8 of residues.MSA_INDEX, the chain first, each row once; deletions: (S, N) uint8, at most 255
    profile: (N, 20) uint8 shares of the residue types of residues.RESTYPES out of 255, or None
    """

    name: str
    aatype: np.ndarray
    residue_index: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    msa: np.ndarray
    deletions: np.ndarray
    profile: np.ndarray | None = None
    templates: tuple[Template, ...] = ()
    set: str = EXPERIMENTAL
    split: str = "train"
    cluster: str = ""
    entry: str = ""
    resolution: float = 0.0
    released: str = ""
    backbone_only: bool = False

    @property
    def sequence(self) -> str:
        return "".join(residues.RESTYPES_WITH_X[index] for index in self.aatype)


class Store:
    """A store on disk, opened: `store[i]` is its chain i, `store.rows[i]` what the table says of it.

    The table is checked when it is opened, a chain when it is first read. Raises InputError where the store is damaged,
    cut or of another version. Processes that get a copy open the files for themselves.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows, sizes = _read_table(path)
        self._arrays = {name: _mapped(path / f"{name}.bin", name, size) for name, size in sizes.items()}
        self._checked: set[int] = set()
        self.places = {row.name: place for place, row in enumerate(self.rows)}

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.path,)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Chain:
        row = self.rows[place]
        parts = self._parts(row)
        if place not in self._checked:
            if _checksum(parts.values()) != row.checksum:
                raise InputError(
                    f"{self.path}: the data of {row.name} are damaged (their checksum is another). Prepare the store "
                    "again, or copy it again."
                )
            self._checked.add(place)
        shape = (row.rows, row.length)
        deletions = np.zeros(shape, np.uint8)
        deletions.reshape(-1)[parts["deletion_places"]] = parts["deletion_counts"]
        positions, mask = _unpack_atoms(parts["atoms_seen"], parts["atoms"])
        return Chain(
            name=row.name,
            aatype=parts["residue_types"],
            residue_index=parts["residue_numbers"],
            positions=positions,
            mask=mask,
            msa=parts["alignments"].reshape(shape),
            deletions=deletions,
            profile=parts["profiles"] if row.first_profile >= 0 else None,
            templates=self._templates(row, parts) if row.templates else (),
            **{name: getattr(row, name) for name in _COPIED},
        )

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Read every chain. Raises InputError about the first damaged one."""
        for place in range(len(self)):
            self[place]
            progress(place + 1)

    def _parts(self, row: Row) -> dict[str, np.ndarray]:
        """The chain's part of every array."""
        return {
            name: self._arrays[name][first : first + count] for name, (first, count) in _extents(row).items()
        }

    def _templates(self, row: Row, parts: dict[str, np.ndarray]) -> tuple[Template, ...]:
        types = parts["template_types"].reshape(row.templates, row.length)
        positions, mask = _unpack_atoms(parts["template_atoms_seen"], parts["template_atoms"])
        shape = (row.templates, row.length, 37)
        return tuple(
            Template(f"{row.name}-{i}", *arrays)
            for i, arrays in enumerate(
                zip(
                    types,
                    positions.reshape(*shape, 3),
                    mask.reshape(shape),
                    map(float, parts["template_scores"]),
                    strict=True,
                )
            )
        )


_TYPES = get_type_hints(Row)
_COPIED = ("set", "split", "cluster", "entry", "resolution", "released", "backbone_only")


def _extents(row: Row) -> dict[str, tuple[int, int]]:
    """Array -> first item of the chain, and how many it has."""
    template_residues = (row.first_template_residue, row.templates * row.length)
    return {
        "residue_types": (row.first_residue, row.length),
        "residue_numbers": (row.first_residue, row.length),
        "atoms_seen": (row.first_residue, row.length),
        "atoms": (row.first_atom, row.atoms),
        "alignments": (row.first_letter, row.rows * row.length),
        "deletion_places": (row.first_deletion, row.deletions),
        "deletion_counts": (row.first_deletion, row.deletions),
        "profiles": (max(row.first_profile, 0), row.length if row.first_profile >= 0 else 0),
        "template_types": template_residues,
        "template_atoms_seen": template_residues,
        "template_atoms": (row.first_template_atom, row.template_atoms),
        "template_scores": (row.first_template, row.templates),
    }


def _read_table(path: Path) -> tuple[tuple[Row, ...], dict[str, int]]:
    """The rows of the table, and the number of items of each array."""
    try:
        header = json.loads((path / "store.json").read_bytes())
        if header["format"] != FORMAT:
            raise ValueError
        version, chains = header["version"], header["chains"]
        sizes = {str(name): int(size) for name, size in header["items"].items()}
        if version == VERSION and set(sizes) != set(_ARRAYS):
            raise ValueError
        checksum = header["checksum"]
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no training store here. `axfold train prepare` makes one."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: the training store can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path / 'store.json'}: this is not the head of a training store.") from error
    if version != VERSION:
        raise InputError(
            f"{path}: the store has version {version}, and this axfold reads version {VERSION}. Prepare it again."
        )
    try:
        table = (path / "chains.csv").read_bytes()
    except OSError as error:
        raise InputError(
            f"{path / 'chains.csv'}: the store's table can't be read ({error.strerror})."
        ) from error
    if zlib.crc32(table) != checksum:
        raise InputError(
            f"{path / 'chains.csv'}: the store's table is damaged or cut. Prepare the store again."
        )
    lines = csv.DictReader(io.StringIO(table.decode(), newline=""))
    rows = tuple(
        Row(**{name: _PARSED[kind](line[name]) for name, kind in _TYPES.items()})  # type: ignore[operator]
        for line in lines
    )
    if len(rows) != chains:
        raise InputError(f"{path}: the store's table has {len(rows)} chains in place of {chains}.")
    return rows, sizes


_PARSED = {str: str, int: int, float: float, bool: lambda text: text == "True"}


def _mapped(file: Path, name: str, items: int) -> np.ndarray:
    """An array of the store, read-only. Raises InputError unless it has the size it should."""
    kind, item = _ARRAYS[name]
    shape = (items, *item)
    wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
    try:
        size = file.stat().st_size
        if size != wanted:
            raise InputError(
                f"{file}: the file has {size:,} bytes in place of {wanted:,}: it is cut or of another store. Copy or "
                "prepare the store again."
            )
        if not items:  # nothing can be mapped
            return np.empty(shape, kind)
        return np.memmap(file, np.dtype(kind), mode="r", shape=shape).view(np.ndarray)
    except OSError as error:
        raise InputError(f"{file}: the store can't be read ({error.strerror}).") from error


class Writer:
    """Adds chains to a store that is being written; see `writing`."""

    def __init__(self, path: Path, files: dict[str, BinaryIO]):
        self.path = path
        self._files = files
        self._items = dict.fromkeys(_ARRAYS, 0)
        self._rows: list[Row] = []
        self.names: set[str] = set()
        self._alignments: dict[str, tuple[int, int]] = {}  # key -> places of its letters and deletions

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, chain: Chain, alignment: str = "") -> None:
        """Append a chain. Chains with the same non-empty `alignment` have the same one, which is kept once.

        Raises InputError for a name that is there already, and for atoms that are too far apart.
        """
        if chain.name in self.names:
            raise InputError(f"{chain.name}: the store has a chain of that name already.")
        n = len(chain.aatype)
        parts: dict[str, np.ndarray] = dict.fromkeys(_ARRAYS, np.empty(0))
        parts["residue_types"] = chain.aatype
        parts["residue_numbers"] = chain.residue_index
        parts["atoms_seen"], parts["atoms"] = _pack_atoms(chain.positions, chain.mask, chain.name)
        parts["alignments"] = chain.msa.reshape(-1)
        places = np.flatnonzero(chain.deletions)
        parts["deletion_places"] = places
        parts["deletion_counts"] = chain.deletions.reshape(-1)[places]
        if chain.profile is not None:
            parts["profiles"] = chain.profile
        if chain.templates:
            t = chain.templates
            parts["template_types"] = np.concatenate([x.aatype for x in t])
            positions, mask = np.concatenate([x.positions for x in t]), np.concatenate([x.mask for x in t])
            parts["template_atoms_seen"], parts["template_atoms"] = _pack_atoms(positions, mask, chain.name)
            parts["template_scores"] = np.array([x.sum_probs for x in t])
        parts = {
            name: np.ascontiguousarray(parts[name], kind).reshape(-1, *item)
            for name, (kind, item) in _ARRAYS.items()
        }

        first = dict(self._items)
        shared = self._alignments.get(alignment) if alignment else None
        if shared is not None:
            first["alignments"], first["deletion_places"] = shared
        elif alignment:
            self._alignments[alignment] = first["alignments"], first["deletion_places"]
        counts = np.bincount(chain.aatype, minlength=1)
        row = Row(
            name=chain.name,
            commonest=round(float(counts.max() / n), 4),
            length=n,
            first_residue=first["residue_types"],
            atoms=len(parts["atoms"]),
            first_atom=first["atoms"],
            rows=len(chain.msa),
            first_letter=first["alignments"],
            deletions=len(places),
            first_deletion=first["deletion_places"],
            first_profile=first["profiles"] if chain.profile is not None else -1,
            templates=len(chain.templates),
            first_template=first["template_scores"],
            first_template_residue=first["template_types"],
            template_atoms=len(parts["template_atoms"]),
            first_template_atom=first["template_atoms"],
            checksum=_checksum(parts.values()),
            **{name: getattr(chain, name) for name in _COPIED},
        )
        for name, array in parts.items():
            if shared is None or name not in ("alignments", "deletion_places", "deletion_counts"):
                self._files[name].write(array.data if array.size else b"")
                self._items[name] += len(array)
        self._rows.append(row)
        self.names.add(row.name)

    def finish(self) -> None:
        """Write the table and, last, the head."""
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        names = [field.name for field in fields(Row)]
        table.writerow(names)
        table.writerows([getattr(row, name) for name in names] for row in self._rows)
        write_text(self.path / "chains.csv", text.getvalue())
        head = {
            "format": FORMAT,
            "version": VERSION,
            "chains": len(self._rows),
            "items": self._items,
            "checksum": zlib.crc32(text.getvalue().encode()),
        }
        write_text(self.path / "store.json", json.dumps(head, indent=1) + "\n")


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Writer]:
    """A store to fill, which becomes `path` when the block ends well and leaves nothing when it doesn't.

    Raises InputError where there is something already, AxfoldError when the disk is full or fails.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already. Name another folder, or add --overwrite.")
    temporary = path.with_name(f".{path.name}.partial")  # what a killed run has left goes too
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with ExitStack() as stack:
            writer = Writer(
                temporary,
                {name: stack.enter_context(open(temporary / f"{name}.bin", "wb")) for name in _ARRAYS},
            )
            yield writer
        writer.finish()
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        temporary.rename(path)
    except OSError as error:
        raise failure(path, error, again="nothing of it is kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pack_atoms(positions: np.ndarray, mask: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which atoms (N, 37) are there, as bits, and the steps (atoms, 3) from one to the next; the first is zero.

    Steps are taken between rounded positions, so that errors do not add up.
    """
    there = mask > 0
    seen = positions[there].astype(np.float64)
    whole = np.rint((seen - seen[:1]) * UNIT)
    steps = np.diff(whole, axis=0, prepend=0)
    if np.abs(steps).max(initial=0) > LONGEST_STEP * UNIT:
        raise InputError(
            f"{name}: an atom is more than {LONGEST_STEP:.0f} Å from the one before it, which no structure "
            "needs; its coordinates are wrong."
        )
    bits = np.where(there, _BITS, np.uint64(0)).sum(axis=-1, dtype=np.uint64)
    return bits, steps.astype(np.int16)


def _unpack_atoms(seen: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `_pack_atoms`: (N, 37, 3) Å and (N, 37)."""
    there = (seen[:, None] & _BITS) != 0
    positions = np.zeros((*there.shape, 3), np.float32)
    positions[there] = steps.cumsum(axis=0, dtype=np.int32) * np.float32(1 / UNIT)
    return positions, there.astype(np.float32)


def _checksum(parts: Iterable[np.ndarray]) -> int:
    checksum = 0
    for part in parts:
        if part.size:
            checksum = zlib.crc32(part.data, checksum)
    return checksum
