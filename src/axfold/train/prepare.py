"""Structures and alignments, as people have them -> a training store.

Nothing is left out in silence: every chain that the store lacks is in its `report.csv`, with the reason.
"""

from __future__ import annotations

import csv
import io
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from axfold import residues
from axfold.config import Sampling
from axfold.data import alignments, files, steps, templates
from axfold.data.formats import hhr, mmcif, pdb
from axfold.data.formats.components import ONE_LETTER
from axfold.data.query import Alignment, Query
from axfold.errors import InputError
from axfold.output.files import write_text
from axfold.train import openproteinset, sampling
from axfold.train.openproteinset import Place
from axfold.train.store import EXPERIMENTAL, Chain, Store, Writer, writing

_STRUCTURES = (".cif", ".mmcif", ".pdb", ".ent")
_PROFILE_LETTERS = "ACDEFGHIKLMNPQRSTVWY"  # of an npz of backbones
_N, _CA, _C, _O, _CB, _CD, _NH1, _NH2 = (
    residues.ATOM_INDEX[name] for name in ("N", "CA", "C", "O", "CB", "CD", "NH1", "NH2")
)
_UNKNOWN = residues.RESTYPE_INDEX["X"]
_KNOWN_ATOMS = residues.ATOM37_MASK.copy()
_KNOWN_ATOMS[_UNKNOWN, [_N, _CA, _C, _O, _CB]] = 1  # nothing more is certain of a residue without a type
_BOND = 2.5  # Å from C to N, beyond which neighbours aren't bonded
_BEFORE = timedelta(days=60)  # a template was released that long before the chain; AlphaFold's data pipeline
_SEARCHED_TEMPLATES = 20  # kept of a search, of which training draws; supplement 1.2.3


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `axfold train prepare` is asked for.

    structures: mmCIF and PDB files (.gz too), folders and tar files of them, tables (.csv) that name them and say more
    msas: folders and tar files of alignments, indices of OpenFold's databases; the first of a chain's sequence counts
    duplicates, clusters: files whose lines are the names of chains with the same and with similar sequences
    set, split: of chains for which no table says another
    max_rows: of an alignment, the first ones
    min_plddt: residues of predicted structures under it are taken as not seen
    """

    structures: tuple[Path, ...]
    out: Path
    msas: tuple[Path, ...] = ()
    duplicates: Path | None = None
    clusters: Path | None = None
    set: str = EXPERIMENTAL
    split: str = "train"
    max_rows: int | None = None
    min_length: int = 16
    max_length: int | None = None
    template_mmcifs: Path | None = None
    min_plddt: float = 50.0
    workers: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Told:
    """A line of the report: why a chain or a file was left out, or what to know of one that was kept."""

    name: str
    file: str
    kept: bool
    kind: str  # a few words, by which reasons are counted
    text: str


@dataclass
class Summary:
    """What a store holds and what it lacks."""

    out: Path
    bytes: int = 0
    chains: Counter[str] = field(default_factory=Counter)  # by "set, split"
    full_atom: int = 0
    aligned: int = 0
    profiles: int = 0
    residues: int = 0
    filtered: int = 0  # by the filters of supplement 1.2.5, in training
    left_out: Counter[str] = field(default_factory=Counter)  # by reason

    def text(self) -> str:
        total = sum(self.chains.values())
        alone = total - self.aligned - self.profiles
        lines = [
            f"{self.out}: {total:,} chains, {self.residues:,} residues, {self.bytes / 1e6:,.1f} MB",
            *(f"  {number:,} of {name}" for name, number in sorted(self.chains.items())),
            f"  {self.full_atom:,} with all atoms, {total - self.full_atom:,} with their backbone",
            f"  {self.aligned:,} with an alignment, {self.profiles:,} with a profile, {alone:,} with neither",
        ]
        if self.filtered:
            lines.append(
                f"  {self.filtered:,} that training will not draw (resolution, or one residue type prevails)"
            )
        if self.left_out:
            lines.append(f"left out, see {self.out / 'report.csv'}:")
            lines += [f"  {number:,}: {reason}" for reason, number in self.left_out.most_common()]
        return "\n".join(lines)


class _Refused(Exception):
    """Says why a chain can't be in a store: a kind, and a sentence."""

    def __init__(self, kind: str, text: str):
        super().__init__(kind, text)
        self.kind, self.text = kind, text


