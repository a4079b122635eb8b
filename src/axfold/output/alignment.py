"""The alignment that a protein was folded with, as one."""

from collections.abc import Iterator

import numpy as np

from axfold.data.query import Query


def rows(query: Query) -> list[str]:
    """The query and the aligned sequences in their order, each once."""
    return [sequence for _, sequence, _ in _rows(query)]


def a3m(query: Query) -> str:
    """The alignment as ColabFold keeps it: lengths and copies of the chains on the first line, then a3m.

    Of inserted residues only their number is known, so each is written as x.
    """
    lines = [f"#{len(query.sequence)}\t1"]
    for name, sequence, deletions in _rows(query):
        lines += [f">{name}", _with_insertions(sequence, deletions)]
    return "\n".join(lines) + "\n"


def _with_insertions(sequence: str, deletions: np.ndarray) -> str:
    """The row of an a3m file; `deletions` (columns,) counts the residues inserted before each column."""
    pieces = []
    start = 0
    for column in np.flatnonzero(deletions).tolist():
        pieces += [sequence[start:column], "x" * deletions[column]]
        start = column
    return "".join((*pieces, sequence[start:]))


def _rows(query: Query) -> Iterator[tuple[str, str, np.ndarray]]:
    """Description, aligned sequence and inserted residues of each row; later rows that repeat one are left out."""
    yield (
        "101",
        query.sequence,
        np.zeros(len(query.sequence), np.int32),
    )  # ColabFold's name of the first chain
    seen = {query.sequence}
    for alignment in query.alignments:
        for name, sequence, deletions in zip(
            alignment.descriptions, alignment.sequences, alignment.deletions, strict=True
        ):
            if sequence not in seen:
                seen.add(sequence)
                yield name, sequence, deletions
