"""How good the demo model is beside what costs nothing: scores of held-out and of training chains, as JSON.

    axfold train prepare ... --out STORE                     # once
    python benchmarks/demo_accuracy.py STORE --out benchmarks/results/demo/accuracy.json
    python benchmarks/demo_card.py                           # writes docs/demo-model.md

The same network untrained, and the nearest training chain by sequence: the C-alpha atoms of the best local alignment
among all training chains (BLOSUM62), where residues without a partner score nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from axfold import __version__, console, metrics, residues
from axfold.config import DEMO
from axfold.data.pairwise import align
from axfold.train import run
from axfold.train.store import Store
from axfold.weights.source import find

_CA = residues.ATOM_INDEX["CA"]
_WORD = 3  # letters of the words that a chain and a training chain must share to be aligned
_CANDIDATES = 40  # training chains with the most words in common, which are aligned


class Nearest:
    """The training chains of a store, by the words of their sequences."""

    def __init__(self, store: Store):
        self.store = store
        self.places = [place for place, row in enumerate(store.rows) if row.split == "train"]
        self.sequences = [letters(store[place].aatype) for place in self.places]
        self.words = [words(sequence) for sequence in self.sequences]

    def score(self, place: int) -> dict[str, float | str]:
        """Of the chain at `place`, predicted by the nearest one."""
        chain = self.store[place]
        own = letters(chain.aatype)
        mine = words(own)
        shared = np.array([sum((mine & theirs).values()) for theirs in self.words])
        best, pairs, nearest = 0, np.zeros((0, 2), np.int64), -1
        for candidate in np.argsort(-shared, kind="stable")[:_CANDIDATES]:
            if self.places[candidate] == place:  # a training chain's nearest is another one
                continue
            match = align(own, self.sequences[candidate])
            if match.score > best:
                best, pairs, nearest = match.score, match.pairs, candidate
        n = len(own)
        true, known = torch.tensor(chain.positions[:, _CA]), torch.tensor(chain.mask[:, _CA])
        found, there = torch.zeros(n, 3), torch.zeros(n)
        name = ""
        if nearest >= 0:
            other = self.store[self.places[nearest]]
            name = other.name
            found[pairs[:, 0]] = torch.tensor(other.positions[pairs[:, 1], _CA])
            there[pairs[:, 0]] = torch.tensor(other.mask[pairs[:, 1], _CA])
        both = known * there
        found[there == 0] = 1e4 * torch.arange(1, 1 + int((there == 0).sum()))[:, None]  # far from everything
        superposed = metrics.superposed(found, true, both, length=int(known.sum()))
        return {
            "lddt_ca": float(metrics.lddt(found[:, None], true[:, None], known[:, None])),
            "tm": superposed.tm if both.sum() >= 3 else 0.0,
            "covered": float(both.sum() / known.sum()),
            "identity": float(np.mean([own[i] == self.sequences[nearest][j] for i, j in pairs]))
            if name
            else 0.0,
            "nearest": name,
        }


def letters(aatype: np.ndarray) -> str:
    return "".join(residues.RESTYPES_WITH_X[kind] for kind in aatype)


def words(sequence: str) -> Counter[str]:
    return Counter(sequence[i : i + _WORD] for i in range(len(sequence) - _WORD + 1))


_nearest: Nearest


def _begin(store: Path) -> None:
    global _nearest
    torch.set_num_threads(1)
    _nearest = Nearest(Store(store))


def _score(place: int) -> dict[str, float | str]:
    return _nearest.score(place)


def nearest(store: Path, names: Sequence[str], processes: int) -> dict[str, dict[str, float | str]]:
    """Scores of the nearest training chain, by the chain's name."""
    place_of = {row.name: place for place, row in enumerate(Store(store).rows)}
    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(store,)) as pool:
        return dict(
            zip(names, pool.map(_score, [place_of[name] for name in names], chunksize=4), strict=True)
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--parameters", help="as --params of axfold predict, or a run's folder; the packaged ones"
    )
    parser.add_argument("--held-out-chains", type=int, help="so many are scored (default: all)")
    parser.add_argument("--training-chains", type=int, default=300, help="so many of them are scored")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    parameters = options.parameters or str(find(DEMO).path)
    display = console.Plain()
    content: dict[str, object] = {
        "axfold": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "parameters": Path(parameters).name,
        "data": described(Store(options.store)),
        "scores": {},
    }
    scores: dict[str, dict[str, dict[str, dict[str, float | str]]]] = content["scores"]  # type: ignore[assignment]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for split, chains in (
        ("valid", options.held_out_chains),
        ("train", options.training_chains),
    ):
        of_split = scores.setdefault(split, {})
        for name, which in (("demo", parameters), ("untrained", "untrained")):
            file = options.out.with_name(f".{split}-{name}.json")
            if which == "untrained":
                which = str(untrained(options.out.parent))
            folder = Path(which).is_dir()
            run.evaluate(
                which,
                options.store,
                model=None if folder else DEMO,
                split=split,
                out=file,
                device=options.device,
                precision=options.precision,
                processes=None,
                chains=chains,
                display=display,
            )
            of_split[name] = json.loads(file.read_text())["chains"]
            file.unlink()
        of_split["nearest"] = nearest(options.store, list(of_split["demo"]), options.processes)
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    (options.out.parent / ".untrained.safetensors").unlink()


def described(store: Store) -> dict[str, object]:
    """How many chains of which kind there are."""
    chains: dict[str, Counter[str]] = {}
    for row in store.rows:
        evolution = "an alignment" if row.rows else "a profile" if row.first_profile >= 0 else "neither"
        kind = f"{'backbone' if row.backbone_only else 'all heavy atoms'}, {evolution}"
        chains.setdefault(row.split, Counter())[kind] += 1
    lengths = [row.length for row in store.rows if row.split == "train"]
    return {"chains": chains, "shortest": min(lengths), "longest": max(lengths)}


def untrained(folder: Path) -> Path:
    """A file of the first parameters of a training."""
    from axfold.config import PRESETS
    from axfold.model.alphafold import AlphaFold
    from axfold.train.initial import initialise
    from axfold.weights import files

    network = AlphaFold(PRESETS[DEMO].model)
    initialise(network, 0)
    path = folder / ".untrained.safetensors"
    about = {"model": DEMO, "source": "untrained", "licence": "Apache-2.0"}
    files.write(path, {name: p.detach().numpy() for name, p in network.named_parameters()}, about)
    return path


if __name__ == "__main__":
    main()
