"""FastFold (PyTorch and Triton) on one GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from axfold.config import Config
from peers import Pass
from peers.torches import DTYPES, batch_of, forget_peak, peak_bytes, randomize, stand_in, wait

__all__ = ["ENVIRONMENT", "NAME", "PACKAGES", "SETTINGS", "build", "forget_peak", "peak_bytes", "why_not"]

NAME = "FastFold"
PACKAGES = ("fastfold", "torch", "triton")
ENVIRONMENT: Mapping[str, str] = {}
_CHUNKS = {"in place, chunks of 64": 64, "in place, no chunks": None}
SETTINGS = tuple(_CHUNKS)
_EXTENSIONS = ("fastfold_layer_norm_cuda", "fastfold_softmax_cuda")


def why_not(setting: str, config: Config, device: str, precision: str) -> str | None:
    if find_spec("fastfold") is None:
        return "fastfold is not installed"
    if device == "cpu":
        return "its kernels need a GPU"
    return None


def build(setting: str, config: Config, device: str, precision: str) -> Pass:
    _stand_in_for_what_is_not_used()
    from fastfold.config import model_config
    from fastfold.model.fastnn import set_chunk_size
    from fastfold.model.hub import AlphaFold
    from fastfold.utils.inject_fastnn import inject_fastnn

    theirs = model_config(config.name)
    theirs.globals.inplace = True
    theirs.globals.is_multimer = False
    theirs.globals.chunk_size = _CHUNKS[setting]
    theirs.model.evoformer_stack.no_blocks = config.model.evoformer.blocks
    torch.manual_seed(0)
    model = AlphaFold(theirs).eval()
    randomize(model)
    model = inject_fastnn(model).eval().to(device, DTYPES[precision])
    set_chunk_size(theirs.globals.chunk_size)

    def one_pass(features: Mapping[str, np.ndarray]) -> dict[str, Any]:
        batch = batch_of(features, device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of PyTorch
            model(batch)
        wait(device)
        return {}

    return one_pass


def training_block(
    setting: str, config: Config, device: str
) -> tuple[torch.nn.Module, Callable[..., tuple[torch.Tensor, torch.Tensor]]]:
    """An Evoformer block in training, in bfloat16, and how it is called with m, z and their masks."""
    _stand_in_for_what_is_not_used()
    from fastfold.model.fastnn import Evoformer, set_chunk_size

    torch.manual_seed(0)
    block = Evoformer(256, 128, first_block=True, last_block=True)
    randomize(block)
    set_chunk_size(None)
    block = block.to(device, torch.bfloat16).train()

    def call(
        m: torch.Tensor, z: torch.Tensor, over_m: torch.Tensor, over_z: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of PyTorch
            return block(m, z, over_m, over_z)

    return block, call


def _stand_in_for_what_is_not_used() -> None:
    """ColossalAI, which on one GPU says only that there is one, and CUDA extensions that Triton's kernels replace.

    And NumPy's names of Python's types, which its newer versions lack.
    """
    for kind in (bool, float, int, object):
        if kind.__name__ not in vars(np):
            setattr(np, kind.__name__, kind)
    for name in _EXTENSIONS:
        stand_in(name)

    class Alone:
        """A group of one process."""

        def get_world_size(self, mode: str) -> int:
            return 1

        def get_local_rank(self, mode: str) -> int:
            return 0

        def get_global_rank(self) -> int:
            return 0

    class Modes:
        TENSOR = "tensor"

    if find_spec("colossalai") is None:
        stand_in("colossalai")
        stand_in("colossalai.context")
        stand_in("colossalai.context.parallel_mode", ParallelMode=Modes)
        stand_in("colossalai.core", global_context=Alone())
        stand_in("colossalai.utils", is_using_ddp=lambda: False)
