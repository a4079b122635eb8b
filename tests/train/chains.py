"""Chains made up for tests, as files and in stores."""

from pathlib import Path

import numpy as np

from axfold import residues
from axfold.train.store import Chain, writing

ATOMS = {"N": (0, 0, 0), "CA": (1.46, 0, 0), "C": (2.5, 0.9, 0), "O": (2.5, 2.1, 0), "CB": (1.5, -1, -1.1)}
NEXT = 3.8  # Å from a residue to the next, which leaves C and N bonded


def pdb_text(
    sequence: str,
    *,
    atoms: tuple[str, ...] = tuple(ATOMS),
    numbers: list[str] | None = None,
    shifts: list[float] | None = None,
    chain: str = "A",
    b_factors: list[float] | None = None,
) -> str:
    """A straight chain. numbers: with the insertion code; shifts: Å along the chain, of each residue from its place."""
    lines = []
    for i, letter in enumerate(sequence):
        name = residues.RESTYPE_1TO3[letter]
        number = numbers[i] if numbers else f"{i + 1} "
        for atom in atoms:
            x, y, z = ATOMS[atom]
            x += NEXT * i + (shifts[i] if shifts else 0)
            b = b_factors[i] if b_factors else 20.0
            lines.append(
                f"ATOM      1  {atom:3} {name} {chain}{number:>5}   {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}\n"
            )
    return "".join(lines)


def a3m_text(*rows: str) -> str:
    return "".join(f">{i}\n{row}\n" for i, row in enumerate(rows))


def make_chain(name: str, n: int, rows: int = 20, seed: int = 0, **other) -> Chain:
    """Random residues, atoms and alignment; `rows` 0 is without."""
    rng = np.random.default_rng(seed)
    aatype = rng.integers(0, 20, n).astype(np.uint8)
    msa = np.where(rng.random((rows, n)) < 0.7, aatype, rng.integers(0, 22, (rows, n))).astype(np.uint8)
    msa[:1] = aatype
    deletions = (
        (rng.integers(1, 300, msa.shape) * (rng.random(msa.shape) < 0.1)).clip(max=255).astype(np.uint8)
    )
    return Chain(
        name=name,
        aatype=aatype,
        residue_index=np.cumsum(rng.integers(1, 3, n)).astype(np.int32),
        positions=rng.normal(0, 15, (n, 37, 3)).astype(np.float32),
        mask=(residues.ATOM37_MASK[aatype] * (rng.random((n, 37)) < 0.95)).astype(np.float32),
        msa=msa,
        deletions=deletions,
        **other,
    )


def make_store(path: Path, *chains: Chain) -> Path:
    with writing(path) as writer:
        for chain in chains:
            writer.add(chain)
    return path
