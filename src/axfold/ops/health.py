"""Whether a kernel computes on this machine what the reference does: checked before its first use, and remembered.

A compiler, a driver or a GPU may have faults that no test of ours has met. So a backend that is not PyTorch's own is
compared with the reference on small random arguments, like those of the call that is about to be made and compiled as
for it. Where it fails or computes something else, PyTorch takes its calls and one warning says so. What was found is
kept in axfold's cache for later processes, and forgotten with the versions of all that it depends on.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import subprocess
import threading
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from axfold import __version__, cache
from axfold.errors import AxfoldError
from axfold.ops.small import Smalls, draw

if TYPE_CHECKING:
    from axfold.ops.op import Op

ROUNDING = 4.0
"""So many times the reference's own rounding may a kernel's results be wrong: tests allow 2 on larger arguments."""

COMPILER = (
    "Install a C compiler such as gcc and Python's headers, with which Triton builds what starts its kernels."
)
UPDATE = "Update the GPU's driver, PyTorch and Triton, or report it with what `axfold doctor` says."


class KernelWarning(UserWarning):
    """A kernel is not used, because it does not work on this machine."""


class DeviceLost(AxfoldError):
    """A kernel failed so that the GPU can't be used by this process any more."""


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    error: ||found - exact|| / ||exact||, exact being the reference in float64 (None: there is no result);
    rounding: the same of the reference in the call's dtype;
    reason: why the backend is not to be used (None: it is); todo: what the user can do about it;
    lasts: whether it is so until a version changes, and not until a program is installed.
    """

    seconds: float
    error: float | None = None
    rounding: float | None = None
    reason: str | None = None
    todo: str = ""
    lasts: bool = True


class Health:
    """The verdicts about the backends, on each device; `devices` are the kinds of those where they are needed."""

    def __init__(self, devices: Collection[str] = ("cuda",)):
        self.devices = devices
        self._verdicts: dict[torch.device, dict[str, Verdict]] = {}
        self._told: set[tuple[str, str, str]] = set()
        self._lock = threading.RLock()

    def why_not(self, op: Op, backend: str, args: Sequence[Any]) -> str | None:
        """Why a backend does not work for such a call, or None."""
        verdict = self.verdict(op, backend, args)
        if verdict is None or verdict.reason is None:
            return None
        return f"it does not work on {_device_name(_device(args))}: {verdict.reason}"

    def allows(self, op: Op, backend: str, args: Sequence[Any]) -> bool:
        """Whether a backend works for such a call; the first time that it doesn't, a warning says so."""
        verdict = self.verdict(op, backend, args)
        if verdict is None or verdict.reason is None:
            return True
        dtype = str(next(x.dtype for x in args if isinstance(x, Tensor))).removeprefix("torch.")
        if (op.name, backend, dtype) not in self._told:
            self._told.add((op.name, backend, dtype))
            warnings.warn(
                f"{op.name} in {dtype} is left to PyTorch, which is slower: the {backend} kernel does not work on "
                f"{_device_name(_device(args))} ({verdict.reason}). {verdict.todo}",
                KernelWarning,
                stacklevel=4,
            )
        return False

    def verdict(self, op: Op, backend: str, args: Sequence[Any]) -> Verdict | None:
        """About a backend for such a call, which is checked where it isn't known; None where that isn't needed."""
        device = _device(args)
        if op.small is None or device.type not in self.devices:
            return None
        smalls = op.small(*args)
        with self._lock:
            known = self._known(device)
            name = self._name(op, backend, smalls)
            if name not in known:
                if capturing():
                    return None  # a check would end the capture: the next call outside of one is checked
                self._learn(device, name, check(op, backend, smalls, device))
            return known[name]

    def examine(self, op: Op, backend: str, args: Sequence[Any], device: torch.device) -> Verdict:
        """Check a backend once more, for arguments like these on `device`, and remember what is found."""
        assert op.small is not None
        smalls = op.small(*args)
        verdict = check(op, backend, smalls, device)
        with self._lock:
            self._known(device)
            self._learn(device, self._name(op, backend, smalls), verdict)
        op.forget()
        return verdict

    def _name(self, op: Op, backend: str, smalls: Smalls) -> str:
        """Of what is checked: products of float32 have a precision of their own."""
        shapes = " ".join(str(small) for small in smalls)
        return f"{op.name}, {backend}, {torch.get_float32_matmul_precision()}: {shapes}"

    def _known(self, device: torch.device) -> dict[str, Verdict]:
        if device not in self._verdicts:
            self._verdicts[device] = _read(device)
        return self._verdicts[device]

    def _learn(self, device: torch.device, name: str, verdict: Verdict) -> None:
        self._verdicts[device][name] = verdict
        if verdict.lasts and device.type in self.devices:
            # another process may have added some
            _write(device, {**_read(device), **{n: v for n, v in self._verdicts[device].items() if v.lasts}})
        if verdict.reason is not None and not _works(device):
            raise DeviceLost(
                f"The kernel of {name.partition(',')[0]} has stopped {_device_name(device)} "
                f"({verdict.reason}). Run the same command again: it goes on without this kernel."
            )


