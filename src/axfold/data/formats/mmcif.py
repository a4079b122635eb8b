"""mmCIF structures: the sequence of each protein chain, and which of its residues were seen where.

Chains go by the names that their authors gave, as in AlphaFold: PDB codes with a chain (2q2k_A) mean those.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np

from axfold.data.formats.atoms import Atom, Residues, atom37
from axfold.data.formats.components import ONE_LETTER
from axfold.data.formats.lines import integer, number
from axfold.errors import InputError
from axfold.residues import ATOM_INDEX, ATOM_TYPES, RESTYPE_3TO1

_RESOLUTIONS = ("_refine.ls_d_res_high", "_em_3d_reconstruction.resolution", "_reflns.d_resolution_high")
_REQUIRED = (
    "label_comp_id",
    "label_atom_id",
    "label_asym_id",
    "label_seq_id",
    "Cartn_x",
    "Cartn_y",
    "Cartn_z",
)
_OPTIONAL = {  # column of the table of atoms -> the column or the value to take where it is missing
    "auth_asym_id": "label_asym_id",
    "auth_seq_id": "label_seq_id",
    "group_PDB": "ATOM",
    "label_alt_id": "",
    "pdbx_PDB_ins_code": "",
    "pdbx_PDB_model_num": "1",
    "occupancy": "1",
    "B_iso_or_equiv": "0",
}
_CD, _NH1, _NH2 = (ATOM_INDEX[name] for name in ("CD", "NH1", "NH2"))


@dataclass(frozen=True)
class Header:
    """What is said of the experiment."""

    release_date: str | None  # YYYY-MM-DD of the oldest revision
    resolution: float  # Å; 0 where there is none
    method: str  # lower case, several joined by commas


@dataclass(frozen=True)
class Residue:
    """A residue of a chain's sequence; one that was not seen has neither place nor atoms."""

    name: str  # of the component: three letters in most cases
    is_missing: bool
    hetflag: str = " "  # as Biopython names it: ' ' ATOM, 'H_<name>' HETATM, 'W' water
    chain: str | None = None  # the authors' names and numbers
    number: int | None = None
    insertion_code: str | None = None  # ' ' where there is none
    atoms: tuple[Atom, ...] = ()


@dataclass(frozen=True)
class MmcifStructure:
    """The protein chains of a file's first model.

    `seqres_to_structure[chain][i]` is the residue at letter i of `chain_to_seqres[chain]`.
    """

    file_id: str
    header: Header
    chain_to_seqres: Mapping[str, str]
    seqres_to_structure: Mapping[str, tuple[Residue, ...]]
    more_models: bool = False  # than the first


class _Site(NamedTuple):
    """A row of the table of atoms."""

    asym: str  # the file's own name of the chain
    place: str  # number of the residue in the file's own numbering, empty outside of polymers
    residue: str
    hetflag: str
    chain: str
    number: str
    insertion_code: str
    atom: Atom


def parse(text: str, source: str) -> MmcifStructure:
    """The structure in `text`, which `source` names in messages. Its entry's name in lower case is the file id.

    Of several residues in one place the one listed last is taken, of several conformers of an atom the one of
    highest occupancy. A chain of which nothing was seen is left out; of chains that share a name the longest is
    taken. A file without sequence tables, as viewers write them, gets its sequences from the atoms.
    Raises InputError where the file can't be read or holds no protein.
    """
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:  # 'string:<line>:<column> <reason>'
        line = re.match(r"string:(\d+)", str(error))
        where = f"{source}, line {line[1]}" if line else source
        reason = re.sub(r"^string:\S*\s*", "", str(error))
        raise InputError(f"{where}: this is no mmCIF file ({reason}).") from error
    if len(document) == 0:
        raise InputError(f"{source}: this is no mmCIF file (it holds no data).")
    block = document[0]
    sites = _sites(block, source)
    polymers = _polymers(block, source)
    chains = _chains(polymers, sites, source) if polymers else _observed_chains(sites, source)
    if not chains:
        raise InputError(f"{source}: the structure holds no protein chain.")
    entry = _column(block, "_entry.id")
    return MmcifStructure(
        file_id=(entry[0] if entry else block.name).lower(),
        header=_header(block),
        chain_to_seqres={
            chain: "".join(ONE_LETTER.get(residue.name, "X") for residue in residues)
            for chain, residues in chains.items()
        },
        seqres_to_structure=chains,
        more_models=len(set(_column(block, "_atom_site.pdbx_PDB_model_num"))) > 1,
    )


