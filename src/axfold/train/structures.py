"""Chains of structure files, as training needs them: residue types, atoms, and which residues are neighbours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from axfold import residues
from axfold.data import files
from axfold.data.formats import mmcif, pdb
from axfold.data.formats.components import ONE_LETTER
from axfold.errors import InputError

SUFFIXES = (".cif", ".mmcif", ".pdb", ".ent")
"""Of structure files; .gz may follow."""
_PROFILE_LETTERS = "ACDEFGHIKLMNPQRSTVWY"  # of an npz of backbones
_N, _CA, _C, _O, _CB, _CD, _NH1, _NH2 = (
    residues.ATOM_INDEX[name] for name in ("N", "CA", "C", "O", "CB", "CD", "NH1", "NH2")
)
UNKNOWN = residues.RESTYPE_INDEX["X"]
_KNOWN_ATOMS = residues.ATOM37_MASK.copy()
_KNOWN_ATOMS[UNKNOWN, [_N, _CA, _C, _O, _CB]] = 1  # nothing more is certain of a residue without a type
_BOND = 2.5  # Å from C to N, beyond which neighbours aren't bonded


class Refused(Exception):
    """Says why a chain can't be in a store: a kind, and a sentence."""

    def __init__(self, kind: str, text: str):
        super().__init__(kind, text)
        self.kind, self.text = kind, text


class Found(NamedTuple):
    """A chain as its file has it; arrays as in `store.Chain`, where the file has the atoms."""

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
    plddt: np.ndarray | None = None  # (N,) B factors, which are pLDDT in predictions
    row: Mapping[str, str] = {}  # of the table


@dataclass(frozen=True)
class Structure:
    """A file's chains, read when they are asked for."""

    file: Path
    entry: str
    chains: Mapping[str, Callable[[], Found]]


def read(file: Path) -> Structure:
    """The chains of an mmCIF or PDB file. Raises InputError."""
    text = files.read_text(file)
    if files.suffix(file) in (".cif", ".mmcif"):
        return _mmcif(file, mmcif.parse(text, str(file)))
    resolution = re.search(r"^REMARK   2 RESOLUTION\. +(\d+\.\d+) +ANG", text, re.MULTILINE)
    return _pdb(file, pdb.parse(text, str(file)), float(resolution[1]) if resolution else 0.0)


def name_of(structure: Structure, chain: str) -> str:
    """As PDB code and chain; a file of one chain that is not called as a PDB code is called as the chain."""
    if len(structure.chains) == 1 and not re.fullmatch(r"\d\w{3}", structure.entry):
        return files.stem(structure.file)
    return f"{structure.entry}_{chain}"


def chain_of(structure: Structure, row: Mapping[str, str]) -> Found:
    """The chain that a table's row names, or the only one. Raises Refused."""
    chain = row.get("chain", "")
    if chain not in structure.chains and len(structure.chains) != 1:
        known = ", ".join(structure.chains)
        raise Refused(
            "no such chain", f"{structure.file}: there is no chain {chain!r}; the chains are {known}."
        )
    read = structure.chains.get(chain) or next(iter(structure.chains.values()))
    return read()._replace(row=row)


def _mmcif(file: Path, structure: mmcif.MmcifStructure) -> Structure:
    def read(chain: str) -> Found:
        sequence = structure.chain_to_seqres[chain]
        aatype = np.array([residues.RESTYPE_INDEX.get(letter, UNKNOWN) for letter in sequence])
        positions, mask = mmcif.atom_positions(structure, chain)
        found = structure.seqres_to_structure[chain]
        return _cleaned(
            Found(
                aatype,
                np.arange(len(sequence)),
                positions,
                mask,
                _remarks(aatype, structure.more_models),
                released=structure.header.release_date or "",
                resolution=structure.header.resolution,
                entry=structure.file_id,
                plddt=np.array([np.mean([a.b_factor for a in r.atoms]) if r.atoms else 0.0 for r in found]),
            )
        )

    names = structure.chain_to_seqres
    return Structure(file, structure.file_id, {name: partial(read, name) for name in names})


