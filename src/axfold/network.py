"""The network on a device: loaded, run pass by pass, watched from outside."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice

import numpy as np
import torch
from torch import nn

from axfold.config import Config
from axfold.data.features import FEATURES
from axfold.errors import AxfoldError, InputError
from axfold.model.alphafold import AlphaFold, Features, Pass
from axfold.options import PRECISIONS, one_of
from axfold.progress import Clock, Report
from axfold.weights.load import load
from axfold.weights.source import Source

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" names, tried. Raises InputError."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"--device {name}: choose auto, cpu, cuda or cuda:N.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
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
    """The trunk's precision, "fp32", "bf16" or "fp16", that `name` means on `device`. Raises InputError.

    "auto" never means fp16, nor on GPUs without bf16: sums over thousands of sequences may pass its 65,504.
    """
    one_of("--precision", name, PRECISIONS)
    if name != "auto":
        return name
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if has_bf16 else "fp32"


def load_network(config: Config, parameters: Source, device: torch.device, precision: str) -> AlphaFold:
    """The network of `config` with its parameters, for inference. Raises WeightsError."""
    with torch.device("meta"):
        network = AlphaFold(config.model)
    load(network, config, parameters)
    return network.requires_grad_(False).eval().to_precision(_DTYPES[precision]).to(device)


def on_device(
    samples: Iterable[Mapping[str, np.ndarray]], ensembles: int, device: torch.device
) -> Iterator[list[Features]]:
    """What each pass reads: as many samples of the features as `ensembles`, taken when asked for.

    On `device`, but for the features of the MSA's rows: those are large, and brought as they are embedded.
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
                name: torch.tensor(sample[name], device=place)
                for name, place in places.items()
                if name in sample
            }
            for sample in several
        ]


def passes(
    network: AlphaFold, samples: Iterable[Sequence[Features]], leaner: Callable[[], bool] | None = None
) -> Iterator[Pass]:
    """The passes of Algorithm 2, as many as there are `samples`; each recycles the one before.

    A pass overwrites the pair of the one before: use that up before asking for the next, and let go of it.
    float32 products are exact ones, without TF32. Where the device's memory runs out, leaner() makes the network
    need less or returns False; the pass under way is then done again. What it recycles is kept on the host for that.
    """
    recycled = None
    for several in samples:
        kept = None if recycled is None or leaner is None else network.snapshot(recycled)
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
