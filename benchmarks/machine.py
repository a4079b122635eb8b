"""What is measured, and on what."""

import os
import platform
import re
import subprocess
from pathlib import Path

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
    """The commit that is measured, with "+" where files have changed.

    In a copy without its history AXFOLD_COMMIT says it; else it is "unknown".
    """
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or os.environ.get("AXFOLD_COMMIT", "unknown")


def file_name(date: str, device: torch.device, *words: str) -> str:
    """Of a result: it begins with the date, so that names sort by age."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return "-".join([date, re.sub(r"\W+", "-", kind).lower(), *words]) + ".json"
