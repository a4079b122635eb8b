"""The network on a device: loaded, run pass by pass, watched from outside."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from axfold.config import Config
from axfold.data.features import FEATURES
from axfold.errors import AxfoldError, InputError
from axfold.memory.allocator import without_gaps
from axfold.model.alphafold import AlphaFold, Features, Pass
from axfold.ops.warmup import Warmup
from axfold.options import PRECISIONS, one_of
from axfold.progress import Clock, Report
from axfold.weights.load import load
from axfold.weights.source import Source

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" names, tried. Raises InputError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"--device {name}: choose auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    without_gaps()
    if not count:
        raise InputError(
            f"--device {name}: PyTorch {torch.__version__} finds no CUDA device. Use --device cpu, or run "
            "`axfold doctor`, which says what is missing."
        )
    device = torch.device("cuda", int(name.partition(":")[2] or 0))
    if device.index >= count:
        known = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise InputError(f"--device {name}: this machine has {known}.")
    try:
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {name}: {torch.cuda.get_device_name(device)} can't be used ({reason}). Use --device cpu, or "
            "another one."
        ) from error
    return device


def find_precision(name: str, device: torch.device) -> str:
    """The trunk's precision, "fp32", "tf32", "bf16" or "fp16", that `name` means on `device`. Raises InputError.

    Where there is no TF32 it means "fp32". "auto" never means fp16, nor on GPUs without bf16: sums over thousands of
    sequences may pass its 65,504.
    """
    one_of("--precision", name, PRECISIONS)
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return "bf16" if ampere else "fp32"
    return "fp32" if name == "tf32" and not ampere else name


def warmup(
    config: Config,
    device: torch.device,
    precision: str,
    *,
    residues: int,
    sequences: int,
    templates: bool = False,
) -> Warmup | None:
    """The kernels for such a protein, which are made ready from now on; None where there are none.

    None in "tf32" too: its precision of products is one that all threads share.
    """
    if device.type != "cuda" or precision == "tf32" or find_spec("triton") is None:
        return None
    return Warmup(
        device,
        _DTYPES[precision],
        residues=residues,
        clusters=max(1, min(sequences, config.data.msa_clusters)),
        templates=templates and config.data.templates > 0,
    )


def load_network(config: Config, parameters: Source, device: torch.device, precision: str) -> AlphaFold:
    """The network of `config` with its parameters, for inference. Raises WeightsError."""
    with torch.device("meta"):
        network = AlphaFold(config.model)
    load(network, config, parameters)
    return in_precision(network, precision).requires_grad_(False).eval().to(device)


def in_precision(network: AlphaFold, precision: str) -> AlphaFold:
    """The network with its trunk in "fp32", "tf32", "bf16" or "fp16"; one in "tf32" stays so."""
    if precision == "tf32":
        _allow_tf32(network.trunk)
    return network.to_precision(_DTYPES[precision])


def on_device(
    samples: Iterable[Mapping[str, np.ndarray]], ensembles: int, device: torch.device, *, pinned: bool = False
) -> Generator[list[Features]]:
    """What each pass reads: as many samples of the features as `ensembles`, taken when asked for.

    On `device`, but for the features of the MSA's rows: those are large, and brought as they are embedded. A mask of
    residues that hides none is one number expanded, so that nobody has to ask the device.

    pinned: what stays on the host is in pinned memory, from where it comes faster
    """
    places = {
        name: torch.device("cpu") if {"S", "E"} & set(feature.shape) else device
        for name, feature in FEATURES.items()
        if feature.read
    }
    each = iter(samples)
    while several := list(islice(each, ensembles)):
        yield [
            {
                name: torch.ones((), device=place).expand(sample[name].shape)
                if name == "seq_mask" and (sample[name] == 1).all()
                else _pinned(sample[name])
                if pinned and place.type == "cpu"
                else _shared(sample[name])
                if place.type == "cpu"
                else torch.tensor(sample[name], device=place)
                for name, place in places.items()
                if name in sample
            }
            for sample in several
        ]


def _shared(array: np.ndarray) -> torch.Tensor:
    """A tensor in the array's memory, which nobody writes to; a copy of one that PyTorch would warn of."""
    usable = array.flags.writeable and array.flags.c_contiguous
    return torch.from_numpy(array) if usable else torch.tensor(array)


