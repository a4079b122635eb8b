"""PDB files: atoms in the 37 columns of amino acids."""

from dataclasses import dataclass

import numpy as np

from axfold.data.formats.atoms import Atom, Residues, atom37
from axfold.data.formats.lines import integer, lines, number
from axfold.errors import InputError
from axfold.residues import RESTYPE_3TO1, RESTYPE_INDEX


@dataclass(frozen=True, eq=False)
class PdbStructure:
    """Residues of a file's first model that have at least one of the 37 atoms, chain by chain.

    R residues. That is any residue: a water's O is an atom of that name. `names` tell them apart.
    """

    positions: np.ndarray  # (R, 37, 3) float32, Å; 0 where there is no atom
    mask: np.ndarray  # (R, 37) float32
    b_factors: np.ndarray  # (R, 37) float32, Å²
    aatype: np.ndarray  # (R,) int64 in axfold.residues.RESTYPES_WITH_X; X for all but the 20 amino acids
    residue_index: np.ndarray  # (R,) int64, the authors' numbers
    chain_index: np.ndarray  # (R,) int64 into chain_ids
    chain_ids: tuple[str, ...]  # sorted
    names: tuple[str, ...]  # R residue names
    insertion_codes: tuple[str, ...]  # R, ' ' where there is none
    more_models: bool = False  # than the first


def parse(text: str, source: str) -> PdbStructure:
    """The structure in `text`.

    Of several residues in one place the one listed last is taken, of several conformers of an atom the one of
    highest occupancy. Raises InputError, naming `source` and the line, for an atom whose numbers can't be read,
    and for a file without atoms.
    """
    chains: dict[str, Residues[tuple[str, int, str]]] = {}
    more_models = False
    content = lines(text)
    for line_number, line in enumerate(content, 1):
        record = line[:6].rstrip()
        if record in ("ENDMDL", "END"):
            more_models = any(line.startswith("MODEL ") for line in content[line_number:])
            break
        if record not in ("ATOM", "HETATM"):
            continue
        where = f"{source}, line {line_number}"
        if len(line) < 54:
            raise InputError(f"{where}: the atom's line ends before its coordinates do. The file may be cut.")
        residue = line[17:20].strip()
        # Waters and ligands may share the numbers of residues: their kind is a part of the key.
        kind = f"H_{residue}" if record == "HETATM" else " "
        key = (kind, integer(line[22:26], where, "the residue's number"), line[26])
        x, y, z = (number(line[start : start + 8], where, "a coordinate") for start in (30, 38, 46))
        atom = Atom(
            name=line[12:16].strip(),
            altloc=line[16].strip(),
            occupancy=number(line[54:60].strip() or "1", where, "the occupancy"),
            position=(x, y, z),
            b_factor=number(line[60:66].strip() or "0", where, "the B factor"),
        )
        chains.setdefault(line[21], Residues()).add(key, residue, atom)

    names, codes, numbers, owners, columns = [], [], [], [], []
    for chain, residues in chains.items():
        for key in residues:
            name, atoms = residues[key]
            filled = atom37(atoms)
            if filled[1].any():
                names.append(name)
                numbers.append(key[1])
                codes.append(key[2])
                owners.append(chain)
                columns.append(filled)
    if not names:
        raise InputError(f"{source}: the file holds no atoms of a protein.")
    positions, mask, b_factors = (np.stack(arrays) for arrays in zip(*columns, strict=True))
    chain_ids, chain_index = np.unique(owners, return_inverse=True)
    return PdbStructure(
        positions=positions,
        mask=mask,
        b_factors=b_factors,
        aatype=np.array([RESTYPE_INDEX[RESTYPE_3TO1.get(name, "X")] for name in names], np.int64),
        residue_index=np.array(numbers, np.int64),
        chain_index=chain_index.astype(np.int64),
        chain_ids=tuple(chain_ids.tolist()),
        names=tuple(names),
        insertion_codes=tuple(codes),
        more_models=more_models,
    )
