"""The 20 amino acids: their letters, atoms and ideal geometry.

Written once are the atoms of each residue (`_ATOMS`) and which side-chain torsions repeat every half turn;
every other table is derived. Residue types are indexed in the alphabetical order of their three-letter codes;
20 is an unknown residue, which has no atoms. Numbers: AlphaFold 2's `residue_constants` (Apache-2.0);
supplement Tables 2 and 3, Algorithm 24.

Rigid groups: 0 backbone, 1 pre-omega, 2 phi, 3 psi, 4 to 7 chi1 to chi4. A group turns about the x axis of
its frame, which is the bond that ends in the group's origin. The first atom of a chi group lies in the xy
plane of its frame, with positive y, and defines the torsion.
"""

from string import ascii_uppercase

import numpy as np

# fmt: off
# Heavy atoms in the order of the 14-atom layout: name, rigid group, position in the group's frame (Å).
_ATOMS: dict[str, tuple[tuple[str, int, float, float, float], ...]] = {
    "ALA": (
        ("N",   0, -0.525,  1.363,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.526,  0.000,  0.000), ("O",   3,  0.627,  1.062,  0.000),
        ("CB",  0, -0.529, -0.774, -1.205),
    ),
    "ARG": (
        ("N",   0, -0.524,  1.362,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.525,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.524, -0.778, -1.209), ("CG",  4,  0.616,  1.390,  0.000),
        ("CD",  5,  0.564,  1.414,  0.000), ("NE",  6,  0.539,  1.357,  0.000),
        ("CZ",  7,  0.758,  1.093,  0.000), ("NH1", 7,  0.206,  2.301,  0.000),
        ("NH2", 7,  2.078,  0.978,  0.000),
    ),
    "ASN": (
        ("N",   0, -0.536,  1.357,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.526,  0.000,  0.000), ("O",   3,  0.625,  1.062,  0.000),
        ("CB",  0, -0.531, -0.787, -1.200), ("CG",  4,  0.584,  1.399,  0.000),
        ("OD1", 5,  0.633,  1.059,  0.000), ("ND2", 5,  0.593, -1.188,  0.001),
    ),
    "ASP": (
        ("N",   0, -0.525,  1.362,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.527,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.526, -0.778, -1.208), ("CG",  4,  0.593,  1.398,  0.000),
        ("OD1", 5,  0.610,  1.091,  0.000), ("OD2", 5,  0.592, -1.101, -0.003),
    ),
    "CYS": (
        ("N",   0, -0.522,  1.362,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.524,  0.000,  0.000), ("O",   3,  0.625,  1.062,  0.000),
        ("CB",  0, -0.519, -0.773, -1.212), ("SG",  4,  0.728,  1.653,  0.000),
    ),
    "GLN": (
        ("N",   0, -0.526,  1.361,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.526,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.525, -0.779, -1.207), ("CG",  4,  0.615,  1.393,  0.000),
        ("CD",  5,  0.587,  1.399,  0.000), ("OE1", 6,  0.634,  1.060,  0.000),
        ("NE2", 6,  0.593, -1.189, -0.001),
    ),
    "GLU": (
        ("N",   0, -0.528,  1.361,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.526,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.526, -0.781, -1.207), ("CG",  4,  0.615,  1.392,  0.000),
        ("CD",  5,  0.600,  1.397,  0.000), ("OE1", 6,  0.607,  1.095,  0.000),
        ("OE2", 6,  0.589, -1.104, -0.001),
    ),
    "GLY": (
        ("N",   0, -0.572,  1.337,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.517,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
    ),
    "HIS": (
        ("N",   0, -0.527,  1.360,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.525,  0.000,  0.000), ("O",   3,  0.625,  1.063,  0.000),
        ("CB",  0, -0.525, -0.778, -1.208), ("CG",  4,  0.600,  1.370,  0.000),
        ("ND1", 5,  0.744,  1.160,  0.000), ("CD2", 5,  0.889, -1.021,  0.003),
        ("CE1", 5,  2.030,  0.851,  0.002), ("NE2", 5,  2.145, -0.466,  0.004),
    ),
    "ILE": (
        ("N",   0, -0.493,  1.373,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.527,  0.000,  0.000), ("O",   3,  0.627,  1.062,  0.000),
        ("CB",  0, -0.536, -0.793, -1.213), ("CG1", 4,  0.534,  1.437,  0.000),
        ("CG2", 4,  0.540, -0.785, -1.199), ("CD1", 5,  0.619,  1.391,  0.000),
    ),
    "LEU": (
        ("N",   0, -0.520,  1.363,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.525,  0.000,  0.000), ("O",   3,  0.625,  1.063,  0.000),
        ("CB",  0, -0.522, -0.773, -1.214), ("CG",  4,  0.678,  1.371,  0.000),
        ("CD1", 5,  0.530,  1.430,  0.000), ("CD2", 5,  0.535, -0.774,  1.200),
    ),
    "LYS": (
        ("N",   0, -0.526,  1.362,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.526,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.524, -0.778, -1.208), ("CG",  4,  0.619,  1.390,  0.000),
        ("CD",  5,  0.559,  1.417,  0.000), ("CE",  6,  0.560,  1.416,  0.000),
        ("NZ",  7,  0.554,  1.387,  0.000),
    ),
    "MET": (
        ("N",   0, -0.521,  1.364,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.525,  0.000,  0.000), ("O",   3,  0.625,  1.062,  0.000),
        ("CB",  0, -0.523, -0.776, -1.210), ("CG",  4,  0.613,  1.391,  0.000),
        ("SD",  5,  0.703,  1.695,  0.000), ("CE",  6,  0.320,  1.786,  0.000),
    ),
    "PHE": (
        ("N",   0, -0.518,  1.363,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.524,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.525, -0.776, -1.212), ("CG",  4,  0.607,  1.377,  0.000),
        ("CD1", 5,  0.709,  1.195,  0.000), ("CD2", 5,  0.706, -1.196,  0.000),
        ("CE1", 5,  2.102,  1.198,  0.000), ("CE2", 5,  2.098, -1.201,  0.000),
        ("CZ",  5,  2.794, -0.003, -0.001),
    ),
    "PRO": (
        ("N",   0, -0.566,  1.351,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.527,  0.000,  0.000), ("O",   3,  0.621,  1.066,  0.000),
        ("CB",  0, -0.546, -0.611, -1.293), ("CG",  4,  0.382,  1.445,  0.000),
        ("CD",  5,  0.477,  1.424,  0.000),
    ),
    "SER": (
        ("N",   0, -0.529,  1.360,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.525,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.518, -0.777, -1.211), ("OG",  4,  0.503,  1.325,  0.000),
    ),
    "THR": (
        ("N",   0, -0.517,  1.364,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.526,  0.000,  0.000), ("O",   3,  0.626,  1.062,  0.000),
        ("CB",  0, -0.516, -0.793, -1.215), ("OG1", 4,  0.472,  1.353,  0.000),
        ("CG2", 4,  0.550, -0.718, -1.228),
    ),
    "TRP": (
        ("N",   0, -0.521,  1.363,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.525,  0.000,  0.000), ("O",   3,  0.627,  1.062,  0.000),
        ("CB",  0, -0.523, -0.776, -1.212), ("CG",  4,  0.609,  1.370,  0.000),
        ("CD1", 5,  0.824,  1.091,  0.000), ("CD2", 5,  0.854, -1.148, -0.005),
        ("NE1", 5,  2.140,  0.690, -0.004), ("CE2", 5,  2.186, -0.678, -0.007),
        ("CE3", 5,  0.622, -2.530, -0.007), ("CZ2", 5,  3.283, -1.543, -0.011),
        ("CZ3", 5,  1.715, -3.389, -0.011), ("CH2", 5,  3.028, -2.890, -0.013),
    ),
    "TYR": (
        ("N",   0, -0.522,  1.362,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.524,  0.000,  0.000), ("O",   3,  0.627,  1.062,  0.000),
        ("CB",  0, -0.522, -0.776, -1.213), ("CG",  4,  0.607,  1.382,  0.000),
        ("CD1", 5,  0.716,  1.195,  0.000), ("CD2", 5,  0.713, -1.194, -0.001),
        ("CE1", 5,  2.107,  1.200, -0.002), ("CE2", 5,  2.104, -1.201, -0.003),
        ("CZ",  5,  2.791, -0.001, -0.003), ("OH",  5,  4.168, -0.002, -0.005),
    ),
    "VAL": (
        ("N",   0, -0.494,  1.373,  0.000), ("CA",  0,  0.000,  0.000,  0.000),
        ("C",   0,  1.527,  0.000,  0.000), ("O",   3,  0.627,  1.062,  0.000),
        ("CB",  0, -0.533, -0.795, -1.213), ("CG1", 4,  0.540,  1.429,  0.000),
        ("CG2", 4,  0.533, -0.776,  1.203),
    ),
}

RESTYPES = "ARNDCQEGHILKMFPSTWYV"
"""One-letter codes of the residues above, in their order."""

ATOM_TYPES = (
    "N", "CA", "C", "CB", "O", "CG", "CG1", "CG2", "OG", "OG1", "SG", "CD", "CD1", "CD2", "ND1", "ND2",
    "OD1", "OD2", "SD", "CE", "CE1", "CE2", "CE3", "NE", "NE1", "NE2", "OE1", "OE2", "CH2", "NH1", "NH2",
    "OH", "CZ", "CZ2", "CZ3", "NZ", "OXT",
)
"""The 37-atom layout: one column for every name a heavy atom can have."""
# fmt: on

# A half turn of these torsions exchanges equal atoms (supplement Table 3).
_PI_PERIODIC = (("ASP", 1), ("GLU", 2), ("PHE", 1), ("TYR", 1))
_EXCHANGED = {
    "ASP": (("OD1", "OD2"),),
    "GLU": (("OE1", "OE2"),),
    "PHE": (("CD1", "CD2"), ("CE1", "CE2")),
    "TYR": (("CD1", "CD2"), ("CE1", "CE2")),
}

RESTYPES_WITH_X = RESTYPES + "X"
RESTYPE_INDEX = {letter: RESTYPES_WITH_X.find(letter) % 21 for letter in ascii_uppercase}
"""Index of every capital letter; those that are no amino acid have the index of X."""
RESTYPE_1TO3 = dict(zip(RESTYPES_WITH_X, (*_ATOMS, "UNK"), strict=True))
RESTYPE_3TO1 = {name: letter for letter, name in RESTYPE_1TO3.items()}

_MSA_ALIASES = {"B": "D", "J": "X", "O": "X", "U": "C", "Z": "E"}  # as HHblits reads them
MSA_INDEX = RESTYPE_INDEX | {letter: RESTYPE_INDEX[same] for letter, same in _MSA_ALIASES.items()} | {"-": 21}
"""Index of every character of an alignment: as RESTYPE_INDEX, but ambiguous letters and selenocysteine count
as a similar amino acid, and 21 is a gap."""

ATOM_INDEX = {name: index for index, name in enumerate(ATOM_TYPES)}
ATOM14_NAMES = tuple(
    (*(atom[0] for atom in atoms), *[""] * (14 - len(atoms))) for atoms in (*_ATOMS.values(), ())
)
"""(21, 14) atom names of the 14-atom layout; empty where a residue has fewer atoms."""

ATOM14_MASK = np.array([[name != "" for name in names] for names in ATOM14_NAMES], np.float32)
"""(21, 14) 1 where the residue has the atom."""
ATOM14_TO_ATOM37 = np.array([[ATOM_INDEX.get(name, 0) for name in names] for names in ATOM14_NAMES], np.int64)
"""(21, 14) column of the 37-atom layout that holds each atom; 0 where there is none."""
ATOM37_TO_ATOM14 = np.array(
    [[names.index(atom) if atom in names else 0 for atom in ATOM_TYPES] for names in ATOM14_NAMES], np.int64
)
"""(21, 37) column of the 14-atom layout that holds each atom; 0 where the residue lacks it."""
ATOM37_MASK = np.array([[atom in names for atom in ATOM_TYPES] for names in ATOM14_NAMES], np.float32)
"""(21, 37) 1 where the residue has the atom; never the OXT of a chain's end."""

ATOM14_GROUP = np.zeros((21, 14), np.int64)
"""(21, 14) rigid group of each atom; 0 where there is none."""
ATOM14_POSITIONS = np.zeros((21, 14, 3), np.float32)
"""(21, 14, 3) Å, each atom in the frame of its rigid group."""
for _residue, _atoms in enumerate(_ATOMS.values()):
    for _column, (_, _group, *_position) in enumerate(_atoms):
        ATOM14_GROUP[_residue, _column] = _group
        ATOM14_POSITIONS[_residue, _column] = _position


def _chi_atoms() -> np.ndarray:
    """(21, 4, 4) atom37 columns of the four atoms that define each chi torsion; 0 where there is none.

    A side chain's axis runs through N, CA, CB and the first atom of each chi group; chi k is the torsion of
    four neighbours on it.
    """
    chi = np.zeros((21, 4, 4), np.int64)
    for residue, atoms in enumerate(_ATOMS.values()):
        first = {group: name for name, group, *_ in reversed(atoms) if group >= 4}
        axis = [ATOM_INDEX[name] for name in ("N", "CA", "CB", *(first[group] for group in sorted(first)))]
        for k in range(len(first)):
            chi[residue, k] = axis[k : k + 4]
    return chi


CHI_ATOMS = _chi_atoms()
CHI_MASK = (CHI_ATOMS[..., 3] > 0).astype(np.float32)
"""(21, 4) 1 where the residue has the torsion."""
CHI_PI_PERIODIC = np.zeros((21, 4), np.float32)
"""(21, 4) 1 where a half turn of the torsion exchanges equal atoms."""
for _name, _chi in _PI_PERIODIC:
    CHI_PI_PERIODIC[RESTYPE_INDEX[RESTYPE_3TO1[_name]], _chi] = 1
ATOM14_EXCHANGED = np.tile(np.arange(14), (21, 1))
"""(21, 14) column of the equal atom whose name each atom could bear as well (supplement Table 3), or its own."""
for _name, _pairs in _EXCHANGED.items():
    for _one, _other in _pairs:
        _type = RESTYPE_INDEX[RESTYPE_3TO1[_name]]
        _columns = [ATOM14_NAMES[_type].index(_atom) for _atom in (_one, _other)]
        ATOM14_EXCHANGED[_type, _columns] = _columns[::-1]


def _frame(x: np.ndarray, xy: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(4, 4) transform of a frame at `origin` with its x axis along `x` and `xy` in its xy plane."""
    ex = x / np.linalg.norm(x)
    ey = xy - (xy @ ex) * ex
    ey /= np.linalg.norm(ey)
    frame = np.eye(4)
    frame[:3] = np.stack([ex, ey, np.cross(ex, ey), origin], axis=1)
    return frame


def _group_frames() -> np.ndarray:
    """(21, 8, 4, 4) frames of the rigid groups at torsion 0, relative to their parent.

    The parent of chi2 to chi4 is the group before, that of all others the backbone. Identity for the backbone
    and pre-omega, zero for groups that the residue lacks.
    """
    frames = np.zeros((21, 8, 4, 4), np.float32)
    for residue, atoms in enumerate(_ATOMS.values()):
        at = {name: np.array([x, y, z]) for name, _, x, y, z in atoms}
        frames[residue, :2] = np.eye(4)
        frames[residue, 2] = _frame(at["N"] - at["CA"], np.array([1.0, 0, 0]), at["N"])
        frames[residue, 3] = _frame(at["C"] - at["CA"], at["CA"] - at["N"], at["C"])
        for k in range(np.count_nonzero(CHI_MASK[residue])):
            a, b, c, _ = (at[ATOM_TYPES[atom]] for atom in CHI_ATOMS[residue, k])
            # From chi2 on b is the origin of the parent's frame and a lies on its negative x axis.
            frames[residue, 4 + k] = (
                _frame(c - b, a - b, c) if k == 0 else _frame(c, np.array([-1.0, 0, 0]), c)
            )
    return frames


GROUP_FRAMES = _group_frames()