def _pinned(array: np.ndarray) -> torch.Tensor:
    """A copy in pinned memory; NumPy lets other threads run meanwhile."""
    copy = torch.from_numpy(np.empty(0, array.dtype)).new_empty(array.shape, pin_memory=True)
    np.copyto(copy.numpy(), array)
    return copy


def passes(
    network: AlphaFold,
    samples: Iterable[Sequence[Features]],
    leaner: Callable[[], bool] | None = None,
    *,
    spare: Callable[[], bool] = lambda: False,
) -> Iterator[Pass]:
    """The passes of Algorithm 2, as many as there are `samples`; each recycles the one before.

    A pass overwrites the pair of the one before: use that up before asking for the next, and let go of it.
    float32 products are exact ones, but in the trunk of a network that was loaded with "tf32". Where the device's
    memory runs out, leaner() makes the network need less or returns False; the pass under way is then done again. What
    it recycles is kept on the host for that, or on the device where there is memory to spare(): such a copy takes as
    long as a small protein's pass.
    """
    recycled = None
    for several in samples:
        kept, on_device = None, spare()
        if recycled is not None and leaner is not None:
            kept = network.snapshot(recycled, None if on_device else "cpu")
        with torch.inference_mode(), _without_tf32():
            while True:
                try:
                    result = network(several, recycled)
                    break
                except torch.OutOfMemoryError as error:
                    if leaner is None:
                        raise
                    traceback.clear_frames(error.__traceback__)  # they hold what the pass had made
                finally:
                    network.rows.drop()  # what an error left to be done
                recycled = None
                if kept is not None and on_device:
                    kept, on_device = network.snapshot(kept), False
                torch.cuda.empty_cache()
                if not leaner():
                    raise torch.OutOfMemoryError("no plan of the memory is left")
                recycled = kept and network.placed(kept)
            _check_range(result)
            recycled = result.recycled()
        yield result
        del result


def _check_range(result: Pass) -> None:
    """Raises AxfoldError where float16, which ends at 65,504, could not hold what the trunk computed."""
    if result.pair.dtype == torch.float16 and not result.structure.atom37.isfinite().all():
        raise AxfoldError("Numbers passed the range of fp16 in this protein: use --precision fp32 or bf16.")


@contextmanager
def watched(
    network: AlphaFold, config: Config, *, passes: int, templates: bool, report: Report | None
) -> Iterator[None]:
    """Report every block of the network that ends, by hooks that are gone afterwards; without `report` nothing.

    templates: whether there are any. On a CUDA device a block is reported once the next one has been queued, so
    that the device never waits for the report.
    """
    stages: dict[str, Sequence[nn.Module] | nn.ModuleList] = {
        "extra MSA": network.trunk.extra_stack.blocks,
        "Evoformer": network.trunk.evoformer.blocks,
        "structure": [network.structure],
    }
    if templates and network.trunk.template_pair is not None:
        stages = {"templates": [network.trunk.template_pair]} | stages
    blocks = {stage: config.ensembles * len(modules) for stage, modules in stages.items()} | {"structure": 1}
    clock = Clock(blocks, passes)
    queued: list[torch.cuda.Event] = []
    on_cuda = next(network.parameters()).is_cuda

    def ended(stage: str) -> None:
        if on_cuda:
            queued.append(torch.cuda.Event())
            queued[-1].record()
            if len(queued) > 1:
                queued.pop(0).synchronize()
        assert report is not None
        report(clock.step(stage))

    with ExitStack() as stack:
        for stage, modules in stages.items() if report is not None else ():
            for module in modules:
                hook = module.register_forward_hook(lambda *_, stage=stage: ended(stage))
                stack.callback(hook.remove)
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _allow_tf32(module: nn.Module) -> None:
    """Within `module` float32 products may be TF32's; what runs before and after it keeps its setting."""
    before: list[str] = []

    def enter(*_: Any) -> None:
        before.append(torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("high")

    def leave(*_: Any) -> None:
        if before:  # nothing, where another hook failed ahead of `enter`
            torch.set_float32_matmul_precision(before.pop())

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
