"""Structures of similar proteins, laid over the query (supplement 1.2.3).

They come from the hits of a search (HHR) with a folder of mmCIF files, or from a user's own mmCIF and PDB files.
A structure that can't be used never ends a run: each one that was looked at gets a TemplateReport.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from axfold import residues
from axfold.data import pairwise
from axfold.data.formats import hhr, mmcif, pdb
from axfold.data.formats.components import ONE_LETTER
from axfold.errors import InputError

GAP = 21  # residue type where a template has no residue
_CA = residues.ATOM_INDEX["CA"]
_NAME = re.compile(r"([a-zA-Z0-9]{4})_([a-zA-Z0-9.]+)")  # PDB code and chain
_STRUCTURES = (".cif", ".mmcif", ".pdb", ".ent")

# AlphaFold's limits; data/templates.py
_MIN_ALIGNED = 0.1  # share of the query that a hit must cover
_MAX_SAME = 0.95  # share of the query that a piece of the query itself may cover
_MIN_RESIDUES = 10  # of a hit
_MIN_IDENTITY = 0.9  # of a hit's sequence and that in its mmCIF file
_MIN_ATOMS = 5  # alanine has five
_MAX_CA_DISTANCE = 150.0  # Å, of neighbours
_MAX_COORDINATE = 1e6  # Å; squares of larger ones are too much for float32
_MAX_EXPECTED = 1.0  # of a user's structure: E-value beyond which chance explains the likeness


@dataclass(frozen=True, eq=False)
class TemplateFeatures:
    """T templates in the N residues of a query.

    aatype: (T, N) int32, index of residues.MSA_INDEX, GAP where the template has no residue
    positions: (T, N, 37, 3) float32, Å
    masks: (T, N, 37) float32, 1 where the atom was seen
    sum_probs: (T,) float32, score that the search gave; 0 for a user's own
    """

    names: tuple[str, ...]  # 2q2k_A
    aatype: np.ndarray
    positions: np.ndarray
    masks: np.ndarray
    sum_probs: np.ndarray

    @classmethod
    def stack(cls, templates: Sequence["Template"], n_res: int) -> "TemplateFeatures":
        """Of any number of templates, none included."""
        n = len(templates)
        return cls(
            names=tuple(template.name for template in templates),
            aatype=np.array([template.aatype for template in templates], np.int32).reshape(n, n_res),
            positions=np.array([t.positions for t in templates], np.float32).reshape(n, n_res, 37, 3),
            masks=np.array([template.mask for template in templates], np.float32).reshape(n, n_res, 37),
            sum_probs=np.array([template.sum_probs for template in templates], np.float32),
        )

    def features(self, limit: int) -> dict[str, np.ndarray]:
        """The template_* features of data/features.py of the first `limit` templates, without the sample axis."""
        return {
            "template_mask": np.ones(len(self.names[:limit]), np.float32),
            "template_aatype": self.aatype[:limit],
            "template_all_atom_positions": self.positions[:limit],
            "template_all_atom_masks": self.masks[:limit],
            "template_sum_probs": self.sum_probs[:limit, None],
        }


@dataclass(frozen=True, eq=False)
class Template:
    """One template: as TemplateFeatures, without the first axis."""

    name: str
    aatype: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    sum_probs: float


@dataclass(frozen=True)
class TemplateReport:
    """What became of a structure."""

    name: str  # the file, or the hit as 2q2k_A
    chain: str | None
    used: bool
    reason: str  # why it is not used, or what to know of one that is; may be empty then
    aligned: tuple[int, int] | None = None  # first and last residue of the query that it covers, from 1
    identity: float | None = None  # share of equal residues among the aligned


@dataclass(frozen=True, eq=False)
class _Chain:
    """A chain of a structure; atoms() gives the (residues, 37, 3) positions and (residues, 37) mask."""

    name: str
    sequence: str
    atoms: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class _Structure:
    chains: tuple[_Chain, ...]
    released: str | None  # YYYY-MM-DD


class _Unusable(Exception):
    """Says why a structure can't be a template."""


