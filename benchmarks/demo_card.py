"""The demo model's card, docs/demo-model.md, from benchmarks/results/demo/.

    python benchmarks/demo_card.py --run RUN     # adds a run's curve to training.json, and writes the card
    python benchmarks/demo_card.py               # writes the card

accuracy.json is written by demo_accuracy.py. No number of the card is typed by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from axfold.config import DEMO, PRESETS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "demo"
CARD = ROOT / "docs" / "demo-model.md"

HEAD = """# The demo model

The small network that comes with axfold (`axfold predict INPUT --model demo`), so that a protein can be folded without
a download. It is AlphaFold 2's code with other numbers (`config.PRESETS["demo"]`), trained with `axfold train`. Where
no parameters of AlphaFold's are installed it is the default. This page is written by `benchmarks/demo_card.py`.

**What it is not good for:** any structure that matters. It has {size:.1f} million parameters, and has seen {chains:,}
chains of {shortest} to {longest} residues: no complexes, no ligands, no modified residues. Without an alignment it
knows little. Its confidence (pLDDT, PAE) was learned from the same chains. `axfold weights download` brings AlphaFold's
parameters, which are far more accurate.
"""

DATA = """## Data

{table}

Structures are the wwPDB's (CC0 1.0), those with their backbone alone as Debian's promod3-data 3.2.1 (Apache-2.0)
carries them. Alignments were made with MMseqs2 against Swiss-Prot 2014_01 and the chains' own sequences; they were
read in training alone, and nothing of them is distributed. Where there is no alignment, rows are drawn from a profile.

Chains are clustered at 40 % identity over 80 % of their length, and whole clusters are held out; training chains that a
sensitive search ties to a held-out one (E < 0.01), or that share its PDB entry, are left out. What needs side chains is
left out of the loss of a backbone. Neither the example's protein nor a chain like it is among the training chains.

## Licence

The parameters are under axfold's own licence, Apache-2.0.
"""


def add(run: Path) -> None:
    """A run's configuration and curve, to training.json."""
    from axfold.train import checkpoint

    best = checkpoint.about(run / checkpoint.BEST)
    with (run / "validation.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    with (run / "steps.csv").open(newline="") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    path = RESULTS / "training.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    runs = [one for one in runs if one["name"] != run.name]
    runs.append(
        {
            "name": run.name,
            "training": best.configuration["training"],
            "best_step": best.step,
            "best_score": best.score,
            "seconds_of_steps": seconds,
            "validation": rows,
        }
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=1) + "\n")


def card(accuracy: dict[str, Any], runs: Sequence[dict[str, Any]], parameters: int) -> str:
    data = accuracy["data"]
    kinds = sorted({kind for split in data["chains"].values() for kind in split})
    lines = ["| chains | for training | held out |", "| --- | ---: | ---: |"]
    for kind in kinds:
        numbers = (data["chains"].get(split, {}).get(kind, 0) for split in ("train", "valid"))
        lines.append(f"| {kind} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    head = HEAD.format(
        size=parameters / 1e6,
        chains=sum(data["chains"]["train"].values()),
        shortest=data["shortest"],
        longest=data["longest"],
    )
    return "\n".join([head, trained(runs), scores(accuracy), DATA.format(table="\n".join(lines))])


def trained(runs: Sequence[dict[str, Any]]) -> str:
    lines = [
        "## Training",
        "",
        "Each run goes on from the parameters of the one before. Scores are those of the moving average on held-out "
        "chains.",
        "",
        "| run | crop | samples a step | learning rate | steps | samples | minutes | best lDDT of C-alpha |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        training, last = run["training"], run["validation"][-1]
        lines.append(
            f"| {run['name']} | {training['crop']} | {training['batch']} | {training['learning_rate']:g} | "
            f"{last['step']:,.0f} | {last['samples']:,.0f} | {run['seconds_of_steps'] / 60:.0f} | "
            f"{run['best_score']:.3f} |"
        )
    lines += [
        "",
        "| run | samples | lDDT of C-alpha | GDT_TS | TM-score |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        rows = run["validation"]
        for row in rows[:: max(len(rows) // 8, 1)]:
            lines.append(
                f"| {run['name']} | {row['samples']:,.0f} | {row['lddt_ca']:.3f} | {row['gdt_ts']:.3f} | "
                f"{row['tm']:.3f} |"
            )
    return "\n".join(lines) + "\n"


CLASSES: tuple[tuple[str, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("held out, up to 128 residues", "valid", lambda score: score["length"] <= 128),
    ("held out, longer", "valid", lambda score: score["length"] > 128),
    ("held out, all", "valid", lambda score: True),
    ("training chains (some)", "train", lambda score: True),
)


def scores(accuracy: dict[str, Any]) -> str:
    lines = [
        "## Accuracy",
        "",
        "Means over chains. *Untrained* is the same network before its first step; *nearest* takes the C-alpha atoms "
        "of the training chain whose sequence aligns best (of a training chain: another one), and nothing where none "
        "aligns.",
        "",
        "| chains | | lDDT of C-alpha | untrained | nearest | TM-score | untrained | nearest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for title, split, belongs in CLASSES:
        of_split = accuracy["scores"][split]
        names = [name for name, score in of_split["demo"].items() if belongs(score)]
        if not names:
            continue
        cells = [
            f"{mean(of_split[who][name][what] for name in names):.3f}"
            for what in ("lddt_ca", "tm")
            for who in ("demo", "untrained", "nearest")
        ]
        lines.append(f"| {title} | {len(names)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def mean(values: Iterable[float | None]) -> float:
    """Of what is defined."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="folder of `axfold train run`")
    options = parser.parse_args()
    if options.run is not None:
        add(options.run)
    missing = [name for name in ("accuracy.json", "training.json") if not (RESULTS / name).exists()]
    if missing:
        raise SystemExit(f"{RESULTS} lacks {' and '.join(missing)}: see demo_accuracy.py, and --run.")
    import torch

    from axfold.model.alphafold import AlphaFold

    with torch.device("meta"):
        parameters = sum(p.numel() for p in AlphaFold(PRESETS[DEMO].model).parameters())
    accuracy, runs = (json.loads((RESULTS / name).read_text()) for name in ("accuracy.json", "training.json"))
    CARD.write_text(card(accuracy, runs, parameters))
    print(CARD)


if __name__ == "__main__":
    main()
