"""Times OpenFold, if it is installed, on the passes that benchmarks/model.py runs. Nothing of it is shipped."""

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch

NAME = "OpenFold"
SETTINGS = ("whole", "default")
"""How it is run: "whole" sets chunk_size None, "default" leaves its own (4 and the chunk size tuner)."""


def why_not() -> str | None:
    """The reason it can't be run here, or None."""
    return None if find_spec("openfold") else "it is not installed"


def build(setting: str, device: str) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """A function that runs one pass of its model_5 without recycled inputs.

    The weights are those it starts with: their values change no timing.
    """
    _stand_in_for_the_extension()
    from openfold.config import model_config
    from openfold.model.model import AlphaFold

    config = model_config("model_5")
    if setting == "whole":
        config.globals.chunk_size = None
    torch.manual_seed(0)
    model = AlphaFold(config).eval().to(device)

    def one_pass(features: Mapping[str, np.ndarray]) -> Any:
        # its last axis counts passes; indices are 64 bit
        batch = {name: torch.from_numpy(value[..., None]).to(device) for name, value in features.items()}
        batch = {name: x if x.is_floating_point() else x.long() for name, x in batch.items()}
        with torch.inference_mode():
            return model(batch)

    return one_pass


def _stand_in_for_the_extension() -> None:
    """OpenFold imports its CUDA softmax even where there is no GPU: give it PyTorch's."""
    if "attn_core_inplace_cuda" in sys.modules or find_spec("attn_core_inplace_cuda"):
        return

    def softmax_(logits: torch.Tensor, rows: int, columns: int) -> None:
        torch.softmax(logits, dim=-1, out=logits)

    module = ModuleType("attn_core_inplace_cuda")
    module.forward_ = softmax_  # type: ignore[attr-defined]
    sys.modules["attn_core_inplace_cuda"] = module