class _Task(NamedTuple):
    """A file to read: all its chains, or those that `wanted` names with what a table says of them."""

    file: Path
    wanted: tuple[dict[str, str], ...]


class _Read(NamedTuple):
    """What became of one chain; `chain` is None where it is left out."""

    name: str
    chain: Chain | None
    alignment: str  # key of its alignment; see store.Writer.add
    told: tuple[Told, ...]


@dataclass(frozen=True)
class _Context:
    """What all processes know."""

    options: Options
    alignments: Mapping[str, tuple[Place, ...]]
    duplicates: Mapping[str, tuple[str, ...]]
    clusters: Mapping[str, tuple[str, ...]]


def prepare(options: Options, progress: Callable[[int, int], None] = lambda done, total: None) -> Summary:
    """Write the store. Raises InputError where no chain is left, and about arguments."""
    if options.out.exists() and not options.overwrite:
        raise InputError(f"{options.out} is there already. Name another folder, or add --overwrite.")
    with ExitStack() as stack:
        unpacked = _Unpacked(stack)
        places = _places(unpacked(root) for root in options.msas)
        context = _Context(
            options,
            places,
            openproteinset.groups(options.duplicates) if options.duplicates else {},
            openproteinset.groups(options.clusters) if options.clusters else {},
        )
        tasks, told = _tasks(options, unpacked)
        told = _write(context, tasks, told, progress)
    return _summary(options.out, told)


def _write(
    context: _Context, tasks: list[_Task], told: list[Told], progress: Callable[[int, int], None]
) -> list[Told]:
    """Fill the store with what the tasks give, in their order; `told` with what more there is to tell."""
    told = list(told)
    options = context.options
    with writing(options.out, overwrite=options.overwrite) as writer:
        for done, results in enumerate(_work(context, tasks), 1):
            for read in results:
                told += _added(read, writer, str(tasks[done - 1].file))
            progress(done, len(tasks))
        if not len(writer):
            first = next((one.text for one in told if not one.kept), "There are none.")
            raise InputError(f"No chain can be trained on. {first}")
        table = io.StringIO(newline="")
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["chain", "file", "outcome", "reason", "text"])
        rows.writerows([x.name, x.file, "kept" if x.kept else "left out", x.kind, x.text] for x in told)
        write_text(writer.path / "report.csv", table.getvalue())
    return told


def _added(read: _Read, writer: Writer, file: str) -> tuple[Told, ...]:
    """Add a chain to the store, if it is one and is new there; what there is to tell of it."""
    if read.name in writer.names:
        text = f"{read.name} is in the store from another file; full-atom structures come first."
        return (Told(read.name, file, False, "occurs twice", text),)
    if read.chain is not None:
        try:
            writer.add(read.chain, read.alignment)
        except InputError as error:
            return (Told(read.name, file, False, "wrong coordinates", str(error)),)
    return read.told


def _work(context: _Context, tasks: list[_Task]) -> Iterator[list[_Read]]:
    """What each task gives, in their order, from as many processes as asked for."""
    workers = context.options.workers if context.options.workers is not None else os.cpu_count() or 1
    if workers < 2 or len(tasks) < 2:
        _begin(context)
        yield from map(_read, tasks)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(context,)
    ) as pool:
        yield from pool.map(_read, tasks, chunksize=8)