def _pdb(file: Path, structure: pdb.PdbStructure, resolution: float) -> Structure:
    entry = files.stem(file).lower()
    letters = np.array([ONE_LETTER.get(name, "") for name in structure.names])
    protein = with_backbone(structure.mask) | ((letters != "") & (structure.mask[:, _CA] > 0))

    def read(rows: np.ndarray) -> Found:
        aatype = np.array([residues.RESTYPE_INDEX.get(x, UNKNOWN) if x else UNKNOWN for x in letters[rows]])
        codes = [structure.insertion_codes[row] for row in rows]
        positions, mask = structure.positions[rows], structure.mask[rows]
        return _cleaned(
            Found(
                aatype,
                residue_index(structure.residue_index[rows], codes, positions, mask),
                positions,
                mask,
                _remarks(aatype, structure.more_models, sum(code != " " for code in codes)),
                resolution=resolution,
                entry=entry,
                plddt=structure.b_factors[rows, _CA],
            )
        )

    chains = {}
    for index, name in enumerate(structure.chain_ids):
        rows = np.flatnonzero(protein & (structure.chain_index == index))
        if len(rows):
            chains[name] = partial(read, rows)
    if not chains:
        raise InputError(f"{file}: the structure holds no protein chain.")
    return Structure(file, entry, chains)


def _remarks(aatype: np.ndarray, more_models: bool, inserted: int = 0) -> tuple[str, ...]:
    unknown = int((aatype == UNKNOWN).sum())
    return (
        *([f"Residues of unknown type, which have a backbone alone: {unknown}."] if unknown else ()),
        *(["The file has several models, of which the first is taken."] if more_models else ()),
        *([f"Residues with insertion codes, which are counted on: {inserted}."] if inserted else ()),
    )


def _cleaned(found: Found) -> Found:
    """With the atoms that the residue types have."""
    positions, mask = found.positions.copy(), found.mask * _KNOWN_ATOMS[found.aatype]
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


def confident(found: Found, min_plddt: float) -> Found:
    """Of a prediction, what it was confident of: other residues are taken as not seen. pLDDT may be from 0 to 1."""
    if found.plddt is None:
        return found
    scale = 100.0 if found.plddt.max(initial=0) <= 1 else 1.0
    mask = found.mask * (found.plddt * scale >= min_plddt)[:, None].astype(np.float32)
    return found._replace(mask=mask, positions=found.positions * (mask > 0)[..., None])


def with_backbone(mask: np.ndarray) -> np.ndarray:
    """(N,) whether N, CA and C are there; mask: (N, 37)"""
    return np.asarray(mask[:, [_N, _CA, _C]].all(axis=1))


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
def backbones(file: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
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


def backbone(file: Path, row: Mapping[str, str]) -> Found:
    """The chain of an npz of backbones that a table's row names. Raises Refused."""
    try:
        numbers, arrays = backbones(file)
    except InputError as error:
        raise Refused("structure can't be read", str(error)) from error
    if row["id"] not in numbers:
        raise Refused("no such chain", f"{file}: there is no chain {row['id']!r}.")
    number = numbers[row["id"]]
    part = slice(int(arrays["offsets"][number]), int(arrays["offsets"][number + 1]))
    letters = arrays["seq"][part].astype(np.uint8).tobytes().decode("ascii", "replace")
    aatype = np.array([residues.RESTYPE_INDEX.get(letter, UNKNOWN) for letter in letters])
    positions = np.zeros((len(aatype), 37, 3), np.float32)
    mask = np.zeros((len(aatype), 37), np.float32)
    positions[:, [_N, _CA, _C, _O]] = arrays["coords_centiA"][part] / np.float32(100)
    mask[:, [_N, _CA, _C, _O]] = 1
    profile = None
    if "profile_u8" in arrays:
        profile = arrays["profile_u8"][part][:, [_PROFILE_LETTERS.index(x) for x in residues.RESTYPES]]
        profile = np.where(profile.any(axis=1, keepdims=True), profile, np.uint8(1))
    numbered = residue_index(np.arange(len(aatype)), [" "] * len(aatype), positions, mask)
    return Found(
        aatype,
        numbered,
        positions,
        mask,
        _remarks(aatype, False),
        profile=profile,
        backbone_only=True,
        row=row,
    )
