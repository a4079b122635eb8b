"""Measures a network as it runs, from outside: for each stage its seconds, its peak memory, and what was alive then."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axfold.memory.host import Bus

STACKS = (
    (r"trunk\.template_pair\b.*", "templates"),
    (r"trunk\.extra_stack\b.*", "extra MSA stack"),
    (r"trunk\.evoformer\b.*", "Evoformer"),
    (r"structure\b.*", "structure"),
    (r"", "pass"),
)
"""Paths of modules, and what stands before the names of their stages. The network itself is the last."""

OUTPUTS = (
    (r"trunk\.embed_pair", "pair"),
    (r"trunk\.embed_extra", "extra MSA"),
    (r"trunk\.embed_msa", "MSA"),
    (r"trunk\.template_pair\.embed", "template"),
)
"""Paths of modules, and what their results are called from then on."""

PASS = "pass: the rest"

aten = torch.ops.aten
_MEANINGS = {aten.new_empty.default: "context"}  # Rows.gather makes it so
_CONTIGUOUS = (aten.native_layer_norm.default, aten._softmax.default)
_MATRICES = (aten.bmm.default, aten.mm.default, aten.addmm.default)


@dataclass
class Reading:
    """One stage: its calls together, the stages inside it left out.

    peak_bytes: on the device, all that is alive; alive: those bytes by tensor (representations by their names,
    other tensors by the operation that made them), at the moment of the largest total that was counted
    """

    calls: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    alive: dict[str, int] = field(default_factory=dict)


class Meter:
    """Measures what a network does on `device` between `__enter__` and `__exit__`; leaves no trace in it.

    Every tensor that an operation makes is counted until its memory is freed. On a CUDA device peaks are those of
    PyTorch's allocator, with what its kernels take inside. On a CPU they are the count, to which the copies are
    added that kernels make of operands whose layout they can't take; what `bus` keeps is on the host.

    tensors: count tensors; without them (CUDA alone) the seconds are those of an ordinary run
    """

    def __init__(
        self, network: nn.Module, device: torch.device, *, bus: Bus | None = None, tensors: bool = True
    ):
        self.readings: dict[str, Reading] = {}
        self.sequence: list[tuple[str, Reading]] = []
        self.peak_bytes = 0
        self._network, self._device, self._bus = network, device, bus
        self._count = _Count(self) if tensors or device.type != "cuda" else None
        self._open: list[tuple[str, Reading, Any]] = []
        self._timed: list[tuple[str, Reading, Any, Any]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Meter:
        for path, module in self._network.named_modules():
            if stage := _stage(path, module):
                self._hooks += [
                    module.register_forward_pre_hook(lambda *_, stage=stage: self._begin(stage)),
                    module.register_forward_hook(lambda *_: self._end()),
                ]
            for pattern, name in OUTPUTS:
                if re.fullmatch(pattern, path):
                    self._hooks.append(
                        module.register_forward_hook(lambda *_, name=name: self._rename(_[-1], name))
                    )
        if self._count is not None:
            self._hooks.append(
                self._network.register_forward_pre_hook(lambda _, args: self._add(args, "features"))
            )
            self._count.add(list(self._network.parameters()), "weights")
            self._count.__enter__()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count is not None:
            self._count.__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._take_peak()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for stage, call, start, end in self._timed:
            seconds = start.elapsed_time(end) / 1000 if self._device.type == "cuda" else end - start
            whole = self.readings.setdefault(stage, Reading())
            call.seconds += seconds
            whole.seconds += seconds
        self._add_up()

    def as_dict(self) -> dict[str, Any]:
        """What was measured: "peak_bytes", "seconds", the "stages", and the "sequence" of the last pass's calls."""
        return {
            "peak_bytes": self.peak_bytes,
            "seconds": sum(reading.seconds for reading in self.readings.values()),
            "stages": {stage: asdict(reading) for stage, reading in self.readings.items()},
            "sequence": [{"stage": stage, **asdict(call)} for stage, call in self.sequence],
        }

    def is_host(self, storage: torch.UntypedStorage) -> bool:
        """Is it no memory of the device?"""
        if storage.device.type != self._device.type:
            return True
        return self._bus is not None and self._bus.keeps(storage)

    def counted(self, total: int, alive: Mapping[str, int]) -> None:
        """The count has grown to `total` bytes."""
        if self._open:
            _, call, _ = self._open[-1]
            if total > sum(call.alive.values()):
                call.alive = {name: size for name, size in alive.items() if size}
                if self._device.type != "cuda":
                    call.peak_bytes = total
        if self._device.type != "cuda":
            self.peak_bytes = max(self.peak_bytes, total)

    def _add_up(self) -> None:
        for stage, call in self.sequence:
            whole = self.readings.setdefault(stage, Reading())
            whole.calls += call.calls
            if call.peak_bytes > whole.peak_bytes:
                whole.peak_bytes, whole.alive = call.peak_bytes, call.alive

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _take_peak(self) -> None:
        """The allocator's peak since the last call belongs to the stage under way."""
        if self._device.type != "cuda":
            return
        peak = torch.cuda.max_memory_allocated(self._device)
        self.peak_bytes = max(self.peak_bytes, peak)
        if self._open:
            call = self._open[-1][1]
            call.peak_bytes = max(call.peak_bytes, peak)
        torch.cuda.reset_peak_memory_stats(self._device)

    def _begin(self, stage: str) -> None:
        if stage == PASS:  # the one before may have ended by an error
            self._open.clear()
            self._add_up()
            self.sequence.clear()
        self._take_peak()
        now = self._now()
        if self._open:  # the stage around this one waits
            outer, call, start = self._open[-1]
            self._timed.append((outer, call, start, now))
        call = Reading(calls=1)
        self.sequence.append((stage, call))
        self._open.append((stage, call, now))
        if self._count is not None:
            self._count.tell()

    def _end(self) -> None:
        self._take_peak()
        now = self._now()
        self._timed.append((*self._open.pop(), now))
        if self._open:
            outer, call, _ = self._open[-1]
            self._open[-1] = outer, call, now

    def _add(self, tensors: Any, name: str) -> None:
        if self._count is not None:
            self._count.add(tensors, name)

    def _rename(self, result: Any, name: str) -> None:
        if self._count is not None:
            self._count.rename(result, name)


