"""What is measured, and on what."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """The processor's name, and for a CPU how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
        name = re.search(r"model name\s*: (.+)", cpuinfo)
    except OSError:
        name = None
    return f"{name[1] if name else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """The commit that is measured, with "+" where files have changed; "unknown" in a copy without its history.

    AXFOLD_COMMIT says it of a copy that has none, or another's.
    """
    if said := os.environ.get("AXFOLD_COMMIT"):
        return said
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def file_name(date: str, device: torch.device, *words: str) -> str:
    """Of a result: it begins with the date, so that names sort by age."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return "-".join([date, re.sub(r"\W+", "-", kind).lower(), *words]) + ".json"


def write(path: Path, result: Mapping[str, Any]) -> None:
    """A result as JSON, complete or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)