def _summary(out: Path, told: Iterable[Told]) -> Summary:
    summary = Summary(out, bytes=sum(file.stat().st_size for file in out.iterdir()))
    for row in Store(out).rows:
        summary.chains[f"{row.set}, {row.split}"] += 1
        summary.full_atom += not row.backbone_only
        summary.aligned += row.rows > 0
        summary.profiles += row.rows == 0 and row.first_profile >= 0
        summary.residues += row.length
        summary.filtered += sampling.refused(row, Sampling()) is not None
    summary.left_out.update(one.kind for one in told if not one.kept)
    return summary


# Which files


def _places(roots: Iterable[Path]) -> dict[str, tuple[Place, ...]]:
    """Chain -> its alignments, in the order of the roots."""
    places: dict[str, tuple[Place, ...]] = {}
    for root in roots:
        for name, place in openproteinset.find(root).items():
            places[name] = (*places.get(name, ()), place)
    return places


class _Unpacked:
    """Folders for tar files, which are removed with the stack; other paths as they are."""

    def __init__(self, stack: ExitStack):
        self._stack = stack

    def __call__(self, path: Path) -> Path:
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder.")
        if not re.search(r"\.(tar(\.\w+)?|tgz|txz)$", path.name):
            return path
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="axfold-")))
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise InputError(f"{path}: the archive can't be unpacked ({error}).") from error
        return folder


def _tasks(options: Options, unpacked: Callable[[Path], Path]) -> tuple[list[_Task], list[Told]]:
    """What is to be read, full-atom structures first, and what of the tables is nowhere."""
    paths = [unpacked(path) for path in options.structures]
    tables = [path for path in paths if files.suffix(path) == ".csv"]
    found = sorted(_structure_files(path for path in paths if path not in tables))
    if not tables:
        if not found:
            raise InputError(
                "There are no structures; they would be files " + ", ".join(_STRUCTURES) + ", .gz too."
            )
        return [_Task(file, ()) for file in found], []
    wanted: dict[Path, list[dict[str, str]]] = {}
    told = []
    by_name = {path.name.removesuffix(".gz"): path for path in found}
    for table in tables:
        for row in _table(table):
            file = Path(row["file"])
            beside = table.parent / file
            place = beside if beside.is_file() else by_name.get(file.name.removesuffix(".gz"))
            if place is None:
                text = f"{table}: there is no {file} beside it, nor in the folders that were given."
                told.append(Told(row["id"], row["file"], False, "no file", text))
            else:
                wanted.setdefault(place, []).append(row)
    # Hundreds of chains come from one npz, and are read by several processes.
    tasks = [
        _Task(file, tuple(rows[start : start + 256]))
        for file, rows in wanted.items()
        for start in range(0, len(rows), 256)
    ]
    return sorted(tasks, key=lambda task: task.file.suffix == ".npz"), told


def _structure_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if files.is_folder(path):
            yield from _structure_files(files.visible(path))
        elif files.suffix(path) in _STRUCTURES:
            yield path


def _table(path: Path) -> list[dict[str, str]]:
    """Rows of a table of structures. Raises InputError unless it names them and their files."""
    rows = csv.DictReader(io.StringIO(files.read_text(path), newline=""))
    if not {"id", "file"} <= set(rows.fieldnames or ()):
        raise InputError(
            f"{path}, line 1: a table of structures has the columns id and file, and may have more."
        )
    found = []
    for row in rows:
        if None in row.values() or None in row:
            raise InputError(f"{path}, line {rows.line_num}: the row has not as many cells as the header.")
        found.append(row)
    return found


# One file


_context: _Context


def _begin(context: _Context) -> None:
    global _context
    _context = context
    _rows.cache_clear()
    _backbones.cache_clear()


def _read(task: _Task) -> list[_Read]:
    """The chains of a file."""
    try:
        if task.file.suffix == ".npz":
            return [
                _finished(row["id"], task.file, partial(_from_npz, task.file, row)) for row in task.wanted
            ]
        structure = _structure(task.file)
    except InputError as error:
        names = [row["id"] for row in task.wanted] or [files.stem(task.file)]
        return [
            _Read(name, None, "", (Told(name, str(task.file), False, "structure can't be read", str(error)),))
            for name in names
        ]
    wanted = task.wanted or tuple(
        {"id": _name(structure, chain), "chain": chain} for chain in structure.chains
    )
    return [_finished(row["id"], task.file, partial(_from_structure, structure, row)) for row in wanted]


