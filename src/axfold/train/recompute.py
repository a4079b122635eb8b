"""Memory for time in training: what a block keeps for its gradient is computed again when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from axfold.model.alphafold import AlphaFold


def recompute(network: AlphaFold) -> None:
    """Every block of the network keeps its inputs alone: supplement 1.11.8, activation checkpointing.

    Applied from outside: each block's `forward` is replaced, and does what it did where no gradient is recorded.
    Dropout drops the same again.
    """
    for owner, name in _blocks(network):
        run = getattr(owner, name)
        if not isinstance(run, _Recomputed):
            setattr(owner, name, _Recomputed(run))


def keep(network: AlphaFold) -> None:
    """Undo `recompute`."""
    for owner, name in _blocks(network):
        vars(owner).pop(name, None)


def _blocks(network: AlphaFold) -> Iterator[tuple[nn.Module, str]]:
    trunk = network.trunk
    for block in (*trunk.extra_stack.blocks, *trunk.evoformer.blocks):
        yield block, "forward"
    if trunk.template_pair is not None:
        for block in trunk.template_pair.embed.blocks:
            yield block, "forward"
    yield network.structure, "layer"


class _Recomputed:
    def __init__(self, run: Callable[..., Any]):
        self.run = run

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.run(*args)
        return checkpoint(self.run, *args, use_reentrant=False)