def read(
    sequence: str, paths: Iterable[Path], *, limit: int = 4, max_date: date | None = None
) -> tuple[TemplateFeatures, tuple[TemplateReport, ...]]:
    """Up to `limit` templates from what a user named: structure files, folders of them, HHR files.

    With an HHR file among `paths` the folders hold the mmCIF files of its hits, named as their PDB codes; without
    one every structure in them is a template. Structures named one by one come before hits. Nothing raises: what
    can't be read has a report.
    """
    paths = tuple(paths)
    searches = [path for path in paths if path.suffix.lower() == ".hhr"]
    folders = [path for path in paths if path.is_dir()]
    files = [path for path in paths if path not in searches and path not in folders]
    reports = []
    for folder in folders if not searches else ():
        try:
            files += _structures_in(folder)
        except _Unusable as error:
            reports.append(TemplateReport(str(folder), None, False, str(error)))
    templates, told = _from_files(sequence, files, limit, max_date)
    reports += told
    for path in searches:
        try:
            hits = hhr.parse(_text(path), str(path))
        except (InputError, _Unusable) as error:
            reports.append(TemplateReport(str(path), None, False, str(error)))
            continue
        if not hits:
            reports.append(TemplateReport(str(path), None, False, "It lists no hits."))
        more, told = _from_hits(sequence, hits, folders, limit - len(templates), max_date)
        templates += more
        reports += told
    return TemplateFeatures.stack(templates, len(sequence)), tuple(reports)


def from_hits(
    sequence: str,
    hits: Iterable[hhr.TemplateHit],
    folder: Path,
    *,
    limit: int = 4,
    max_date: date | None = None,
) -> tuple[TemplateFeatures, tuple[TemplateReport, ...]]:
    """Up to `limit` templates from the hits of a search, the most probable first.

    Their structures are `folder`/<PDB code>.cif. With `max_date` only structures released until then are used.
    Hits beyond the limit are not looked at and have no report.
    """
    templates, reports = _from_hits(sequence, hits, [folder], limit, max_date)
    return TemplateFeatures.stack(templates, len(sequence)), tuple(reports)


def _from_hits(
    sequence: str,
    hits: Iterable[hhr.TemplateHit],
    folders: Sequence[Path],
    limit: int,
    max_date: date | None,
) -> tuple[list[Template], list[TemplateReport]]:
    templates: list[Template] = []
    reports = []
    for hit in sorted(hits, key=lambda hit: -hit.sum_probs):
        if len(templates) >= limit:
            break
        named = _NAME.match(hit.name)
        code, chain = (named[1].lower(), named[2]) if named else (None, None)
        name = f"{code}_{chain}" if named else hit.name.split(" ")[0]
        try:
            if code is None or chain is None:
                raise _Unusable("The hit's name does not begin with a PDB code and a chain, as in 2q2k_A.")
            template, report = _from_hit(sequence, hit, code, chain, folders, max_date)
        except (_Unusable, InputError) as error:
            reports.append(TemplateReport(name, chain, False, str(error)))
        else:
            templates.append(template)
            reports.append(report)
    return templates, reports


def _from_hit(
    sequence: str,
    hit: hhr.TemplateHit,
    code: str,
    chain_name: str,
    folders: Sequence[Path],
    max_date: date | None,
) -> tuple[Template, TemplateReport]:
    hit_sequence = hit.hit_sequence.replace("-", "")
    _prefilter(sequence, hit, hit_sequence)
    path = next((file for folder in folders if (file := folder / f"{code}.cif").is_file()), None)
    if path is None:
        where = " or ".join(map(str, folders))
        raise _Unusable(
            f"There is no {code}.cif in {where}." if where else "No folder of mmCIF files was given."
        )
    structure = _mmcif(path)
    _check_date(structure, max_date, needed=True)

    pairs = _hit_pairs(sequence, hit)
    found = _find(structure, chain_name, hit_sequence)
    note = ""
    if found is not None:
        chain, offset = found
        letters = "".join(hit_sequence[j] for j in pairs[:, 1])
        pairs[:, 1] += offset
    else:
        chain = _same_chain(structure, chain_name)
        pairs = _realign(pairs, hit_sequence, chain.sequence)
        letters = "".join(chain.sequence[j] for j in pairs[:, 1])
        note = "The sequence in its mmCIF file differs from the hit's, which was aligned to it."
    template = _place(sequence, f"{code}_{chain.name}", chain, pairs, letters, hit.sum_probs)
    return template, _used(f"{code}_{chain_name}", chain.name, note, sequence, pairs, letters)


def _prefilter(sequence: str, hit: hhr.TemplateHit, hit_sequence: str) -> None:
    """What can be said before the structure is read. Raises _Unusable."""
    if hit.aligned_cols <= _MIN_ALIGNED * len(sequence):
        raise _Unusable(f"It covers {hit.aligned_cols} of {len(sequence)} residues, which is too few.")
    if hit_sequence in sequence and len(hit_sequence) > _MAX_SAME * len(sequence):
        raise _Unusable("It is the query itself.")
    if len(hit_sequence) < _MIN_RESIDUES:
        raise _Unusable(f"It has {len(hit_sequence)} residues; fewer than {_MIN_RESIDUES} say too little.")


