"""How near a predicted structure is to an experimental one, file to file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from axfold import metrics
from axfold.data import files
from axfold.data.formats import mmcif, pdb
from axfold.data.pairwise import align
from axfold.errors import InputError
from axfold.residues import ATOM_INDEX, RESTYPES_WITH_X

_CA = ATOM_INDEX["CA"]


@dataclass(frozen=True)
class Comparison:
    """Of the residues that both structures have. All but `rmsd` (Å, C-alpha) are from 0 to 1.

    lddt: over the atoms that both have, as they are named; tm: normalised by the length of the true structure
    """

    residues: int
    of: int
    lddt_ca: float
    lddt: float
    tm: float
    gdt_ts: float
    rmsd: float

    def text(self) -> str:
        return (
            f"lDDT-CA {self.lddt_ca:.3f}  lDDT {self.lddt:.3f}  TM-score {self.tm:.3f}  GDT_TS {self.gdt_ts:.3f}  "
            f"RMSD {self.rmsd:.2f} Å  ({self.residues} of {self.of} residues)"
        )


def compare(predicted: Path, true: Path) -> Comparison:
    """The first protein chain of one file with that of another, paired by their sequences. Raises InputError."""
    one, other = _chain(predicted), _chain(true)
    pairs = align(one.sequence, other.sequence).pairs
    if len(pairs) < 3:
        raise InputError(f"{predicted} and {true}: their sequences have nothing in common.")
    x, y = torch.tensor(one.positions[pairs[:, 0]]), torch.tensor(other.positions[pairs[:, 1]])
    mask = torch.tensor(one.mask[pairs[:, 0]] * other.mask[pairs[:, 1]])
    known = mask[:, _CA]
    found = metrics.superposed(x[:, _CA], y[:, _CA], known, length=len(other.sequence))
    return Comparison(
        residues=int(known.sum()),
        of=len(other.sequence),
        lddt_ca=float(metrics.lddt(x[:, [_CA]], y[:, [_CA]], mask[:, [_CA]])),
        lddt=float(metrics.lddt(x, y, mask)),
        tm=found.tm,
        gdt_ts=found.gdt_ts,
        rmsd=metrics.rmsd(x[:, _CA], y[:, _CA], known),
    )


@dataclass(frozen=True, eq=False)
class _Chain:
    sequence: str
    positions: np.ndarray  # (N, 37, 3), Å
    mask: np.ndarray  # (N, 37)


def _chain(path: Path) -> _Chain:
    """Its residues that have a C-alpha."""
    text = files.read_text(path)
    if files.suffix(path) in (".cif", ".mmcif"):
        structure = mmcif.parse(text, str(path))
        name, sequence = next(iter(structure.chain_to_seqres.items()))
        positions, mask = mmcif.atom_positions(structure, name)
        letters = np.array(list(sequence))
    else:
        parsed = pdb.parse(text, str(path))
        first = parsed.chain_index == parsed.chain_index[0]
        positions, mask = parsed.positions[first], parsed.mask[first]
        letters = np.array([RESTYPES_WITH_X[kind] for kind in parsed.aatype[first]])
    seen = mask[:, _CA] > 0
    if not seen.any():
        raise InputError(f"{path}: no residue has a C-alpha.")
    return _Chain("".join(letters[seen]), positions[seen], mask[seen])