class _Found(NamedTuple):
    """A chain as its file has it."""

    aatype: np.ndarray
    residue_index: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    remarks: tuple[str, ...] = ()
    profile: np.ndarray | None = None
    backbone_only: bool = False
    released: str = ""
    resolution: float = 0.0
    entry: str = ""
    row: Mapping[str, str] = {}  # of the table


@dataclass(frozen=True)
class _Structure:
    """A file's chains, read when they are asked for."""

    file: Path
    entry: str
    chains: Mapping[str, Callable[[], _Found]]


def _finished(name: str, file: Path, read: Callable[[], _Found]) -> _Read:
    """The chain that `read` gives, checked and with its alignment."""
    options = _context.options
    try:
        found = read()
        row = found.row
        _check(name, found, options)
        chain = Chain(
            name=name,
            aatype=found.aatype.astype(np.uint8),
            residue_index=found.residue_index.astype(np.int32),
            positions=found.positions,
            mask=found.mask,
            msa=np.empty((0, len(found.aatype)), np.uint8),
            deletions=np.empty((0, len(found.aatype)), np.uint8),
            profile=found.profile,
            set=row.get("set") or options.set,
            split=row.get("split") or options.split,
            cluster=row.get("cluster") or (_context.clusters.get(name) or ("",))[0],
            entry=row.get("pdb") or found.entry,
            resolution=_number(row.get("resolution") or "0", name) or found.resolution,
            released=row.get("released") or found.released,
            backbone_only=found.backbone_only,
        )
        aligned_as = openproteinset.representative(name, _context.alignments, _context.duplicates)
        key = ""
        if aligned_as is not None:
            place, msa, deletions = _alignment(name, chain.aatype, _context.alignments[aligned_as])
            key = str(place)
            # The profile of all sequences that a search found says no more than the sequences
            chain = replace(chain, msa=msa, deletions=deletions, profile=None)
            if options.template_mmcifs is not None and isinstance(place, Path):
                chain = replace(chain, templates=_templates(chain, place, options.template_mmcifs))
    except _Refused as refused:
        return _Read(name, None, "", (Told(name, str(file), False, refused.kind, refused.text),))
    remarks = tuple(Told(name, str(file), True, "", text) for text in found.remarks)
    return _Read(name, chain, key, remarks)


def _check(name: str, found: _Found, options: Options) -> None:
    """Raise _Refused for a chain that nothing can be learned from."""
    seen = int(found.mask[:, [_N, _CA, _C]].all(axis=1).sum())
    n = len(found.aatype)
    if not found.mask.any():
        raise _Refused("no coordinates", f"{name} has no coordinates.")
    if not np.isfinite(found.positions).all():
        raise _Refused("wrong coordinates", f"{name} has coordinates that are not finite.")
    if seen < options.min_length:
        raise _Refused(
            "too short",
            f"{name} has {seen} residues with a backbone, and --min-length asks for {options.min_length}.",
        )
    if options.max_length is not None and n > options.max_length:
        raise _Refused("too long", f"{name} has {n} residues, and --max-length allows {options.max_length}.")


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _Refused(
            "wrong table", f"{name} has the resolution {text!r} in its table, which is no number."
        ) from None


# Structures


def _structure(file: Path) -> _Structure:
    text = files.read_text(file)
    if files.suffix(file) in (".cif", ".mmcif"):
        return _mmcif(file, mmcif.parse(text, str(file)))
    resolution = re.search(r"^REMARK   2 RESOLUTION\. +(\d+\.\d+) +ANG", text, re.MULTILINE)
    return _pdb(file, pdb.parse(text, str(file)), float(resolution[1]) if resolution else 0.0)