def _hit_pairs(sequence: str, hit: hhr.TemplateHit) -> np.ndarray:
    """(K, 2) residues of the query, and of the hit's sequence from its first aligned one, in one column."""
    columns = np.array([hit.indices_query, hit.indices_hit]).T
    pairs = columns[(columns >= 0).all(axis=1)]
    if not len(pairs):
        raise _Unusable("No residue of it is aligned.")
    letters = hit.query.replace("-", "")
    start = min(index for index in hit.indices_query if index >= 0)
    if not sequence.startswith(letters, start):
        # The search may have been made with a longer or shorter sequence.
        pairs[:, 0] += sequence.find(letters) - start
        if letters not in sequence:
            raise _Unusable("The search was made with another sequence than the query.")
    pairs[:, 1] -= min(index for index in hit.indices_hit if index >= 0)
    # The parts of a damaged alignment may not follow each other.
    inside = (pairs < [len(sequence), len(hit.hit_sequence.replace("-", ""))]).all(axis=1)
    return pairs[inside & (pairs >= 0).all(axis=1)]


def _find(structure: _Structure, chain_name: str, hit_sequence: str) -> tuple[_Chain, int] | None:
    """The chain that holds the hit's sequence, and where: of that name, of any, then with X as any residue."""
    by_name = sorted(
        structure.chains, key=lambda chain: chain.name != chain_name
    )  # stable: that name comes first
    for chain in by_name:
        if hit_sequence in chain.sequence:
            return chain, chain.sequence.find(hit_sequence)
    like = re.compile("".join("." if letter == "X" else f"[{letter}X]" for letter in hit_sequence))
    for chain in structure.chains:
        if match := like.search(chain.sequence):
            return chain, match.start()
    return None


def _same_chain(structure: _Structure, chain_name: str) -> _Chain:
    """The chain of that name, or the only one there is."""
    chains = {chain.name: chain for chain in structure.chains}
    if chain_name not in chains and len(chains) > 1:
        raise _Unusable(f"Its mmCIF file has no protein chain {chain_name}.")
    return chains.get(chain_name) or structure.chains[0]


def _realign(pairs: np.ndarray, hit_sequence: str, chain_sequence: str) -> np.ndarray:
    """`pairs` with residues of the chain in place of the hit's; PDB70 may hold another version of it."""
    between = pairwise.align(hit_sequence, chain_sequence).pairs
    same = sum(hit_sequence[i] == chain_sequence[j] for i, j in between)
    if same < _MIN_IDENTITY * min(len(hit_sequence), len(chain_sequence)):
        raise _Unusable("The sequence in its mmCIF file is another than the hit's.")
    place = np.full(len(hit_sequence), -1)
    place[between[:, 0]] = between[:, 1]
    moved = np.stack([pairs[:, 0], place[pairs[:, 1]]], axis=-1)
    return moved[moved[:, 1] >= 0]


def _from_files(
    sequence: str, paths: Iterable[Path], limit: int, max_date: date | None
) -> tuple[list[Template], list[TemplateReport]]:
    """The chain most like the query of each file, and of these the `limit` most alike."""
    found: list[tuple[int, Template, TemplateReport]] = []
    reports: list[TemplateReport] = []
    for path in paths:
        try:
            structure = _structure(path)
            _check_date(structure, max_date, needed=False)
        except (InputError, _Unusable) as error:
            reports.append(TemplateReport(str(path), None, False, str(error)))
            continue
        matches = [(pairwise.align(sequence, chain.sequence), chain) for chain in structure.chains]
        best = None
        for match, chain in sorted(matches, key=lambda item: -item[0].score):
            if best is not None:
                reason = f"Chain {best} of this file is more like the query, or as much."
                reports.append(TemplateReport(str(path), chain.name, False, reason))
                continue
            try:
                if match.expected > _MAX_EXPECTED:
                    raise _Unusable(f"Its sequence is not like the query's (E-value {match.expected:.1g}).")
                letters = "".join(chain.sequence[j] for j in match.pairs[:, 1])
                template = _place(sequence, f"{path.stem}_{chain.name}", chain, match.pairs, letters, 0.0)
            except _Unusable as error:
                reports.append(TemplateReport(str(path), chain.name, False, str(error)))
            else:
                best = chain.name
                report = _used(str(path), chain.name, "", sequence, match.pairs, letters)
                found.append((match.score, template, report))
    found.sort(key=lambda item: -item[0])
    for _, _, report in found[limit:]:
        reports.append(
            TemplateReport(report.name, report.chain, False, f"{limit} others are more like the query.")
        )
    return [item[1] for item in found[:limit]], [item[2] for item in found[:limit]] + reports


