"""A3M alignments: FASTA whose lower-case letters are residues that the query, the first record, lacks."""

import re

import numpy as np

from axfold.data.formats import fasta
from axfold.data.formats.lines import locate, short, shown
from axfold.data.query import Alignment
from axfold.errors import InputError

_LOWER = b"abcdefghijklmnopqrstuvwxyz"
_ILLEGAL = re.compile(r"[^A-Za-z.-]")
_NOT_QUERY = re.compile(r"[a-z-]")
_ANNOTATIONS = {"ss_pred", "ss_conf", "ss_dssp", "sa_dssp"}  # rows HH-suite adds: states, not residues


def parse(text: str, source: str) -> Alignment:
    """The alignment in `text`; without records it has no rows.

    Dots, which pad insertions in a2m, are dropped, and so are HH-suite's rows of secondary structure. Insertions
    behind the last column belong to no column. Raises InputError, naming `source`, line and row, for letters that
    stand for no residue, gaps or lower case in the query, rows of another length than the query, and alignments of
    several chains (ColabFold).
    """
    _refuse_complex(text, source)
    records = [record for record in fasta.parse(text, source) if record.name not in _ANNOTATIONS]
    sequences = []
    deletions = np.zeros((0, 0), np.int32)
    for row, record in enumerate(records):
        if bad := _ILLEGAL.search(record.sequence):
            line, column = locate(text, record.line, bad.start())
            raise InputError(
                f"{source}, line {line}, column {column}: {shown(bad[0])} in row {row + 1} ({short(record.name)}) "
                "stands for no residue; an a3m holds letters and '-'."
            )
        letters = record.sequence.replace(".", "").encode()
        aligned = letters.translate(None, _LOWER)
        if row == 0 and (bad := _NOT_QUERY.search(record.sequence)):
            line, column = locate(text, record.line, bad.start())
            raise InputError(
                f"{source}, line {line}, column {column}: the first row, {short(record.name)}, is the query, all "
                f"of whose residues are columns in upper case, and this is {shown(bad[0])}. Put the whole query first."
            )
        if row == 0:
            deletions = np.zeros((len(records), len(aligned)), np.int32)
        if len(aligned) != deletions.shape[1]:
            raise InputError(
                f"{source}, line {record.line}: row {row + 1} ({short(record.name)}) has {len(aligned)} columns and "
                f"the query {deletions.shape[1]}; count upper-case letters and '-'. The row may be cut or wrong."
            )
        if len(aligned) < len(letters):
            columns = np.flatnonzero(np.frombuffer(letters, np.uint8) < ord("a"))
            deletions[row] = np.diff(columns, prepend=-1) - 1
        sequences.append(aligned.decode())
    return Alignment(tuple(sequences), deletions, tuple(record.description for record in records))


def _refuse_complex(text: str, source: str) -> None:
    """ColabFold's first line: lengths of the chains and how often each occurs, `#53,40<tab>1,2`."""
    sizes = re.match(r"#([\d,]+)\t([\d,]+)\s*$", text.partition("\n")[0])
    if sizes and (sizes[1].count(",") or sizes[2] != "1"):
        raise InputError(
            f"{source}, line 1: the alignment is of a complex (chains of {sizes[1]} residues, {sizes[2]} copies); "
            "complexes need a multimer model. Give one chain's alignment."
        )
