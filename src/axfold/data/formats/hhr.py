"""HHR: the hits that HHsearch and HHblits list, each with its alignment of query and template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from axfold.data.formats.lines import integer, lines, number
from axfold.errors import InputError

_SUMMARY = re.compile(r"Probab=.*Aligned_cols=(\d{1,9})\s+Identities=.*Sum_probs=(\S+)")
_ALIGNED = re.compile(r"\s*(\d{1,9}) ([A-Z-]+)\s+(\d{1,9}) \(\d+\)")
_NAME_END = 17  # 'Q ', the name cut or padded to 14, a space
_NOT_A_SEQUENCE = ("ss_dssp", "ss_pred", "Consensus")


@dataclass(frozen=True)
class TemplateHit:
    """One template, aligned to the query.

    `query` and `hit_sequence` are of one length, with '-' for gaps; `indices_query` and `indices_hit` say which
    residue (from 0) of the whole sequence stands in each column, -1 at a gap.
    """

    index: int  # from 1, as listed
    name: str  # the whole line behind '>'; its first word is PDB code _ chain
    aligned_cols: int
    sum_probs: float
    query: str
    hit_sequence: str
    indices_query: tuple[int, ...]
    indices_hit: tuple[int, ...]


def parse(text: str, source: str) -> tuple[TemplateHit, ...]:
    """Hits of `text` in its order, which may be none. Raises InputError, naming `source` and line, for a cut one."""
    content = lines(text)
    starts = [number for number, line in enumerate(content) if line.startswith("No ")]
    return tuple(
        _hit(content[start:end], start + 1, source)
        for start, end in zip(starts, [*starts[1:], len(content)], strict=False)
    )


def _hit(block: Sequence[str], line: int, source: str) -> TemplateHit:
    """The hit in the lines from `No <index>` on, the first of which has number `line`."""
    where = f"{source}, line {line}"
    index = integer(block[0][2:], where, "the number of the hit")
    summary = _SUMMARY.match(block[2]) if len(block) > 2 else None
    if summary is None or not block[1].startswith(">"):
        raise InputError(
            f"{where}: hit {index} lacks its name or the line 'Probab=... Aligned_cols=... Sum_probs=...'. "
            "The file may be cut: run the search again."
        )
    query, query_indices = _aligned(block, "Q ", line, source)
    hit, hit_indices = _aligned(block, "T ", line, source)
    if not query or len(query) != len(hit):
        raise InputError(
            f"{where}: hit {index} aligns {len(query)} columns of the query with {len(hit)} of the template. "
            "The file may be cut: run the search again."
        )
    return TemplateHit(
        index=index,
        name=block[1][1:],
        aligned_cols=int(summary[1]),
        sum_probs=number(summary[2], where, "Sum_probs"),
        query=query,
        hit_sequence=hit,
        indices_query=query_indices,
        indices_hit=hit_indices,
    )


def _aligned(block: Sequence[str], mark: str, start: int, source: str) -> tuple[str, tuple[int, ...]]:
    """One side of the alignment: its letters, and the residue in each column."""
    letters, indices = [], []
    for offset, line in enumerate(block[3:], start + 3):
        if not line.startswith(mark) or line[2:].startswith(_NOT_A_SEQUENCE):
            continue
        match = _ALIGNED.match(line[_NAME_END:])
        residues = match and len(match[2].replace("-", ""))
        if match is None or int(match[3]) - int(match[1]) + 1 != residues:
            raise InputError(
                f"{source}, line {offset}: this is not 'first residue, letters, last residue (length)', or they "
                "don't agree. The file may be cut: run the search again."
            )
        residue = int(match[1]) - 1
        for letter in match[2]:
            indices.append(-1 if letter == "-" else residue)
            residue += letter != "-"
        letters.append(match[2])
    return "".join(letters), tuple(indices)
