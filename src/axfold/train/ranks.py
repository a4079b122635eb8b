"""The processes that train together: one alone, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from axfold.errors import InputError
from axfold.network import find_device


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """x of all processes together, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def texts(self, text: str) -> list[str]:
        """The texts of all processes."""
        found: list[str] = [text] * self.size
        if self.size > 1:
            dist.all_gather_object(found, text)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among those of torchrun, with a GPU each, or on the CPU. Raises InputError."""
    size, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
    )
    if size == 1:
        yield Ranks(find_device(device))
        return
    if ":" in device:
        raise InputError(f"--device {device}: with several processes each takes a GPU of its own; give cuda.")
    found = find_device(device)
    if found.type == "cuda":
        found = find_device(f"cuda:{local}")
        torch.cuda.set_device(found)
    on_gpu = found.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", rank=rank, world_size=size, device_id=found if on_gpu else None
    )
    try:
        yield Ranks(found, rank, size)
    finally:
        dist.destroy_process_group()
