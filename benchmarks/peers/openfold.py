"""Times OpenFold, if it is installed, on the passes that benchmarks/model.py runs. Nothing of it is shipped."""

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch

from axfold.config import Config

NAME = "OpenFold"
SETTINGS = {
    "as it is set": {},
    "no chunks": {"chunk_size": None},
    "chunks of 64": {"chunk_size": 64, "tune_chunk_size": False},
}
"""How it is run. As it is set, it begins with chunks of 4 and tries larger ones in its first pass of a length."""


def why_not(dtype: torch.dtype) -> str | None:
    """The reason it can't be run here, or None."""
    if find_spec("openfold") is None:
        return "it is not installed"
    if dtype != torch.float32:
        return "its inference is documented for float32 alone"
    return None


def build(setting: str, config: Config, device: torch.device) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """A function that runs one first pass of the model that `config` names.

    The weights are those it starts with: their values change no timing.
    """
    _stand_in_for_the_extension(device)
    from openfold.config import model_config
    from openfold.model.model import AlphaFold

    theirs = model_config(config.name)
    theirs.model.evoformer_stack.no_blocks = config.model.evoformer.blocks
    chosen = SETTINGS[setting]
    theirs.globals.chunk_size = chosen.get("chunk_size", theirs.globals.chunk_size)
    for stack in (theirs.model.evoformer_stack, theirs.model.extra_msa.extra_msa_stack):
        stack.tune_chunk_size = chosen.get("tune_chunk_size", stack.tune_chunk_size)
    torch.manual_seed(0)
    model = AlphaFold(theirs).eval().to(device)

    def one_pass(features: Mapping[str, np.ndarray]) -> Any:
        # its last axis counts the passes; its indices have 64 bits
        batch = {name: torch.from_numpy(value[..., None]).to(device) for name, value in features.items()}
        batch = {name: x if x.is_floating_point() else x.long() for name, x in batch.items()}
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of PyTorch
            return model(batch)

    return one_pass


def _stand_in_for_the_extension(device: torch.device) -> None:
    """OpenFold imports its CUDA softmax even where there is no GPU: on a CPU PyTorch's takes its place."""
    name = "attn_core_inplace_cuda"
    if device.type != "cpu" or name in sys.modules or find_spec(name):
        return

    def softmax_(logits: torch.Tensor, rows: int, columns: int) -> None:
        torch.softmax(logits, dim=-1, out=logits)

    module = ModuleType(name)
    module.forward_ = softmax_  # type: ignore[attr-defined]
    sys.modules[name] = module