def _place(
    sequence: str, name: str, chain: _Chain, pairs: np.ndarray, letters: str, sum_probs: float
) -> Template:
    """The chain's atoms in the query's residues. `letters` are the types of the chain's residues in `pairs`."""
    positions, mask = chain.atoms()
    if np.abs(positions).max(initial=0) > _MAX_COORDINATE:
        raise _Unusable(f"It has atoms beyond {_MAX_COORDINATE:.0f} Å.")
    seen = np.flatnonzero(mask[:, _CA])
    far = np.linalg.norm(np.diff(positions[seen, _CA], axis=0), axis=-1) > _MAX_CA_DISTANCE
    if (far & (np.diff(seen) == 1)).any():
        raise _Unusable(
            f"It has neighbours whose C-alpha atoms are more than {_MAX_CA_DISTANCE:.0f} Å apart."
        )
    in_query, in_chain = pairs.T
    template = Template(
        name=name,
        aatype=np.full(len(sequence), GAP, np.int32),
        positions=np.zeros((len(sequence), 37, 3), np.float32),
        mask=np.zeros((len(sequence), 37), np.float32),
        sum_probs=sum_probs,
    )
    template.aatype[in_query] = [residues.MSA_INDEX[letter] for letter in letters]
    template.positions[in_query] = positions[in_chain]
    template.mask[in_query] = mask[in_chain]
    if template.mask.sum() < _MIN_ATOMS:
        raise _Unusable("None of its residues that are aligned to the query was seen.")
    return template


def _used(name: str, chain: str, note: str, sequence: str, pairs: np.ndarray, letters: str) -> TemplateReport:
    same = sum(sequence[i] == letter for i, letter in zip(pairs[:, 0], letters, strict=True))
    aligned = (int(pairs[:, 0].min()) + 1, int(pairs[:, 0].max()) + 1)
    return TemplateReport(name, chain, True, note, aligned, same / len(pairs))


def _check_date(structure: _Structure, max_date: date | None, *, needed: bool) -> None:
    """Raise _Unusable for a structure released after `max_date`, and where that is `needed` but unknown."""
    if max_date is None or (structure.released is None and not needed):
        return
    if structure.released is None or structure.released > max_date.isoformat():
        raise _Unusable(
            f"It was released on {structure.released or 'an unknown date'}, not until {max_date}."
        )


def _structures_in(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _STRUCTURES)
    except OSError as error:
        raise _Unusable(f"It can't be read: {error.strerror}.") from error
    if not found:
        raise _Unusable("There is no structure in it.")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _Unusable(f"It can't be read: {error.strerror}.") from error


def _structure(path: Path) -> _Structure:
    if path.suffix.lower() in (".cif", ".mmcif"):
        return _mmcif(path)
    if path.suffix.lower() in (".pdb", ".ent"):
        return _pdb(path)
    raise _Unusable(f"A template is a file {', '.join(_STRUCTURES)} or .hhr, or a folder of them.")


def _mmcif(path: Path) -> _Structure:
    structure = mmcif.parse(_text(path), str(path))
    return _Structure(
        chains=tuple(
            _Chain(name, sequence, lambda name=name: mmcif.atom_positions(structure, name))  # type: ignore[misc]
            for name, sequence in structure.chain_to_seqres.items()
        ),
        released=structure.header.release_date,
    )


def _pdb(path: Path) -> _Structure:
    """Chains of the residues that were seen: a PDB file's own sequences are not read."""
    structure = pdb.parse(_text(path), str(path))
    letters = np.array([ONE_LETTER.get(name, "") for name in structure.names])
    protein = (letters != "") & (structure.mask[:, _CA] > 0)
    chains = []
    for index, name in enumerate(structure.chain_ids):
        rows = np.flatnonzero(protein & (structure.chain_index == index))
        if len(rows):
            atoms = structure.positions[rows], structure.mask[rows]
            chains.append(_Chain(name, "".join(letters[rows]), lambda atoms=atoms: atoms))  # type: ignore[misc]
    if not chains:
        raise _Unusable("The structure holds no protein chain.")
    return _Structure(tuple(chains), None)
