"""Runs a peer in a process of its own, within a time limit. What it can't do is a row too, with the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers import load

BENCHMARKS = Path(__file__).parents[1]


def measure(
    peer: str,
    setting: str,
    features: Mapping[int, Path],
    *,
    model: Mapping[str, Any],
    device: str,
    precision: str,
    repeats: int,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Rows of a peer in one of its settings, one for each length whose features (.npz) are given, in that order.

    model: arguments of `passes.configuration`; repeats: passes after the first one, whose fastest counts; seconds:
    for all of it. A row has "failed" instead of numbers where there are none.
    """
    adapter = load(peer)
    with tempfile.TemporaryDirectory() as folder:
        results, job = Path(folder, "rows"), Path(folder, "job.json")
        order = {
            "peer": peer,
            "setting": setting,
            "features": {length: str(path) for length, path in features.items()},
            "model": dict(model),
            "device": device,
            "precision": precision,
            "repeats": repeats,
            "results": str(results),
            "started": time.time(),
        }
        job.write_text(json.dumps(order), "utf-8")
        path = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        variables = {**os.environ, **adapter.ENVIRONMENT, **(environment or {}), "PYTHONPATH": path}
        complaint = limited([sys.executable, "-m", "peers.worker", str(job)], seconds, variables)
        lines = results.read_text("utf-8").splitlines() if results.exists() else []
    found = {row["residues"]: row for row in map(json.loads, lines)}
    missing = complaint or "it ended without a result"
    return [
        {"engine": adapter.NAME, "setting": setting, **found.get(n, {"residues": n, "failed": missing})}
        for n in features
    ]


def limited(command: list[str], seconds: float, variables: Mapping[str, str] | None = None) -> str:
    """Run it with all that it starts; what went wrong, or ""."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            env=None if variables is None else dict(variables),
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"no result within {seconds:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return "" if code == 0 else f"exit code {code}: {lines[-1][:200] if lines else 'it said nothing'}"