def _name(structure: _Structure, chain: str) -> str:
    """As PDB code and chain; a file of one chain that is not called as a PDB code is called as the chain."""
    if len(structure.chains) == 1 and not re.fullmatch(r"\d\w{3}", structure.entry):
        return files.stem(structure.file)
    return f"{structure.entry}_{chain}"


def _from_structure(structure: _Structure, row: Mapping[str, str]) -> _Found:
    """The chain that a row names, or the only one."""
    chain = row.get("chain", "")
    if chain not in structure.chains and len(structure.chains) != 1:
        known = ", ".join(structure.chains)
        raise _Refused(
            "no such chain", f"{structure.file}: there is no chain {chain!r}; the chains are {known}."
        )
    read = structure.chains.get(chain) or next(iter(structure.chains.values()))
    return read()._replace(row=row)


def _mmcif(file: Path, structure: mmcif.MmcifStructure) -> _Structure:
    def read(chain: str) -> _Found:
        sequence = structure.chain_to_seqres[chain]
        aatype = np.array([residues.RESTYPE_INDEX.get(letter, _UNKNOWN) for letter in sequence])
        positions, mask = mmcif.atom_positions(structure, chain)
        found = structure.seqres_to_structure[chain]
        plddt = np.array([np.mean([a.b_factor for a in r.atoms]) if r.atoms else 0 for r in found])
        return _cleaned(
            _Found(
                aatype,
                np.arange(len(sequence)),
                positions,
                mask,
                _remarks(aatype, structure.more_models),
                released=structure.header.release_date or "",
                resolution=structure.header.resolution,
                entry=structure.file_id,
            ),
            plddt,
        )

    names = structure.chain_to_seqres
    return _Structure(file, structure.file_id, {name: partial(read, name) for name in names})


def _pdb(file: Path, structure: pdb.PdbStructure, resolution: float) -> _Structure:
    entry = files.stem(file).lower()
    letters = np.array([ONE_LETTER.get(name, "") for name in structure.names])
    backbone = structure.mask[:, [_N, _CA, _C]].all(axis=1)
    protein = backbone | ((letters != "") & (structure.mask[:, _CA] > 0))

    def read(rows: np.ndarray) -> _Found:
        aatype = np.array([residues.RESTYPE_INDEX.get(x, _UNKNOWN) if x else _UNKNOWN for x in letters[rows]])
        codes = [structure.insertion_codes[row] for row in rows]
        positions, mask = structure.positions[rows], structure.mask[rows]
        inserted = sum(code != " " for code in codes)
        return _cleaned(
            _Found(
                aatype,
                residue_index(structure.residue_index[rows], codes, positions, mask),
                positions,
                mask,
                (
                    *_remarks(aatype, structure.more_models),
                    *(
                        [f"Residues with insertion codes, which are counted on: {inserted}."]
                        if inserted
                        else ()
                    ),
                ),
                resolution=resolution,
                entry=entry,
            ),
            np.array([structure.b_factors[row, _CA] for row in rows]),
        )

    chains = {}
    for index, name in enumerate(structure.chain_ids):
        rows = np.flatnonzero(protein & (structure.chain_index == index))
        if len(rows):
            chains[name] = partial(read, rows)
    if not chains:
        raise InputError(f"{file}: the structure holds no protein chain.")
    return _Structure(file, entry, chains)


def _remarks(aatype: np.ndarray, more_models: bool) -> tuple[str, ...]:
    unknown = int((aatype == _UNKNOWN).sum())
    return (
        *([f"Residues of unknown type, which have a backbone alone: {unknown}."] if unknown else ()),
        *(["The file has several models, of which the first is taken."] if more_models else ()),
    )