def atom_positions(structure: MmcifStructure, chain: str) -> tuple[np.ndarray, np.ndarray]:
    """(residues, 37, 3) positions in Å and (residues, 37) mask of `chain`, both float32, for each seqres letter.

    Selenium of MSE is the sulphur of MET. Where NH2 of an arginine lies nearer to CD than NH1, the two
    are exchanged: their names were. Raises KeyError for a chain that the structure lacks.
    """
    residues = structure.seqres_to_structure[chain]
    positions = np.zeros((len(residues), len(ATOM_TYPES), 3), np.float32)
    mask = np.zeros((len(residues), len(ATOM_TYPES)), np.float32)
    for index, residue in enumerate(residues):
        atoms = residue.atoms
        if residue.name == "MSE":
            atoms = tuple(atom._replace(name="SD") if atom.name.upper() == "SE" else atom for atom in atoms)
        x, present, _ = atom37(atoms)
        if residue.name == "ARG" and present[[_CD, _NH1, _NH2]].all():
            nh1, nh2 = np.linalg.norm(x[[_NH1, _NH2]] - x[_CD], axis=-1)
            if nh1 > nh2:
                x[[_NH1, _NH2]] = x[[_NH2, _NH1]]
        positions[index], mask[index] = x, present
    return positions, mask


def _column(block: gemmi.cif.Block, name: str) -> list[str]:
    """Values of a tag, unquoted; empty strings for those that are unknown. Empty without the tag."""
    return [gemmi.cif.as_string(value) for value in block.find_values(name)]


def _header(block: gemmi.cif.Block) -> Header:
    resolution = 0.0
    for name in _RESOLUTIONS:
        try:
            resolution = float(_column(block, name)[0])
            break
        except (IndexError, ValueError):
            continue  # the next table may say it
    dates = filter(None, _column(block, "_pdbx_audit_revision_history.revision_date"))
    method = ",".join(_column(block, "_exptl.method")).lower()
    return Header(release_date=min(dates, default=None), resolution=resolution, method=method)


def _polymers(block: gemmi.cif.Block, source: str) -> dict[str, dict[int, str]]:
    """Chain by the file's own name -> number -> component, of polymers with a peptide-like component.

    Where a number is listed with several components (point mutations), the first counts.
    """
    entities: dict[str, dict[int, str]] = {}
    columns = (_column(block, f"_entity_poly_seq.{name}") for name in ("entity_id", "num", "mon_id"))
    for entity, index, component in zip(*columns, strict=False):
        place = integer(index, source, "_entity_poly_seq.num")
        entities.setdefault(entity, {}).setdefault(place, component)

    kinds = dict(zip(_column(block, "_chem_comp.id"), _column(block, "_chem_comp.type"), strict=False))
    peptides = (
        {name for name, kind in kinds.items() if "peptide" in kind.lower()} if kinds else set(RESTYPE_3TO1)
    )
    owners = zip(_column(block, "_struct_asym.id"), _column(block, "_struct_asym.entity_id"), strict=False)
    chains: dict[str, list[str]] = {}
    for asym, entity in owners:
        chains.setdefault(entity, []).append(asym)
    return {
        asym: components
        for entity, components in entities.items()
        if peptides.intersection(components.values())
        for asym in chains.get(entity, ())
    }


