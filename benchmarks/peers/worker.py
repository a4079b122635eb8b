"""The process of one peer: `python -m peers.worker JOB`. Rows go to the job's file as they are measured."""

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from passes import configuration
from peers import Peer, load


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    peer, setting = load(job["peer"]), job["setting"]
    config = configuration(**job["model"])
    lengths = {int(length): path for length, path in job["features"].items()}

    def write(residues: int, row: dict[str, Any]) -> None:
        with open(job["results"], "a", encoding="utf-8") as file:
            print(json.dumps({"residues": residues, **row}), file=file)

    other = None if job["precision"] in ("fp32", "bf16") else "it is measured in fp32 and bf16 alone"
    if reason := other or peer.why_not(setting, config, job["device"], job["precision"]):
        for residues in lengths:
            write(residues, {"failed": reason})
        return
    run = peer.build(setting, config, job["device"], job["precision"])
    started: float | None = job["started"]
    about: dict[str, Any] = {
        "start_seconds": round(time.time() - job["started"], 3),
        "versions": versions(peer),
    }
    for residues, path in lengths.items():
        with np.load(path) as file:
            features = dict(file)
        try:
            row = measure(peer, run, features, job["repeats"], started)
        except Exception as error:  # whatever a package may raise: the other lengths may work
            row = {
                "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                if str(error)
                else type(error).__name__
            }
        write(residues, {**row, **about})
        started, about = None, {}


def measure(peer: Peer, run: Any, features: Any, repeats: int, started: float | None) -> dict[str, Any]:
    """One length. The first pass has what it takes once for a length, such as a compilation.

    `started`, for the first length alone, is when the process was: up to the end of the pass it was cold.
    """
    peer.forget_peak()
    start = time.perf_counter()
    said = run(features)
    row: dict[str, Any] = {"first_seconds": round(time.perf_counter() - start, 4), **said}
    if started is not None:
        row["cold_seconds"] = round(time.time() - started, 3)
    row["first_peak_bytes"] = peer.peak_bytes()
    peer.forget_peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(features)
        seconds.append(round(time.perf_counter() - start, 4))
    if seconds:
        row |= {"seconds": min(seconds), "all_seconds": seconds, "peak_bytes": peer.peak_bytes()}
    return {name: value for name, value in row.items() if value is not None}


def versions(peer: Peer) -> dict[str, str]:
    """Of the packages that are there; one may be a folder of sources, whose version nothing says."""
    found = {}
    for package in peer.PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "sources"
    return found


if __name__ == "__main__":
    main()
