"""What of this machine works for axfold, what doesn't, and the one thing to do next."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from axfold import __version__
from axfold.errors import AxfoldError
from axfold.output import files

if TYPE_CHECKING:
    import torch

    from axfold.ops import cases

State = Literal["works", "absent", "broken"]

PROGRAMS = ("jackhmmer", "hhblits", "hhsearch", "mmseqs", "kalign")
"""Programs that search and align; axfold folds without them, from alignments that are given."""

_PACKAGES = ("gemmi", "matplotlib", "modelcif", "numpy", "rich", "safetensors", "typer")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """About one subject: what was found, and what to do about it. Without what is `needed` nothing can be predicted."""

    subject: str
    state: State
    detail: str
    needed: bool = False
    todo: str = ""

    @property
    def prevents(self) -> bool:
        """Whether nothing can be predicted for it."""
        return self.needed and self.state != "works"


def examine(out: Path, cache: Path | None = None) -> Iterator[Finding]:
    """Everything, one after another as it is found. `out` is where results would go; `cache`: see `weights`."""
    yield Finding(
        subject="axfold",
        state="works",
        detail=f"{__version__}, Python {platform.python_version()}, {platform.machine()}",
    )
    yield _packages()
    try:
        import torch
    except (ImportError, OSError) as error:  # a shared library may be missing
        yield Finding(
            subject="PyTorch",
            state="broken",
            detail=str(error).splitlines()[0],
            needed=True,
            todo="Install PyTorch for this machine, see https://pytorch.org/get-started.",
        )
    else:
        yield Finding(
            subject="PyTorch", state="works", detail=f"{torch.__version__}, {torch.get_num_threads()} threads"
        )
        yield from _devices(torch.cuda.is_available())
        yield from kernels(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    yield _weights(cache)
    yield from _programs()
    yield _folder(out)


def advice(findings: Sequence[Finding]) -> str:
    """The one thing to do: against what prevents predictions, then against what slows them, else to begin."""
    for finding in sorted(findings, key=lambda finding: not finding.prevents):  # stable: in their order
        if finding.state != "works" and finding.todo:
            return finding.todo
    return "Fold a protein: axfold predict FILE --out FOLDER"


def _packages() -> Finding:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return Finding(
        subject="packages",
        state="broken" if missing else "works",
        detail=f"missing: {', '.join(missing)}" if missing else ", ".join(found),
        needed=True,
        todo=f"Run `pip install {' '.join(missing)}`.",
    )


def _devices(has_cuda: bool) -> Iterator[Finding]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        subject="CPU",
        state="works",
        detail=f"{os.cpu_count()} cores, {_gigabytes(memory)}",
    )
    if not has_cuda:
        card = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
        detail = "none found"
        if card:
            build = torch.version.cuda
            detail = "there is an NVIDIA driver, and PyTorch can't use it: "
            detail += f"it is built for CUDA {build}" if build else "it is built for the CPU alone"
        yield Finding(
            subject="CUDA",
            state="broken" if card else "absent",
            detail=detail,
            todo="Install PyTorch for the GPU's driver, see https://pytorch.org/get-started." if card else "",
        )
    for index in range(torch.cuda.device_count() if has_cuda else 0):
        yield _device(index)


def _device(index: int) -> Finding:
    import torch

    subject = f"cuda:{index}"
    try:
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        torch.zeros(1, device=subject).add_(1).item()
    except RuntimeError as error:
        return Finding(
            subject=subject,
            state="broken",
            detail=str(error).splitlines()[0],
            todo=f"PyTorch {torch.__version__} can't use {subject}: install one for it, see "
            "https://pytorch.org/get-started, or use --device cpu.",
        )
    bf16 = "bf16" if (about.major, about.minor) >= (8, 0) else "no bf16, fp32 is used"
    return Finding(
        subject=subject,
        state="works",
        detail=f"{about.name}, {_gigabytes(free)} of {_gigabytes(total)} free, {bf16}",
    )


def kernels(device: torch.device) -> Iterator[Finding]:
    """Which backend takes the calls of each op, as the network makes them, and what their checks find."""
    import torch

    from axfold.network import find_precision
    from axfold.ops import cases

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for precision in dict.fromkeys(
        [find_precision("auto", device), "fp32"]
    ):  # the structure module has the latter
        calls: dict[Any, list[cases.Call]] = {}
        for call in cases.calls(dtypes[precision]):
            calls.setdefault(call.op, []).append(call)
        for op, several in calls.items():
            yield _kernel(f"{op.name}, {precision}", op, several, device)


def _kernel(subject: str, op: Any, calls: Sequence[cases.Call], device: torch.device) -> Finding:
    """About the backends of an op, the one that is preferred first, until there is one that takes all calls."""
    from axfold.ops.health import HEALTH
    from axfold.ops.small import draw

    state: State = "works"
    todo, others, taken = "", [], []
    try:
        for backend in reversed(op.backends):
            seconds, checks, reasons = 0.0, [], []
            for call in calls:
                reason = op.backends[backend][1](*draw(op.small(*call.arguments), device))
                if reason is None:
                    verdict = HEALTH.examine(op, backend, call.arguments, device)
                    seconds += verdict.seconds
                    if (reason := verdict.reason) is None:
                        checks.append(verdict)
                    else:
                        state, todo = "broken", todo or verdict.todo
                if reason is not None:
                    reasons.append(reason)
            if checks:
                error = max(verdict.error or 0.0 for verdict in checks)
                rounding = max(verdict.rounding or 0.0 for verdict in checks)
                some = f" in {len(checks)} of {len(calls)} calls" if reasons else ""
                checked = f", error {error:.0e} (PyTorch's {rounding:.0e}), {seconds:.1f} s"
                taken.append(f"{backend}{some}{'' if backend == 'reference' else checked}")
            others += [f"{backend}: {reason}" for reason in dict.fromkeys(reasons)]
            if not reasons:
                break
    except Exception as failure:  # whatever a compiler or driver raises: it is what is looked for
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return Finding(subject=subject, state="broken", detail=reason, needed=True, todo=_REPORT)
    needed = backend == "reference" and bool(reasons)
    detail = "; ".join(taken + others)
    return Finding(subject=subject, state=state, detail=detail, needed=needed, todo=todo)


_REPORT = "PyTorch itself fails on this device: update it and the device's driver."


def _weights(cache: Path | None) -> Finding:
    from axfold.weights import registry

    known = [item for item in registry.listed(cache) if item.supported]
    here = [item.model for item in known if item.path]
    folder = registry.cache_folder(cache)
    return Finding(
        subject="parameters",
        state="works" if here else "absent",
        detail=f"{len(here)} of {len(known)} models in {folder}",
        needed=True,
        todo="Run `axfold weights download`, or name a parameter file with --params.",
    )


def _programs() -> Iterator[Finding]:
    for program in PROGRAMS:
        path = shutil.which(program)
        yield Finding(
            subject=program,
            state="works" if path else "absent",
            detail=path or "not on PATH; optional, for searching alignments and templates yourself",
        )


def _folder(out: Path) -> Finding:
    try:
        files.make_folder(out)
    except AxfoldError as error:
        return Finding(subject="results", state="broken", detail=str(error), needed=True, todo=str(error))
    return Finding(
        subject="results",
        state="works",
        detail=f"{out.resolve()} can be written, {_gigabytes(shutil.disk_usage(out).free)} free",
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
