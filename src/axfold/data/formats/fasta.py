"""FASTA: records of a header line `>name description` and lines of sequence."""

from dataclasses import dataclass

from axfold.data.formats.lines import lines
from axfold.errors import InputError


@dataclass(frozen=True)
class Record:
    """A sequence as it is written, without white space: nothing is said of its letters yet."""

    name: str  # first word of the header; empty where there is none
    description: str  # the whole header behind '>'
    sequence: str
    line: int  # of the header, from 1


def parse(text: str, source: str) -> tuple[Record, ...]:
    """Records of `text`, in its order; empty for a text without any.

    Blank lines are skipped, and so are lines that start with '#' or ';' ahead of the first header (comments, the
    sizes that ColabFold notes). Raises InputError, naming `source` and the line, for a sequence without header.
    """
    headers: list[tuple[str, int]] = []
    sequences: list[list[str]] = []
    for number, line in enumerate(lines(text), 1):
        if line.lstrip().startswith(">"):
            headers.append((line.strip()[1:], number))
            sequences.append([])
        elif sequences:
            sequences[-1].extend(line.split())
        elif line.strip() and not line.startswith(("#", ";")):
            raise InputError(
                f"{source}, line {number}: the text does not start with a header; put a line such as "
                "'>name' ahead of each sequence."
            )
    return tuple(
        Record((description.split() or [""])[0], description, "".join(parts), line)
        for (description, line), parts in zip(headers, sequences, strict=True)
    )