HEALTH = Health()
"""Of this process."""


@torch.no_grad()
def check(op: Op, backend: str, smalls: Smalls, device: torch.device) -> Verdict:
    """Compare a backend with the reference. Running out of memory says nothing about it, and is raised.

    The exact results are the CPU's, in milliseconds: a GPU would load kernels in float64 that nothing else needs.
    """
    start = time.perf_counter()

    def results(name: str, arguments: Sequence[Tensor | None]) -> list[Tensor]:
        first, *others = arguments
        assert first is not None
        found = op.backends[name][0](first.clone(), *others)  # an op may consume its first argument
        return [x.cpu() for x in ((found,) if isinstance(found, Tensor) else found)]

    arguments = draw(smalls, device)
    exact = results("reference", [x if x is None else x.double() for x in draw(smalls, torch.device("cpu"))])
    rounded = results("reference", arguments)
    error, rounding, reason, todo, lasts = None, None, None, "", True
    try:
        found = results(backend, arguments)
        errors = [_errors(*of_one) for of_one in zip(found, rounded, exact, strict=True)]
        error, rounding, limit = max(errors, key=lambda each: each[0] / each[2])
        if not error <= limit:
            reason = f"its results are wrong by {error:.1e}, PyTorch's in this dtype by {rounding:.1e}"
            todo = UPDATE
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # whatever a compiler or a driver raises
        if "out of memory" in str(failure):
            raise torch.OutOfMemoryError(str(failure)) from failure
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:300]
        local = isinstance(failure, OSError | ImportError | subprocess.SubprocessError)
        lasts = not (local or "C compiler" in reason)
        todo = UPDATE if lasts else COMPILER
    return Verdict(time.perf_counter() - start, error, rounding, reason, todo, lasts)


def _errors(found: Tensor, rounded: Tensor, exact: Tensor) -> tuple[float, float, float]:
    """Relative errors of what was found and of what rounding alone gives, and how large the former may be.

    What stands beyond the end of an axis of the reference's result has to be 0.
    """
    single = rounded.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    bit = 2.0**-18 if single else 2.0**-12  # TF32 and float16 have 10 bits beside the sign and the exponent
    size = exact.norm()
    rounding = ((rounded - exact).norm() / size).item()
    limit = ROUNDING * max(rounding, bit)
    inside = tuple(slice(n) for n in exact.shape)
    if found.dtype != rounded.dtype or found.dim() != exact.dim() or found[inside].shape != exact.shape:
        return math.inf, rounding, limit
    beyond = found.clone()
    beyond[inside] = 0
    error = ((found[inside] - exact).norm() / size).item()
    return (math.inf if math.isnan(error) or beyond.any().item() else error), rounding, limit


def capturing() -> bool:
    """Whether a CUDA graph is being captured."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _works(device: torch.device) -> bool:
    try:
        torch.zeros(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError:
        return False
    return True


def _device(args: Sequence[Any]) -> torch.device:
    return next(x.device for x in args if isinstance(x, Tensor))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _driver() -> str:
    """The version of NVIDIA's driver; where the system hides it, the version of CUDA that it is for."""
    with suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text("utf-8")
        if found := re.search(r"\d+\.\d+(\.\d+)?", text):
            return found[0]
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return str(version.value)


@functools.cache
def about(device: torch.device) -> dict[str, str]:
    """All that a verdict depends on."""

    def sources() -> Iterator[bytes]:
        for path in sorted(Path(__file__).parent.rglob("*.py")):
            yield path.read_bytes()

    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "device": _device_name(device),
        "driver": _driver() if device.type == "cuda" else "none",
        "axfold": f"{__version__} {hashlib.sha256(b''.join(sources())).hexdigest()[:12]}",
        "torch": torch.__version__,
        "triton": triton,
    }


def _path(device: torch.device) -> Path:
    found = about(device)
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "-", found["device"]).lower()
    return cache.folder() / "kernels" / f"{name}-{digest}.json"


def _read(device: torch.device) -> dict[str, Verdict]:
    """The verdicts of earlier processes; none where they can't be read, or were found with other versions."""
    try:
        content = json.loads(_path(device).read_text("utf-8"))
        if content["about"] != about(device):
            return {}
        return {name: _verdict(**kept) for name, kept in content["checks"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _verdict(
    *, seconds: float, error: float | None, rounding: float | None, reason: str | None, todo: str, lasts: bool
) -> Verdict:
    """One that was kept, if it has the types of one."""
    numbers = isinstance(seconds, float) and all(isinstance(x, float | None) for x in (error, rounding))
    if not (numbers and isinstance(reason, str | None) and isinstance(todo, str) and lasts is True):
        raise ValueError("not a verdict")
    return Verdict(seconds, error, rounding, reason, todo)


def _write(device: torch.device, verdicts: dict[str, Verdict]) -> None:
    """Keep the verdicts, under a name of their own until they are complete; a cache that can't be written is none."""
    path = _path(device)
    content = {"about": about(device), "checks": {name: asdict(v) for name, v in verdicts.items()}}
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
