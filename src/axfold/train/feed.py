"""Samples on their way to the device: drawn by worker processes, packed, brought over while others are trained on."""

from __future__ import annotations

import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from math import prod
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from axfold.ahead import Ahead
from axfold.train.labels import Labels

_ALIGN = 64  # bytes
_MASKS = ("seq_mask", "msa_mask", "extra_msa_mask")  # the network takes one that hides nothing as one number
_DEPTH = 2  # batches on the device before they are needed
_ROOM = 8 << 30  # bytes of shared memory; where there are fewer, workers hand samples over in files


class Example(Protocol):
    """One sample, or several as a batch: what each pass reads, and what is known of the structure."""

    @property
    def passes(self) -> tuple[dict[str, Tensor], ...]:
        """Processed features of every pass; the network learns from the last."""

    @property
    def labels(self) -> Labels:
        """What the last pass is compared with."""


def places(step: int, batch: int, at_once: int, rank: int, ranks: int) -> list[list[int]]:
    """Which samples of a step (from 0) a process takes, `at_once` by `at_once`.

    Together the processes take batch * step to batch * (step + 1) - 1, whatever their number.
    """
    first, stride = batch * step, at_once * ranks
    starts = range(first + at_once * rank, first + batch, stride)
    return [list(range(start, start + at_once)) for start in starts]


def order(step: int, batch: int, at_once: int, rank: int = 0, ranks: int = 1) -> Iterator[list[int]]:
    """The micro-batches of all steps from `step` on, as `places` has them; without an end."""
    while True:
        yield from places(step, batch, at_once, rank, ranks)
        step += 1


@dataclass(frozen=True)
class Packed:
    """Tensors in one buffer of bytes: one object to hand between processes, and one copy to a device.

    plan: the objects they are in, where each tensor is described in its place
    """

    buffer: Tensor
    plan: Any


@dataclass(frozen=True)
class _Piece:
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    ones: bool  # a mask that hides nothing, and isn't in the buffer


@dataclass(frozen=True)
class _Object:
    kind: type
    parts: dict[str, Any]


def pack(tree: Any) -> Packed:
    """Dictionaries, tuples, lists and dataclasses of tensors; a tensor that occurs often is stored once."""
    found: dict[tuple[Any, ...], tuple[int, Tensor]] = {}
    size = 0

    def place(x: Any, name: str = "") -> Any:
        nonlocal size
        if isinstance(x, Tensor):
            if name in _MASKS and bool((x == 1).all()):
                return _Piece(0, tuple(x.shape), x.dtype, ones=True)
            key = x.data_ptr(), x.shape, x.stride(), x.dtype
            if key not in found:
                found[key] = size, x.contiguous()
                size += -(-x.numel() * x.element_size() // _ALIGN) * _ALIGN
            return _Piece(found[key][0], tuple(x.shape), x.dtype, ones=False)
        if isinstance(x, Mapping):
            return {key: place(value, key) for key, value in x.items()}
        if isinstance(x, tuple | list):
            return type(x)(place(value) for value in x)
        if is_dataclass(x):
            return _Object(type(x), {field.name: place(getattr(x, field.name)) for field in fields(x)})
        return x

    plan = place(tree)
    buffer = torch.empty(size, dtype=torch.uint8)
    for start, x in found.values():
        flat = x.reshape(-1).view(torch.uint8) if x.numel() else buffer[:0]
        buffer[start : start + len(flat)] = flat
    return Packed(buffer, plan)


def unpack(packed: Packed) -> Any:
    """The objects again, whose tensors are views of the buffer."""
    buffer = packed.buffer

    def take(x: Any) -> Any:
        if isinstance(x, _Piece):
            if x.ones:
                return torch.ones((), dtype=x.dtype, device=buffer.device).expand(x.shape)
            part = buffer[x.start : x.start + prod(x.shape) * x.dtype.itemsize]
            return part.view(x.dtype).view(x.shape)
        if isinstance(x, _Object):
            return x.kind(**{name: take(part) for name, part in x.parts.items()})
        if isinstance(x, dict):
            return {name: take(part) for name, part in x.items()}
        if isinstance(x, tuple | list):
            return type(x)(take(part) for part in x)
        return x

    return take(packed.plan)


@cache
def _forks() -> BaseContext:
    """Workers are forked from a process that has neither threads nor a device, and what they need loaded."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["axfold.train.examples"])
    return context


def _go_on(_worker: int) -> None:
    """Whoever asks a run to end may ask all its processes, but the last step still needs its samples."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def together(examples: Sequence[Any], stack: Callable[[Sequence[Any]], Any]) -> Any:
    """Several samples stacked; one as it is, since the fastest kernels take no batch axis."""
    return examples[0] if len(examples) == 1 else stack(examples)


class _Together:
    """What a worker makes of the samples of a micro-batch: packed, or in a file of `folder`."""

    def __init__(self, stack: Callable[[Sequence[Any]], Any], folder: str | None):
        self.stack, self.folder = stack, folder

    def __call__(self, examples: Sequence[Any]) -> Packed | _Filed:
        packed = pack(together(examples, self.stack))
        if self.folder is None:
            return packed
        path = Path(self.folder) / secrets.token_hex(8)
        packed.buffer.numpy().tofile(path)
        return _Filed(path, packed.plan)


@dataclass(frozen=True)
class _Filed:
    """What is packed, its bytes in a file that is read once."""

    path: Path
    plan: Any

    def read(self) -> Packed:
        buffer = torch.from_numpy(np.fromfile(self.path, np.uint8))
        self.path.unlink()
        return Packed(buffer, self.plan)


def shared_memory() -> int:
    """Bytes that are free for what processes share; containers often have little."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0


class Feed(Iterator[Any]):
    """Micro-batches on the device, in a given order.

    waited: seconds for which whoever asked had to wait, since it was last set to 0
    """

    def __init__(
        self,
        examples: Dataset[Any],
        order: Iterable[list[int]],
        stack: Callable[[Sequence[Any]], Any],
        device: torch.device,
        *,
        workers: int = 0,
    ):
        """order: the samples of each micro-batch; stack(examples): several of them with a batch axis."""
        self.waited = 0.0
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._files = (
            TemporaryDirectory(prefix="axfold-samples-") if workers and shared_memory() < _ROOM else None
        )
        folder = None if self._files is None else self._files.name
        self._loader = iter(
            DataLoader(
                examples,
                batch_sampler=order,  # it may have no end
                collate_fn=_Together(stack, folder),
                num_workers=workers,
                prefetch_factor=2 if workers else None,
                multiprocessing_context=_forks() if workers else None,
                worker_init_fn=_go_on,
            )
        )
        self._ahead = Ahead(lambda: map(self._bring, self._loader), _DEPTH)

    def __next__(self) -> Any:
        start = time.perf_counter()
        packed, arrived = next(self._ahead)
        self.waited += time.perf_counter() - start
        if arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arrived)
            packed.buffer.record_stream(stream)
        return unpack(packed)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is wanted."""
        self._ahead.close()
        del self._loader, self._ahead
        if self._files is not None:
            self._files.cleanup()

    def _bring(self, made: Packed | _Filed) -> tuple[Packed, torch.cuda.Event | None]:
        packed = made.read() if isinstance(made, _Filed) else made
        if self._stream is None:
            return packed, None
        with torch.cuda.stream(self._stream):
            there = packed.buffer.pin_memory().to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return Packed(there, packed.plan), arrived
