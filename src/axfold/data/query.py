"""What is known of a protein before any feature is made."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Alignment:
    """Sequences aligned to a query: the first row is the query, the columns are its residues.

    `sequences` hold upper-case letters and '-', all of one length. `deletions` (rows, columns; int32)
    counts the residues that a row has just before a column and the query lacks (lower-case letters in a3m).
    """

    sequences: tuple[str, ...]
    deletions: np.ndarray
    descriptions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Query:
    """One protein to fold.

    `sequence` is upper case and holds the 20 amino acids and X. `alignments` are stacked in their order,
    rows that occur twice are dropped later; without any the prediction uses the single sequence.
    `templates` are the files or folders the user named for it; `data/templates.py` reads them.
    """

    name: str
    sequence: str
    alignments: tuple[Alignment, ...] = ()
    templates: tuple[Path, ...] = field(default=())
    source: Path | None = None
