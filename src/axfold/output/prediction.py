"""A predicted structure with its confidences."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """One model's prediction of one protein with one seed. N residues; arrays are NumPy.

    aatype: (N,) int, index into `residues.RESTYPES`, 20 for X
    residue_index: (N,) int, counted from 0; files number residues from 1
    atom_positions: (N, 37, 3) float32, Å, in the order of `residues.ATOM_TYPES`
    atom_mask: (N, 37) float32, 1 where the atom exists
    plddt: (N,) float32, 0 to 100
    predicted_aligned_error: (N, N) float32, Å, expected error of residue j when aligned on i; models with a PAE head
    max_predicted_aligned_error: Å, the largest value that the head can express
    ptm: predicted TM-score, models with a PAE head
    change: (recycles,) float, Å, root mean square change of the C-alpha distances by each recycle
    representations: "single" (N, c_s) and "pair" (N, N, c_z), where they were asked for
    atom_positions_by_pass: final positions of each pass, where recycles are saved
    parameters: where the weights came from, for the record
    meaningless: True for synthetic parameters: the structure says nothing about the protein
    """

    name: str
    sequence: str
    model: str
    seed: int
    aatype: np.ndarray
    residue_index: np.ndarray
    atom_positions: np.ndarray
    atom_mask: np.ndarray
    plddt: np.ndarray
    predicted_aligned_error: np.ndarray | None = None
    max_predicted_aligned_error: float | None = None
    ptm: float | None = None
    change: tuple[float, ...] = ()
    representations: dict[str, np.ndarray] = field(default_factory=dict)
    atom_positions_by_pass: tuple[np.ndarray, ...] = ()
    plddt_by_pass: tuple[np.ndarray, ...] = ()
    parameters: str = ""
    meaningless: bool = False
    seconds: float = 0.0

    @property
    def ranking_confidence(self) -> float:
        """Mean pLDDT, by which AlphaFold and ColabFold rank monomers."""
        return float(self.plddt.mean())
