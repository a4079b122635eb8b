"""Compares the network with the numbers that DeepMind's code gave, and writes docs/parity.md.

    python benchmarks/parity.py                                            # fp32 and fp64 on the CPU
    python benchmarks/parity.py --device cuda --precision fp32 bf16        # a GPU; TF32 stays off
    python benchmarks/parity.py --report                                   # the page alone, from the results

The recorded numbers are looked for in ../shared/parity or the folder that AXFOLD_PARITY names.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from axfold.config import PRESETS
from axfold.model.alphafold import AlphaFold
from axfold.testing import Comparison, compare
from axfold.weights.load import load
from axfold.weights.source import Source
from machine import commit, device_name, file_name, write
from report import table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
from record import run_case  # noqa: E402

RESULTS = HERE / "results" / "parity"
DEVIATIONS = HERE / "results" / "deviation"  # of deviation.py
PAGE = HERE.parent / "docs" / "parity.md"
PARITY = Path(os.environ.get("AXFOLD_PARITY", HERE.parents[1] / "shared" / "parity"))
CASES = {"mono_small": "model_1_ptm", "mono_notemplate": "model_3"}
PASSES = 4
PRECISIONS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}

HEAD = """# Parity with DeepMind's AlphaFold

Made by `python benchmarks/parity.py` from `benchmarks/results/parity`. DeepMind's JAX code and axfold ran on the
same features and the same pseudo-random parameters; `mono_small` is model_1_ptm with templates, `mono_notemplate`
model_3; four passes. A row is the largest relative error ||a - b|| / ||b|| of a tensor over the passes in which
DeepMind's values were recorded. fp32 is compared with float32 goldens (whose own rounding is 3e-7 to 1.3e-6), fp64
with float64 ones stored as float32; bf16 against float32, which is what the precision costs on random parameters.
"""


def grouped(comparisons: list[Comparison]) -> dict[str, dict[str, float]]:
    """Largest error and its tolerance of each tensor, over the passes."""
    rows: dict[str, dict[str, float]] = {}
    for comparison in comparisons:
        name = re.sub(r"^r\d+/|\[.*\]$", "", comparison.name)
        row = rows.setdefault(name, {"error": 0.0, "tolerance": comparison.tolerance})
        row["error"] = max(row["error"], comparison.error)
    return rows


def measure(case: str, precision: str, device: torch.device) -> dict[str, dict[str, float]]:
    config = PRESETS[CASES[case]]
    with torch.device("meta"):
        model = AlphaFold(config.model)
    load(model, config, Source(seed=0))
    model.eval().to_precision(PRECISIONS[precision]).to(device)
    with np.load(PARITY / "cases" / case / "inputs.npz") as file:
        found = run_case(model, dict(file), PASSES)
    wide = precision == "fp64"
    path = PARITY / "f64" / f"{case}.npz" if wide else PARITY / "cases" / case / "outputs.npz"
    limits = json.loads((PARITY / f"tolerances_f{64 if wide else 32}.json").read_text())
    limits.pop("_about")
    with np.load(path) as file:
        golden = {name: file[name] for name in file.files if not name.startswith("confidence/")}
    return grouped(list(compare(found, golden, limits)))


def deviations(folder: Path) -> Iterator[str]:
    """What deviation.py measured: the newest of each device, case and column."""
    devices: dict[str, dict[str, dict[str, tuple[str, dict[str, float]]]]] = {}
    for path in sorted(folder.glob("*.json")):  # names begin with the date
        result = json.loads(path.read_text("utf-8"))
        about = f"{result['date']}; torch {result['torch']}, axfold {result['axfold']}"
        for case, measured in result["cases"].items():
            columns = devices.setdefault(result["device"], {}).setdefault(case, {})
            columns |= {name: (about, found) for name, found in measured.items()}
    for device, cases in devices.items():
        yield f"\n## {device}: precision and tiers of the memory\n"
        runs = sorted({about for columns in cases.values() for about, _ in columns.values()})
        yield (
            f"{', and '.join(runs)}. One pass, relative error\n"
            "||a - b|| / ||b|| of what it ends with, by `python benchmarks/deviation.py`: precisions against\n"
            "fp32, and tiers in blocks of seven rows against one piece in the same precision.\n"
        )
        for case, columns in cases.items():
            yield f"### {case}\n"
            # those against fp32 first, as in a single run
            names = sorted(columns, key=lambda name: not name.endswith(" from fp32"))
            outputs = list(columns[names[0]][1])
            rows = [
                [output, *(f"{columns[name][1].get(output, float('nan')):.1e}" for name in names)]
                for output in outputs
            ]
            yield from table(["output", *names], rows)
            yield ""


def page(folder: Path = DEVIATIONS) -> Iterator[str]:
    yield HEAD
    for path in sorted(RESULTS.glob("*.json"), reverse=True):
        result = json.loads(path.read_text())
        yield f"\n## {result['device']}, {result['precision']}\n"
        yield f"{result['date']}; torch {result['torch']}, axfold {result['axfold']}.\n"
        cases = result["cases"]
        names = list(dict.fromkeys(name for rows in cases.values() for name in rows))
        checked = result["precision"] != "bf16"
        yield "| tensor | " + " | ".join(cases) + (" | tolerance |" if checked else " |")
        yield "| --- |" + " ---: |" * (len(cases) + checked)
        for name in names:
            rows = [rows.get(name) for rows in cases.values()]
            cells = [f"{row['error']:.1e}" if row else "" for row in rows]
            if checked:
                cells.append(f"{next(row['tolerance'] for row in rows if row):.0e}")
            yield f"| {name} | " + " | ".join(cells) + " |"
    yield from deviations(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", choices=list(PRECISIONS), default=["fp32", "fp64"])
    parser.add_argument("--report", action="store_true", help="write the page alone")
    args = parser.parse_args()
    device, failed = torch.device(args.device), 0
    torch.set_float32_matmul_precision("highest")
    for precision in [] if args.report else args.precision:
        cases = {
            case: measure(case, precision, device)
            for case in CASES
            if precision != "fp64" or (PARITY / "f64" / f"{case}.npz").exists()
        }
        for case, rows in cases.items():
            over = [name for name, row in rows.items() if not row["error"] <= row["tolerance"]]
            worst = max(rows.values(), key=lambda row: row["error"])["error"]
            told = "" if precision == "bf16" else f", over tolerance: {over or 'none'}"
            print(f"{case} {precision}: {len(rows)} tensors, largest error {worst:.1e}{told}")
            failed += 0 if precision == "bf16" else len(over)
        result: dict[str, Any] = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "device": device_name(device),
            "torch": torch.__version__,
            "axfold": commit(),
            "precision": precision,
            "cases": cases,
        }
        write(RESULTS / file_name(result["date"], device, precision), result)
    PAGE.write_text("\n".join(page()) + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