def _cleaned(found: _Found, plddt: np.ndarray) -> _Found:
    """Atoms that the residue types have; of predictions, where they were confident."""
    positions, mask = found.positions.copy(), found.mask * _KNOWN_ATOMS[found.aatype]
    if _context.options.set != EXPERIMENTAL:
        scale = 100.0 if plddt.max(initial=0) <= 1 else 1.0
        mask = mask * (plddt * scale >= _context.options.min_plddt)[:, None]
    # NH1 is the nearer one to CD; where it isn't, names were exchanged
    arginine = mask[:, [_CD, _NH1, _NH2]].all(axis=1)
    one, other = (np.linalg.norm(positions[:, x] - positions[:, _CD], axis=-1) for x in (_NH1, _NH2))
    wrong = np.flatnonzero(arginine & (one > other))
    positions[wrong[:, None], [_NH1, _NH2]] = positions[wrong[:, None], [_NH2, _NH1]]
    positions[mask == 0] = 0
    missing = int((_KNOWN_ATOMS[found.aatype] * mask[:, _CA, None] > mask).any(axis=1).sum())
    remarks = found.remarks
    if missing:
        remarks = (*remarks, f"Residues that lack atoms, which are masked: {missing}.")
    return found._replace(positions=positions, mask=mask, remarks=remarks)


