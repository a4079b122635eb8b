"""A prediction as a PDB file, laid out as AlphaFold writes it."""

from string import ascii_lowercase, ascii_uppercase, digits
from textwrap import wrap

import numpy as np

from axfold.errors import InputError
from axfold.output.prediction import WARNING, Prediction
from axfold.residues import ATOM_TYPES, RESTYPE_1TO3, RESTYPES_WITH_X

CHAIN_IDS = ascii_uppercase + ascii_lowercase + digits

MAX_CHAINS = len(CHAIN_IDS)
MAX_RESIDUE = 9_999
MAX_ATOM = 99_999  # records that end a chain are numbered too


def write(prediction: Prediction) -> str:
    """The text of a PDB file, with the pLDDT as B factor. Raises InputError for what the format can't hold."""
    return format_atoms(
        aatype=prediction.aatype,
        atom_positions=prediction.atom_positions,
        atom_mask=prediction.atom_mask,
        residue_number=prediction.residue_index + 1,
        chain_index=prediction.chain_index,
        b_factors=np.repeat(prediction.plddt[:, None], len(ATOM_TYPES), axis=1),
        remarks=tuple(wrap(WARNING, 69)) if prediction.meaningless else (),
    )


def why_not(prediction: Prediction) -> str | None:
    """Why the PDB format can't hold the prediction, or None if it can."""
    return _why_not(
        prediction.atom_positions,
        prediction.atom_mask,
        prediction.residue_index + 1,
        _chains(prediction.chain_index, len(prediction.aatype)),
    )


def format_atoms(
    *,
    aatype: np.ndarray,
    atom_positions: np.ndarray,
    atom_mask: np.ndarray,
    residue_number: np.ndarray,
    chain_index: np.ndarray | None,
    b_factors: np.ndarray,
    remarks: tuple[str, ...] = (),
) -> str:
    """The text of a PDB file.

    aatype, residue_number, chain_index: (N,) int; atom_positions: (N, 37, 3) Å; atom_mask, b_factors: (N, 37);
    remarks: lines of at most 69 characters for REMARK 1.
    Raises InputError for what the format can't hold.
    """
    chains = _chains(chain_index, len(aatype))
    if (reason := _why_not(atom_positions, atom_mask, residue_number, chains)) is not None:
        raise InputError(f"A PDB file can't hold {reason}. Use the mmCIF file.")
    lines = [f"REMARK   1 {remark}" for remark in remarks]
    lines.append("MODEL     1")
    serial = 1
    last = len(aatype) - 1
    for i, residue in enumerate(aatype):
        name = RESTYPE_1TO3[RESTYPES_WITH_X[residue]]
        place = f"{CHAIN_IDS[chains[i]]}{residue_number[i]:>4}"
        for atom in np.flatnonzero(atom_mask[i] >= 0.5):
            x, y, z = atom_positions[i, atom]
            label = f" {ATOM_TYPES[atom]:<3}"  # no heavy atom of an amino acid has a name of four letters
            lines.append(
                f"ATOM  {serial:>5} {label} {name} {place}    {x:8.3f}{y:8.3f}{z:8.3f}"
                f"  1.00{b_factors[i, atom]:6.2f}          {ATOM_TYPES[atom][0]:>2}"
            )
            serial += 1
        if i == last or chains[i + 1] != chains[i]:
            lines.append(f"TER   {serial:>5}      {name} {place}")
            serial += 1
    lines += ["ENDMDL", "END"]
    return "".join(f"{line:<80}\n" for line in lines)


def _chains(chain_index: np.ndarray | None, n_res: int) -> np.ndarray:
    return np.zeros(n_res, int) if chain_index is None else chain_index


def _why_not(
    atom_positions: np.ndarray, atom_mask: np.ndarray, residue_number: np.ndarray, chains: np.ndarray
) -> str | None:
    atoms = atom_mask >= 0.5
    records = int(atoms.sum()) + len(np.unique(chains))
    placed = atom_positions[atoms]
    if chains.max() >= MAX_CHAINS:
        return f"{chains.max() + 1} chains: it has letters for {MAX_CHAINS}"
    if residue_number.max() > MAX_RESIDUE:
        return f"residue number {residue_number.max():,}: it has room up to {MAX_RESIDUE:,}"
    if records > MAX_ATOM:
        return f"{records:,} atoms and ends of chains: it has room for {MAX_ATOM:,}"
    if not ((placed > -999.9995) & (placed < 9999.9995)).all():
        return "coordinates beyond -999 or 9999 Å"
    return None