class _Count(TorchDispatchMode):
    """Bytes of the tensors that are alive, by name."""

    def __init__(self, meter: Meter):
        super().__init__()
        self.alive: dict[str, int] = {}
        self.total = 0
        self._meter = meter
        self._storages: dict[Any, tuple[str, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            args = tuple(_laid_out(func, x) for x in args)
        result = func(*args, **kwargs)
        name = _MEANINGS.get(func) or func.name().removeprefix("aten::").partition(".")[0]
        self.add(result, name)
        return result

    def tell(self) -> None:
        self._meter.counted(self.total, self.alive)

    def add(self, tensors: Any, name: str) -> None:
        """Count the memory of these tensors that is not counted yet."""
        for storage in _storages(tensors):
            size = storage.nbytes()
            reference = weakref.ref(storage, self._freed)
            if reference in self._storages or not size or self._meter.is_host(storage):
                continue
            self._storages[reference] = name, size
            self.alive[name] = self.alive.get(name, 0) + size
            self.total += size
            self.tell()

    def rename(self, tensors: Any, name: str) -> None:
        for storage in _storages(tensors):
            reference = weakref.ref(storage)
            if reference not in self._storages:
                continue
            before, size = self._storages[reference]
            self._storages[reference] = name, size
            self.alive[before] -= size
            self.alive[name] = self.alive.get(name, 0) + size

    def _freed(self, reference: Any) -> None:
        name, size = self._storages.pop(reference)
        self.alive[name] -= size
        self.total -= size


def _storages(tensors: Any) -> Iterator[torch.UntypedStorage]:
    for x in tree_leaves(tensors):
        if isinstance(x, Tensor):
            yield x.untyped_storage()


def _laid_out(func: Callable[..., Any], x: Any) -> Any:
    """x as the kernel of `func` takes it: a copy that it would make inside is made here, where it is counted."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.is_contiguous():
        return x
    if func in _CONTIGUOUS:
        return x.contiguous()
    if func in _MATRICES:
        (rows, columns), (m, n) = x.stride()[-2:], x.shape[-2:]
        if not ((columns == 1 and rows >= n) or (rows == 1 and columns >= m)):
            return x.contiguous()
    return x


def _stage(path: str, module: nn.Module) -> str | None:
    name = getattr(module, "stage", None)
    if name is None:
        return {"structure": "structure: the rest", "": PASS}.get(path)
    for pattern, stack in STACKS:
        if re.fullmatch(pattern, path):
            return f"{stack}: {name}"
    return f"pass: {name}"
