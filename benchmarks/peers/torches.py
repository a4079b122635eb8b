"""What the adapters of packages in PyTorch share."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def batch_of(features: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """Features as OpenFold and its descendants take them: their last axis counts the passes, indices have 64 bits."""
    batch = {name: torch.from_numpy(value[..., None]).to(device) for name, value in features.items()}
    return {name: x if x.is_floating_point() else x.long() for name, x in batch.items()}


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Normal weights in place of the zeros that some layers start with, which would draw less power."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def forget_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def stand_in(name: str, **content: Any) -> None:
    """A module of that name with this content, where none is installed."""
    if name not in sys.modules and find_spec(name) is None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        vars(module).update(content)
        sys.modules[name] = module
