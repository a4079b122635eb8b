"""What of this machine works for axfold, what doesn't, and the one thing to do next."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from axfold import __version__
from axfold.errors import AxfoldError
from axfold.output import files

if TYPE_CHECKING:
    import torch

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
    """Every backend of every op on a small input, against the reference in float64."""
    from axfold import ops

    for op in (value for name in ops.__all__ if isinstance(value := getattr(ops, name), ops.Op)):
        for backend in op.backends:
            yield _kernel(op, backend, device)


def _kernel(op: Any, backend: str, device: torch.device) -> Finding:
    import torch

    from axfold.ops import BackendError

    subject = f"{op.name}, {backend}"
    needed = backend == "reference"
    generator = torch.Generator().manual_seed(0)
    exact = [x.to(device, torch.float64) for x in EXAMPLES[op.name](generator)]
    inputs = [x.float() for x in exact]
    try:
        with torch.inference_mode():
            wanted = _together(op(*(x.clone() for x in exact), backend="reference"))
            found = _together(op(*inputs, backend=backend))
        error = float((found - wanted).norm() / wanted.norm())
    except BackendError as failure:
        return Finding(subject=subject, state="absent", detail=str(failure), needed=needed)
    except Exception as failure:  # whatever a compiler or driver raises: it is what is looked for
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        return Finding(subject=subject, state="broken", detail=reason, needed=needed, todo=_REPORT)
    good = error < 1e-4
    return Finding(
        subject=subject,
        state="works" if good else "broken",
        detail=f"on {device}, relative error {error:.0e}",
        needed=needed,
        todo=_REPORT,
    )


def _together(results: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The numbers of an op's result, or of its several results, in one tensor."""
    import torch

    several = results if isinstance(results, tuple) else (results,)
    return torch.cat([x.flatten() for x in several])


_REPORT = (
    "A kernel computes wrong numbers or fails here: update PyTorch, and report it with what doctor says."
)


def _attention(generator: torch.Generator) -> Iterable[torch.Tensor]:
    import torch

    q, k, v, gate = torch.randn(4, 3, 7, 2, 8, generator=generator)
    return q, k, v, gate, torch.ones(3, 7), torch.randn(2, 7, 7, generator=generator)


def _point_attention(generator: torch.Generator) -> Iterable[torch.Tensor]:
    """5 residues, 2 heads of 16 channels, 4 points asked for and 8 given."""
    import torch

    residues = (5, 2, 16), (5, 2, 16), (5, 2, 16), (5, 2, 4, 3), (5, 2, 4, 3), (5, 2, 8, 3)
    shapes = *residues, (2,), (5, 5, 16), (16,), (16,), (2, 16), (2,)
    return *(torch.randn(shape, generator=generator) for shape in shapes), torch.ones(5), torch.ones(5)


def _column_attention(generator: torch.Generator) -> Iterable[torch.Tensor]:
    import torch

    shapes = (16,), (16,), (16, 16), (16, 16), (16, 16), (16,), (16, 16), (16,)
    m = torch.randn(3, 5, 16, generator=generator)
    return m, torch.ones(3, 5), *(torch.randn(shape, generator=generator) for shape in shapes)


def _outer_product_update(generator: torch.Generator) -> Iterable[torch.Tensor]:
    import torch

    shapes = (2, 5, 16), (2, 3, 8), (3, 5, 8), (2, 5), (16, 64), (16,)
    z, a, b, count, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return z, a, b, count.square() + 1, weight, bias


def _residual(generator: torch.Generator) -> Iterable[torch.Tensor]:
    import torch

    return torch.randn(2, 5, 5, 3, generator=generator)


def _normals(*shapes: tuple[int, ...]) -> Callable[[torch.Generator], Iterable[torch.Tensor]]:
    def example(generator: torch.Generator) -> Iterable[torch.Tensor]:
        import torch

        return [torch.randn(shape, generator=generator) for shape in shapes]

    return example


EXAMPLES: dict[str, Callable[[torch.Generator], Iterable[torch.Tensor]]] = {
    "gated_attention": _attention,
    "global_column_attention": _column_attention,
    "invariant_point_attention": _point_attention,
    "outer_product_update": _outer_product_update,
    "add": _residual,
    "layer_norm": _normals((3, 7, 16), (16,), (16,)),
    "softmax": _normals((3, 2, 5, 7), (3, 7), (2, 5, 7)),
    "linear_residual": _normals((3, 7, 16), (3, 7, 32), (16, 32), (16,)),
    "normed_linear": _normals((3, 7, 16), (16,), (16,), (32, 16), (32,)),
    "transition": _normals((3, 7, 16), (16,), (16,), (64, 16), (64,), (16, 64), (16,)),
    "triangle_operand": _normals((3, 7, 16), (3, 7), (16,), (16,), (32, 16), (32,)),
    "triangle_update": _normals(
        *[(3, 7, 16), (16, 3, 7), (16, 7, 7), (16,), (16,), (16,), (16,), (16, 16), (16,), (16, 16), (16,)]
    ),
}
"""A small input of each op."""


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
