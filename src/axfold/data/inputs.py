"""What the user names as input: found, read and checked, before any model is loaded.

Every check ends in one InputError that names the file and the line and says how to mend it.
"""

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from axfold.data import alignments, files
from axfold.data.formats import fasta, table
from axfold.data.formats.lines import locate, short
from axfold.data.query import Alignment, Query
from axfold.data.sequence import file_name, residues
from axfold.errors import InputError
from axfold.residues import RESTYPES, RESTYPES_WITH_X


@dataclass(frozen=True, eq=False)
class _Protein:
    """A protein on its way to a Query."""

    name: str
    aliases: tuple[str, ...]  # names that its alignments may go by
    sequence: str  # upper case, all letters as they were written
    where: str  # file and line
    source: Path | None
    alignments: tuple[Alignment, ...] = ()
    hits: tuple[Path, ...] = ()  # templates that a search found


def read(paths: Sequence[Path], *, msa: Path | None = None, templates: Sequence[Path] = ()) -> list[Query]:
    """Queries of all `paths`, in their order and sorted by file name within folders.

    A path is a FASTA file (each record a protein, named by its header), a CSV file with the columns id and
    sequence, an a3m or Stockholm file (a protein with its alignment, named as the file), or a folder of FASTA and
    alignment files. A folder with the alignments of a search (AlphaFold's msas/, OpenFold's alignments/NAME/) is one
    protein, named as the folder unless a FASTA file lies there; inside another folder it belongs to the protein of
    its name. All but folders may be compressed (.gz).

    `msa` is the alignment of the one protein, or a folder with NAME.a3m, NAME.sto or NAME/ for each. NAME is the
    protein's name as a file's (`sequence.file_name`), its first word, or the FASTA file's name if it holds one record.
    The alignments of a search are stacked as AlphaFold does: UniRef90, BFD, MGnify, of which it takes 10,000, all
    and 501 rows. A protein without alignment is folded from its sequence alone.

    `templates` are kept with every query. With a folder among them and no hhr, the hhr of a protein's search is
    put ahead of them.

    Letters: lower case is upper case. B, J, O, U and Z are folded as X, an unknown residue, with a warning, as
    AlphaFold does; the alignment keeps them. Raises InputError.
    """
    if not paths:
        raise InputError("There is nothing to fold: name a FASTA file, an alignment, or a folder of these.")
    proteins = [protein for path in paths for protein in _proteins(Path(path))]
    _refuse_equal_names(proteins)
    if msa is not None:
        proteins = _with_alignments(proteins, Path(msa))
    _refuse_missing(templates)
    return [_query(protein, tuple(map(Path, templates))) for protein in proteins]


def from_sequence(
    name: str, sequence: str, *, msa: Path | None = None, templates: Sequence[Path] = ()
) -> Query:
    """The query of a sequence, with the alignment `msa` and `templates`, checked as `read` does. Raises InputError."""
    where = f"sequence {short(name)}"
    letters = residues("".join(sequence.split()), where, lambda position: where)
    protein = _Protein(name, (name,), letters, where, None)
    if msa is not None:
        (protein,) = _with_alignments([protein], msa)
    _refuse_missing(templates)
    return _query(protein, tuple(templates))


def _refuse_missing(templates: Sequence[Path]) -> None:
    for path in templates:
        if not os.path.exists(path):
            raise InputError(f"{path}: there is no such file or folder to take templates from.")


def _proteins(path: Path) -> list[_Protein]:
    """Proteins of one input."""
    if files.is_folder(path):
        return _in_folder(path)
    text = files.read_text(path)
    kind = files.kind(path, text)
    if kind in alignments.FORMATS:
        return [_of_alignments(files.stem(path), path, [(path, alignments.parse(path, text))])]
    records = table.parse(text, str(path)) if kind == "csv" else fasta.parse(text, str(path))
    if not records:
        raise InputError(f"{path}: the file holds no sequence.")
    return [_of_record(record, path, text if kind == "fasta" else None, len(records)) for record in records]


def _of_record(record: fasta.Record, path: Path, text: str | None, count: int) -> _Protein:
    """The protein of one of `count` records; `text` is what lines and columns are counted in, if there is any."""
    where = f"{path}, line {record.line}"

    def place(position: int) -> str:
        if text is None:
            return where
        line, column = locate(text, record.line, position)
        return f"{path}, line {line}, column {column}"

    file = (files.stem(path),) if count == 1 else ()
    name = record.description.strip() or "".join(file)
    if not name:
        raise InputError(f"{where}: the sequence has no name; write one.")
    sequence = residues(record.sequence, f"{where}: {short(name)}", place)
    return _Protein(name, (name, name.split()[0], *file), sequence, where, path)


def _of_alignments(name: str, path: Path, found: Sequence[tuple[Path, Alignment]]) -> _Protein:
    """The protein that is the first row of the alignments `found` at `path`."""
    where = str(found[0][0])
    query = found[0][1].sequences[0]
    sequence = residues(query, f"{where}: the first row", lambda position: where)
    return _aligned(_Protein(name, (), sequence, where, path), path, found)


