"""A predicted structure with its confidences."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """One model's prediction of one protein with one seed. N residues; arrays are NumPy.

    sequence: all residues, chain after chain
    aatype: (N,) int, index into `residues.RESTYPES`, 20 for X
    residue_index: (N,) int, counted from 0; files number residues from 1
    chain_index: (N,) int, counted from 0; None: one chain
    atom_positions: (N, 37, 3) float32, Å, in the order of `residues.ATOM_TYPES`
    atom_mask: (N, 37) float32, 1 where the atom exists
    plddt: (N,) float32, 0 to 100
    predicted_aligned_error: (N, N) float32, Å, expected error of residue j when aligned on i; models with a PAE head
    max_predicted_aligned_error: Å, the largest value that the head can express
    ptm: predicted TM-score, models with a PAE head
    iptm: predicted TM-score of the interfaces, complexes
    change: (recycles,) float, Å, root mean square change of the C-alpha distances by each recycle
    representations: "single" (N, c_s) and "pair" (N, N, c_z), where they were asked for
    atom_positions_by_pass, plddt_by_pass: what each pass ended with, where recycles are saved
    parameters: where the weights came from, for the record
    meaningless: True for synthetic parameters: the structure says nothing about the protein
    feature_seconds, seconds: time taken by the features and by the network
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
    chain_index: np.ndarray | None = None
    predicted_aligned_error: np.ndarray | None = None
    max_predicted_aligned_error: float | None = None
    ptm: float | None = None
    iptm: float | None = None
    change: tuple[float, ...] = ()
    representations: dict[str, np.ndarray] = field(default_factory=dict)
    atom_positions_by_pass: tuple[np.ndarray, ...] = ()
    plddt_by_pass: tuple[np.ndarray, ...] = ()
    parameters: str = ""
    meaningless: bool = False
    feature_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def ranking_confidence(self) -> float:
        """By which AlphaFold ranks: the mean pLDDT, of complexes 0.8 ipTM + 0.2 pTM."""
        if self.iptm is not None and self.ptm is not None:
            return 0.8 * self.iptm + 0.2 * self.ptm
        return float(self.plddt.mean(dtype=np.float64))


WARNING = "This structure is meaningless: it was made with synthetic parameters, which say nothing about the protein."
"""What every file of a meaningless prediction says."""
