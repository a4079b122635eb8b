"""Stockholm alignments, as HMMER writes them: parsing, and the edits that shorten one before a template search.

The edits keep the text's layout, since the search programs read it again.
"""

import re
from collections.abc import Container, Iterator
from itertools import compress, groupby

import numpy as np

from axfold.data.formats.lines import lines, short, shown
from axfold.data.query import Alignment
from axfold.errors import InputError

_ILLEGAL = re.compile(r"[^A-Za-z.~_-]")
_TO_ALIGNED = str.maketrans("._~abcdefghijklmnopqrstuvwxyz", "---ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def parse(text: str, source: str) -> Alignment:
    """The alignment in `text`, its columns those in which the first row has a residue; empty without rows.

    Dots are gaps and lower-case letters residues. Raises InputError, naming `source` and the line, for a line that
    isn't `name letters`, for letters that stand for no residue, rows of different lengths, and a second alignment.
    """
    rows = _rows(text, source)
    sequences = []
    deletions = np.zeros((0, 0), np.int32)
    for number, (name, (row, line)) in enumerate(rows.items()):
        if bad := _ILLEGAL.search(row):
            raise InputError(
                f"{source}, line {line}: {shown(bad[0])} at column {bad.start() + 1} of row {short(name)} stands for "
                "no residue; a Stockholm alignment holds letters, '-' and '.'."
            )
        letters = np.frombuffer(row.translate(_TO_ALIGNED).encode(), np.uint8)
        residues = letters != ord("-")
        if number == 0:
            kept, width = np.flatnonzero(residues), len(letters)
            deletions = np.zeros((len(rows), len(kept)), np.int32)
        if len(letters) != width:
            raise InputError(
                f"{source}, line {line}: row {short(name)} has {len(letters)} columns in all and the first row "
                f"{width}. The file may be cut."
            )
        residues[kept] = False
        deletions[number] = np.diff(np.cumsum(residues)[kept], prepend=0)
        sequences.append(letters[kept].tobytes().decode())
    return Alignment(tuple(sequences), deletions, tuple(rows))


def truncate(text: str, rows: int) -> str:
    """`text` with its first `rows` sequences, without annotation but descriptions and the reference line."""
    names: dict[str, None] = {}  # in their order
    for line in filter(_is_row, lines(text)):
        names[line.split(maxsplit=1)[0]] = None
        if len(names) >= rows:
            break
    return "".join(f"{line}\n" for line in _kept_lines(text, names))


def deduplicate(text: str, source: str) -> str:
    """`text` without rows that equal an earlier one in the columns where the first row has a residue.

    Annotation is kept as by `truncate`. Raises InputError as `parse` does for a line that isn't `name letters`.
    """
    rows = {name: row for name, (row, _) in _rows(text, source).items()}
    columns = [letter != "-" for letter in next(iter(rows.values()), "")]
    first: dict[str, str] = {}  # letters -> the first row that has them
    for name, row in rows.items():
        first.setdefault("".join(compress(row, columns)), name)
    return "".join(f"{line}\n" for line in _kept_lines(text, set(first.values())))


def remove_empty_columns(text: str) -> str:
    """`text` without the columns that are gaps in all rows of their block; blocks stand between blank lines.

    No line end follows the last line; a block of which nothing is left becomes empty lines.
    """
    done: list[str] = []
    for _, group in groupby(lines(text), key=lambda line: not line.strip()):
        block = list(group)
        rows = [line.rpartition(" ")[2] for line in block if _is_row(line)]
        kept = [any(letter != "-" for letter in column) for column in zip(*rows, strict=False)]
        for line in block:
            if rows and (_is_row(line) or line.startswith(("#=GC", "#=GR"))):
                prefix, _, columns = line.rpartition(" ")
                line = f"{prefix} {''.join(compress(columns, kept))}" if any(kept) else ""
            done.append(line)
    return "\n".join(done)


def to_a3m(text: str, source: str, rows: int | None = None) -> str:
    """The first `rows` sequences (None: all) as a3m, with their descriptions."""
    descriptions: dict[str, str] = {}
    for line in lines(text):
        if line.startswith("#=GS"):
            _, name, kind, *rest = [*line.split(maxsplit=3), "", ""]
            if kind == "DE":
                descriptions[name] = rest[0]
    chosen = list(_rows(text, source).items())[:rows]
    query = chosen[0][1][0] if chosen else ""
    return "".join(
        f">{name} {descriptions.get(name, '')}\n{_insertions_lower(row, query)}\n"
        for name, (row, _) in chosen
    )


def _insertions_lower(row: str, query: str) -> str:
    """A row of an a3m: lower case where the query has a gap, nothing where both have."""
    pairs = zip(row.replace(".", "-"), query.replace(".", "-"), strict=False)
    return "".join(a if q != "-" else a.lower() for a, q in pairs if (a, q) != ("-", "-"))


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("#", "//"))


def _rows(text: str, source: str) -> dict[str, tuple[str, int]]:
    """Name -> its letters from all blocks, and the line where the row starts."""
    parts: dict[str, list[str]] = {}
    starts: dict[str, int] = {}
    ended = False
    for number, line in enumerate(lines(text), 1):
        if ended and line.strip():
            raise InputError(
                f"{source}, line {number}: something follows the end mark '//'. "
                "Give one alignment a file: split the file here."
            )
        ended = ended or line.startswith("//")
        if not _is_row(line):
            continue
        fields = line.split()
        if len(fields) != 2:
            raise InputError(
                f"{source}, line {number}: a row of a Stockholm alignment is a name and its letters, and this has "
                f"{len(fields)} word{'s' * (len(fields) > 1)}. The file may be cut or of another format."
            )
        name, letters = fields
        parts.setdefault(name, []).append(letters)
        starts.setdefault(name, number)
    return {name: ("".join(letters), starts[name]) for name, letters in parts.items()}


def _kept_lines(text: str, names: Container[str]) -> Iterator[str]:
    """Lines of the rows called `names`, their descriptions, the reference lines and what marks start and end."""
    for line in lines(text):
        words = line.split(maxsplit=2)
        if not words or line.startswith(("//", "# STOCKHOLM", "#=GC RF")):
            yield line
        elif line.startswith("#=GS"):
            if len(words) > 1 and words[1] in names:
                yield line
        elif not line.startswith("#") and words[0] in names:
            yield line