def _in_folder(folder: Path) -> list[_Protein]:
    """Proteins of a folder: one if it is that of a search, else those of its files and folders."""
    for chains in (folder / "chain_id_map.json", folder / "msas" / "chain_id_map.json"):
        if chains.exists():
            raise InputError(f"{chains}: the alignments are of a complex; complexes need a multimer model.")
    proteins = [
        protein
        for path in files.visible(folder)
        if path.is_file() and files.SUFFIXES.get(files.suffix(path)) == "fasta"
        for protein in _proteins(path)
    ]
    if alignments.searched(folder):
        if len(proteins) > 1:
            raise InputError(
                f"{folder}: the folder holds the alignments of one protein and {len(proteins)} sequences "
                f"({proteins[1].where}, for one); leave one."
            )
        found = alignments.read(folder)
        place = folder.resolve()
        name = place.parent.name if place.name == "msas" else place.name
        return [_aligned(protein, folder, found) for protein in proteins] or [
            _of_alignments(name, folder, found)
        ]

    named = alignments.named(folder)
    matched = [(protein, alignments.match(protein.aliases, named)) for protein in proteins]
    proteins = [
        _aligned(protein, path, alignments.read(path)) if path else protein for protein, path in matched
    ]
    taken = {path for _, path in matched}
    proteins += [
        _of_alignments(name, path, alignments.read(path)) for name, path in named.items() if path not in taken
    ]
    if not proteins:
        suffixes = ", ".join(suffix for suffix in files.SUFFIXES if suffix != ".csv")
        raise InputError(
            f"{folder}: the folder holds nothing to fold; it would be files that end in {suffixes}, or those of a "
            "search, such as uniref90_hits.sto."
        )
    return proteins


def _with_alignments(proteins: Sequence[_Protein], msa: Path) -> list[_Protein]:
    """`proteins` with what `msa` holds for each; none may be left without."""
    for protein in proteins:
        if protein.alignments:
            raise InputError(
                f"{protein.where}: {short(protein.name)} has an alignment already; leave out {msa}, or give the "
                "sequence alone."
            )
    if not files.is_folder(msa) or alignments.searched(msa):
        if len(proteins) != 1:
            raise InputError(
                f"{msa}: this is the alignment of one protein, and there are {len(proteins)}. Name a folder that "
                "holds NAME.a3m, NAME.sto or NAME/ for each."
            )
        return [_aligned(proteins[0], msa, alignments.read(msa))]
    named = alignments.named(msa)
    result = []
    for protein in proteins:
        path = alignments.match(protein.aliases, named)
        if path is None:
            stem = file_name(protein.name)
            raise InputError(
                f"{msa}: the folder has no alignment of {short(protein.name)} ({protein.where}); it would be "
                f"{stem}.a3m, {stem}.sto, or a folder {stem}/ with the files of a search."
            )
        result.append(_aligned(protein, path, alignments.read(path)))
    return result


def _aligned(protein: _Protein, path: Path, found: Sequence[tuple[Path, Alignment]]) -> _Protein:
    """`protein` with the alignments `found` at `path`. Raises InputError if one is another protein's."""
    for file, alignment in found:
        _refuse_other_protein(protein, file, alignment.sequences[0])
    stack = tuple(alignment for _, alignment in found)
    return replace(protein, alignments=stack, hits=alignments.template_hits(path))


def _query(protein: _Protein, templates: tuple[Path, ...]) -> Query:
    unknown = sorted(set(protein.sequence) - set(RESTYPES_WITH_X))
    if unknown:
        first = min(map(protein.sequence.index, unknown)) + 1
        warnings.warn(
            f"{protein.where}: {short(protein.name)} has {', '.join(unknown)} (first at residue {first}), which the "
            "network does not know: folded as X, an unknown residue.",
            stacklevel=3,
        )
    if any(files.is_folder(path) for path in templates) and not any(
        path.suffix == ".hhr" for path in templates
    ):
        templates = (*protein.hits, *templates)
    return Query(
        name=protein.name,
        sequence=re.sub(f"[^{RESTYPES}]", "X", protein.sequence),
        alignments=protein.alignments,
        templates=templates,
        source=protein.source,
    )


def _refuse_other_protein(protein: _Protein, path: Path, query: str) -> None:
    """Raises InputError unless `query`, an alignment's first row, is the protein's sequence.

    Search programs replace letters beyond the 20 amino acids: those may differ.
    """
    pairs = zip(protein.sequence, query, strict=False)
    differing = (i for i, (a, b) in enumerate(pairs) if a != b and a in RESTYPES and b in RESTYPES)
    first = next(differing, None)
    if first is not None:
        difference = (
            f"they first differ at residue {first + 1}, {query[first]} in the alignment and "
            f"{protein.sequence[first]} in the sequence"
        )
    elif len(query) != len(protein.sequence):
        difference = "one is the start of the other"
    else:
        return
    raise InputError(
        f"{path}: the alignment is of another protein than {short(protein.name)} ({protein.where}): its first row has "
        f"{len(query)} residues, the sequence {len(protein.sequence)}; {difference}."
    )


def _refuse_equal_names(proteins: Iterable[_Protein]) -> None:
    """Names that differ but would make equal file names are for the output to tell apart."""
    seen: dict[str, _Protein] = {}
    for protein in proteins:
        other = seen.setdefault(protein.name, protein)
        if other is not protein:
            raise InputError(
                f"{protein.where}: the name {short(protein.name)} is taken ({other.where}); rename one."
            )