def residue_index(
    numbers: np.ndarray, codes: Iterable[str], positions: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """(N,) from 0, one more for each residue that is bonded to the one before, and a gap where it isn't.

    numbers, codes: the authors', in the order of the chain; positions: (N, 37, 3) Å; mask: (N, 37)
    A gap is as wide as the numbers say, and at least one residue. Where the atoms say that there is none, numbers
    that jump, stand still (insertion codes) or go back don't matter.
    """
    steps_ = np.diff(numbers)
    known = (mask[:-1, _C] > 0) & (mask[1:, _N] > 0)
    bonded = np.linalg.norm(positions[1:, _N] - positions[:-1, _C], axis=-1) < _BOND
    same = (np.array(list(codes))[1:] != " ") | (steps_ < 1)
    guessed = np.where(same, 1, steps_)
    steps_ = np.where(known, np.where(bonded, 1, np.maximum(guessed, 2)), guessed)
    return np.concatenate([[0], np.cumsum(steps_)])


@lru_cache(maxsize=2)
def _backbones(file: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Chain -> its number, and the arrays, of an npz of backbones."""
    needed = {"ids", "offsets", "seq", "coords_centiA"}
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files if name in needed | {"profile_u8"}}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{file}: the npz file can't be read ({error}).") from error
    if missing := sorted(needed - set(arrays)):
        raise InputError(
            f"{file}: an npz of backbones has {', '.join(sorted(needed))}, and this lacks {missing[0]}."
        )
    if len(arrays["coords_centiA"]) != arrays["offsets"][-1] or len(arrays["seq"]) != arrays["offsets"][-1]:
        raise InputError(f"{file}: the arrays are not of one length; the file is damaged.")
    return {str(name): number for number, name in enumerate(arrays["ids"])}, arrays


def _from_npz(file: Path, row: Mapping[str, str]) -> _Found:
    try:
        numbers, arrays = _backbones(file)
    except InputError as error:
        raise _Refused("structure can't be read", str(error)) from error
    if row["id"] not in numbers:
        raise _Refused("no such chain", f"{file}: there is no chain {row['id']!r}.")
    number = numbers[row["id"]]
    part = slice(int(arrays["offsets"][number]), int(arrays["offsets"][number + 1]))
    letters = arrays["seq"][part].astype(np.uint8).tobytes().decode("ascii", "replace")
    aatype = np.array([residues.RESTYPE_INDEX.get(letter, _UNKNOWN) for letter in letters])
    positions = np.zeros((len(aatype), 37, 3), np.float32)
    mask = np.zeros((len(aatype), 37), np.float32)
    positions[:, [_N, _CA, _C, _O]] = arrays["coords_centiA"][part] / np.float32(100)
    mask[:, [_N, _CA, _C, _O]] = 1
    profile = None
    if "profile_u8" in arrays:
        profile = arrays["profile_u8"][part][:, [_PROFILE_LETTERS.index(x) for x in residues.RESTYPES]]
        profile = np.where(profile.any(axis=1, keepdims=True), profile, np.uint8(1))
    numbered = residue_index(np.arange(len(aatype)), [" "] * len(aatype), positions, mask)
    return _Found(
        aatype,
        numbered,
        positions,
        mask,
        _remarks(aatype, False),
        profile=profile,
        backbone_only=True,
        row=row,
    )


# Alignments


def _alignment(
    name: str, aatype: np.ndarray, places: tuple[Place, ...]
) -> tuple[Place, np.ndarray, np.ndarray]:
    """The first of the `places` with an alignment of the chain, its rows (S, N) and deletions. Raises _Refused."""
    refused = _Refused("", "")
    for place in places:
        try:
            msa, deletions = _rows(place, _context.options.max_rows)
            _check_alignment(name, aatype, msa[0], place)
        except InputError as error:
            refused = _Refused("alignment can't be read", str(error))
        except _Refused as error:
            refused = error
        else:
            return place, msa, deletions
    raise refused


@lru_cache(maxsize=1)  # chains of one sequence follow each other
def _rows(place: Place, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    found = (
        [alignment for _, alignment in alignments.read(place)] if isinstance(place, Path) else _parts(place)
    )
    query = found[0].sequences[0]
    for alignment in found:
        if alignment.sequences[0] != query:
            raise InputError(f"{place}: the alignments there are of different sequences.")
    features = steps.query_features(Query(str(place), query, tuple(found)))
    deletions = np.minimum(features["deletion_matrix"][:limit], 255).astype(np.uint8)
    return features["msa"][:limit], deletions


def _parts(parts: Iterable[openproteinset.Part]) -> list[Alignment]:
    found = []
    for part in sorted(parts, key=lambda part: list(alignments.SEARCHED).index(part.name)):
        text, rows = part.read(), alignments.SEARCHED[part.name]
        if text.strip():
            whole = alignments.parse(Path(part.name), text)
            found.append(Alignment(whole.sequences[:rows], whole.deletions[:rows], whole.descriptions[:rows]))
    if not found:
        raise InputError("Every alignment of the chain in the database is empty.")
    return found


def _check_alignment(name: str, aatype: np.ndarray, first: np.ndarray, place: Place) -> None:
    """Raise _Refused unless the first row is the chain; a residue of unknown type is any."""
    where = place if isinstance(place, Path) else place[0].database
    kind = "alignment of another sequence"
    if len(first) != len(aatype):
        raise _Refused(
            kind,
            f"{where}: the first sequence has {len(first)} residues and {name} {len(aatype)}; align to the "
            "chain's own sequence.",
        )
    known = (first < _UNKNOWN) & (aatype < _UNKNOWN)
    wrong = np.flatnonzero(known & (first != aatype))
    if len(wrong):
        letters = residues.RESTYPES_WITH_X
        raise _Refused(
            kind,
            f"{where}: the first sequence differs from {name} in {len(wrong)} residues, first in residue "
            f"{wrong[0] + 1} ({letters[first[wrong[0]]]} and {letters[aatype[wrong[0]]]}); align to the chain's "
            "own sequence.",
        )


def _templates(chain: Chain, place: Path, folder: Path) -> tuple[templates.Template, ...]:
    """Of the search's hits, those that were released long enough before the chain, without the chain's own entry."""
    found: list[templates.Template] = []
    for path in alignments.template_hits(place):
        try:
            hits = hhr.parse(files.read_text(path), str(path))
        except InputError as error:
            raise _Refused("templates can't be read", str(error)) from error
        others = [hit for hit in hits if not hit.name.lower().startswith(f"{chain.entry.lower()}_")]
        latest = date.fromisoformat(chain.released) - _BEFORE if chain.released else None
        stacked, _ = templates.from_hits(
            chain.sequence, others, folder, limit=_SEARCHED_TEMPLATES, max_date=latest
        )
        arrays = (stacked.aatype, stacked.positions, stacked.masks, map(float, stacked.sum_probs))
        found += [templates.Template(*one) for one in zip(stacked.names, *arrays, strict=True)]
    return tuple(found)
