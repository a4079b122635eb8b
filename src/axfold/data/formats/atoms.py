"""Atoms of a residue as structure files list them: several conformers, several residues in one place."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from axfold.residues import ATOM_INDEX, ATOM_TYPES

Key = TypeVar("Key", bound=Hashable)


class Atom(NamedTuple):
    """One conformer of an atom."""

    name: str
    altloc: str  # empty where the atom has one conformer
    occupancy: float
    position: tuple[float, float, float]  # Å
    b_factor: float  # Å²


class Residues(Generic[Key]):
    """Residues of a chain in the order of their first atoms, by the key the caller chose.

    Point mutations put residues of several names in one place: the one named last is taken. Of an atom's
    conformers the one of highest occupancy is taken, the first among equals.
    """

    def __init__(self) -> None:
        self._variants: dict[Key, dict[str, dict[str, Atom]]] = {}  # key -> residue name -> atom name

    def add(self, key: Key, residue: str, atom: Atom) -> None:
        """Add an atom of the residue at `key`, called `residue` there."""
        variants = self._variants.setdefault(key, {})
        atoms = variants[residue] = variants.pop(residue, {})  # the last one named stands last
        known = atoms.get(atom.name)
        if known is None or (atom.altloc and atom.occupancy > known.occupancy):
            atoms[atom.name] = atom

    def __contains__(self, key: Key) -> bool:
        return key in self._variants

    def __iter__(self) -> Iterator[Key]:
        return iter(self._variants)

    def __getitem__(self, key: Key) -> tuple[str, tuple[Atom, ...]]:
        """Name and atoms of the residue at `key`. Raises KeyError where there is none."""
        residue, atoms = list(self._variants[key].items())[-1]
        return residue, tuple(atoms.values())


def atom37(atoms: Iterable[Atom]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(37, 3) positions, (37,) mask, (37,) B factors of the atoms that amino acids have; float32, 0 elsewhere."""
    positions = np.zeros((len(ATOM_TYPES), 3), np.float32)
    mask = np.zeros(len(ATOM_TYPES), np.float32)
    b_factors = np.zeros(len(ATOM_TYPES), np.float32)
    for atom in atoms:
        column = ATOM_INDEX.get(atom.name)
        if column is not None:
            positions[column], mask[column], b_factors[column] = atom.position, 1, atom.b_factor
    return positions, mask, b_factors
