"""Measures the whole command `axfold predict`, and writes its table into docs/memory.md.

    python benchmarks/predict.py --length 64 --device cpu                     # minutes on two cores
    python benchmarks/predict.py --length 1200 --memory-budget 8GB            # on a GPU

A random protein with a random alignment is folded with synthetic parameters by the command itself, in a process of
its own. Its log names the plan, its profile the peak of the device (in a second run, since a profile slows it down),
and the system the most host memory that it had.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from axfold.config import PRESETS
from axfold.residues import RESTYPES
from machine import commit, device_name, file_name, write
from memory import PAGE, page
from memory import RESULTS as MEMORY

RESULTS = Path(__file__).parent / "results" / "predict"


def alignment(length: int, rows: int) -> str:
    """An a3m of random rows: two thirds of the query's letters, the rest others or gaps."""
    rng = random.Random(0)
    letters = "".join(RESTYPES)
    query = rng.choices(letters, k=length)
    text = [f">query\n{''.join(query)}\n"]
    for row in range(1, rows):
        others = rng.choices(letters + "-" * 8, k=length)
        kept = rng.choices((True, True, False), k=length)
        made = (own if keep else other for own, other, keep in zip(query, others, kept, strict=True))
        text.append(f">row{row}\n{''.join(made)}\n")
    return "".join(text)


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds of a command, and the most bytes of host memory that its process had."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read())
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One run of the command and, where wanted, one with a profile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "protein.a3m").write_text(alignment(args.length, args.rows), "ascii")
        command = [sys.executable, "-m", "axfold", "predict", str(folder / "protein.a3m")]
        command += ["--params", "synthetic", "--model", args.model, "--recycles", str(args.recycles)]
        command += ["--device", args.device, "--precision", args.precision, "--layout", "alphafold"]
        command += ["--memory-budget", args.memory_budget] if args.memory_budget else []
        command += ["--max-msa", args.max_msa] if args.max_msa else []
        seconds, host = timed([*command, "--out", str(folder / "out")])
        timings = json.loads((folder / "out" / "protein" / "timings.json").read_text("utf-8"))
        log = (folder / "out" / "log.txt").read_text("utf-8")
        row: dict[str, Any] = {
            "residues": args.length,
            "rows": args.rows,
            "max_msa": args.max_msa,
            "model": args.model,
            "precision": args.precision,
            "budget": args.memory_budget,
            "recycles": args.recycles,
            "seconds": seconds,
            "features_seconds": sum(t for part, t in timings.items() if part.startswith("process_features")),
            "network_seconds": sum(t for part, t in timings.items() if part.startswith("predict")),
            "host_bytes": host,
            "plan": re.findall(r"plan: (.+)", log),
            "written_bytes": sum(path.stat().st_size for path in (folder / "out").rglob("*.*")),
        }
        if not args.no_profile:
            profile = folder / "profile.json"
            timed([*command, "--out", str(folder / "profiled"), "--profile", str(profile)])
            (profiled,) = json.loads(profile.read_text("utf-8")).values()
            row["device_bytes"] = profiled["peak_bytes"]
    return row


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=1200)
    parser.add_argument("--rows", type=int, default=5632, help="of the alignment")
    parser.add_argument("--max-msa", help="as of axfold predict (default: the model's)")
    parser.add_argument("--model", choices=list(PRESETS), default="model_3_ptm")
    parser.add_argument("--recycles", type=int, default=0)
    parser.add_argument("--memory-budget")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16", "auto"), default="auto")
    parser.add_argument("--no-profile", action="store_true", help="without the second run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    if args.precision == "auto":
        args.precision = "fp32" if device.type == "cpu" else "bf16"
    result = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "torch": torch.__version__,
        "axfold": commit(),
        "measured": [measure(args)],
    }
    write(args.results / file_name(f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}", device), result)
    print(json.dumps(result, indent=1))
    args.page.write_text("\n".join(page(MEMORY, args.page.parent, args.results)), "utf-8")


if __name__ == "__main__":
    main()