def _sites(block: gemmi.cif.Block, source: str) -> list[_Site]:
    """Atoms of the first model."""
    table = {item: _column(block, f"_atom_site.{item}") for item in (*_REQUIRED, *_OPTIONAL)}
    rows = max(map(len, table.values()))
    for item in _REQUIRED:
        if not rows or len(table[item]) != rows:
            raise InputError(
                f"{source}: the structure has no atoms, or their column _atom_site.{item} is missing."
            )
    for item, instead in _OPTIONAL.items():
        if len(table[item]) != rows:
            table[item] = table.get(instead) or [instead] * rows
    sites = []
    for row, values in enumerate(zip(*table.values(), strict=True), 1):
        cell = dict(zip(table, values, strict=True))
        if cell["pdbx_PDB_model_num"] != table["pdbx_PDB_model_num"][0]:
            continue
        where = f"{source}, atom {row}"
        x, y, z = (number(cell[axis], where, axis) for axis in ("Cartn_x", "Cartn_y", "Cartn_z"))
        residue = cell["label_comp_id"]
        hetflag = " "
        if cell["group_PDB"] == "HETATM":
            hetflag = "W" if residue in ("HOH", "WAT") else f"H_{residue}"
        sites.append(
            _Site(
                asym=cell["label_asym_id"],
                place=cell["label_seq_id"],
                residue=residue,
                hetflag=hetflag,
                chain=cell["auth_asym_id"],
                number=cell["auth_seq_id"],
                insertion_code=cell["pdbx_PDB_ins_code"] or " ",
                atom=Atom(
                    name=cell["label_atom_id"],
                    altloc=cell["label_alt_id"],
                    occupancy=number(cell["occupancy"] or "1", where, "occupancy"),
                    position=(x, y, z),
                    b_factor=number(cell["B_iso_or_equiv"] or "0", where, "B_iso_or_equiv"),
                ),
            )
        )
    return sites


def _chains(
    polymers: Mapping[str, Mapping[int, str]], sites: Iterable[_Site], source: str
) -> dict[str, tuple[Residue, ...]]:
    """Residues of the polymers by the authors' chain name, in the order of the polymers."""
    seen: dict[str, Residues[int]] = {asym: Residues() for asym in polymers}
    places: dict[tuple[str, int, str], _Site] = {}
    for site in sites:
        if site.asym in polymers:
            index = integer(site.place, source, f"label_seq_id of a residue of chain {site.chain}")
            seen[site.asym].add(index, site.residue, site.atom)
            places[site.asym, index, site.residue] = site
    chains: dict[str, tuple[Residue, ...]] = {}
    for asym, components in polymers.items():
        residues = []
        for index in range(min(components), max(components) + 1):
            if index in seen[asym]:
                name, atoms = seen[asym][index]
                residues.append(_residue(places[asym, index, name], atoms, source))
            else:
                residues.append(Residue(name=components.get(index, "UNK"), is_missing=True))
        chain = next((residue.chain for residue in residues if residue.chain is not None), None)
        if chain is not None and len(residues) > len(chains.get(chain, ())):
            chains[chain] = tuple(residues)
    return chains


def _observed_chains(sites: Iterable[_Site], source: str) -> dict[str, tuple[Residue, ...]]:
    """Residues with a backbone by chain, where the file doesn't say what its polymers are."""
    seen: dict[str, Residues[tuple[str, str]]] = {}
    places: dict[tuple[str, str, str, str], _Site] = {}
    for site in sites:
        key = (site.number, site.insertion_code)
        seen.setdefault(site.chain, Residues()).add(key, site.residue, site.atom)
        places[site.chain, *key, site.residue] = site
    chains = {}
    for chain, residues in seen.items():
        found = []
        for key in residues:
            name, atoms = residues[key]
            if {"N", "CA", "C"} <= {atom.name for atom in atoms}:
                found.append(_residue(places[chain, *key, name], atoms, source))
        if found:
            chains[chain] = tuple(found)
    return chains


def _residue(site: _Site, atoms: tuple[Atom, ...], source: str) -> Residue:
    return Residue(
        name=site.residue,
        is_missing=False,
        hetflag=site.hetflag,
        chain=site.chain,
        number=integer(site.number, source, f"the number of a residue of chain {site.chain}"),
        insertion_code=site.insertion_code,
        atoms=atoms,
    )
