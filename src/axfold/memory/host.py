"""Representations in host memory: rows that stream through a device, and tensors that rest while they are idle."""

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from axfold.errors import AxfoldError
from axfold.memory.rows import Rows

STAGES = 3  # blocks on the device at once: one comes in, one is worked on, one goes out


class Bus:
    """Copies blocks between host memory and a device on streams of their own, behind the computation.

    Where the device is the CPU the blocks are copied too, so that everything can be tested there.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._stages: dict[tuple[int, int], Tensor] = {}
        self._free: dict[int, torch.cuda.Event] = {}
        self._host: dict[str, Tensor] = {}

    def host(self, slot: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory for the tensor of that name, pinned for a GPU; what the name held before is given up.

        Pinning takes about a second a GiB, so the memory is kept and used again.
        """
        size = prod(shape) * dtype.itemsize
        if slot not in self._host or self._host[slot].numel() < size:
            self._host.pop(slot, None)
            self._host[slot] = torch.empty(0, dtype=torch.uint8)
            self._host[slot].resize_(size)  # only now: `keeps` knows it from its first byte on
            if self.on_gpu:
                _pin(self._host[slot])
        return self._host[slot][:size].view(dtype).view(shape)

    def keeps(self, storage: torch.UntypedStorage) -> bool:
        """Is this the host memory of some name?"""
        return any(storage.data_ptr() == kept.untyped_storage().data_ptr() for kept in self._host.values())

    def begin(self) -> None:
        """Before the first block of a call: what earlier calls computed and sent is complete for this one."""
        if self.on_gpu:
            self._in.wait_stream(torch.cuda.current_stream(self.device))
            self._in.wait_stream(self._out)
            self._free.clear()

    def bring(self, index: int, operand: int, block: Tensor) -> Tensor:
        """A copy on the device of the index-th block of an operand; work queued from now on waits for it."""
        stage = index % STAGES
        staged = self._stage(stage, operand, block)
        if not self.on_gpu:
            return staged.copy_(block)
        if stage in self._free:
            self._in.wait_event(self._free[stage])
        _copy(staged, block, self._in)
        torch.cuda.current_stream(self.device).wait_stream(self._in)
        return staged

    def send(self, index: int, staged: Tensor, block: Tensor) -> None:
        """Copy a block back to the host once the work queued so far is done."""
        if not self.on_gpu:
            block.copy_(staged)
            return
        self._out.wait_stream(torch.cuda.current_stream(self.device))
        _copy(block, staged, self._out)
        self._free[index % STAGES] = self._out.record_event()

    def used(self, index: int) -> None:
        """The blocks of this index are only read, by the work queued so far."""
        if self.on_gpu:
            self._free[index % STAGES] = torch.cuda.current_stream(self.device).record_event()

    def _stage(self, stage: int, operand: int, like: Tensor) -> Tensor:
        dense = _row_major(like)
        size = dense.numel() * dense.element_size()
        kept = self._stages.get((stage, operand))
        if kept is None or kept.numel() < size:
            if self.on_gpu:  # nothing may still use the one that is given up
                self._in.synchronize()
                self._out.synchronize()
                torch.cuda.current_stream(self.device).synchronize()
            kept = None
            self._stages.pop((stage, operand), None)
            kept = self._stages[stage, operand] = torch.empty(size, dtype=torch.uint8, device=self.device)
        staged = kept[:size].view(like.dtype).view(dense.shape)
        return staged if dense is like else staged.transpose(-2, -3)

    @contextmanager
    def resting(self, x: Tensor) -> Iterator[None]:
        """Keep the values of x on the host meanwhile; its memory on the device is free for others."""
        if not x.is_cuda:
            yield
            return
        storage = x.untyped_storage()
        size, flat = storage.nbytes(), torch.empty(0, dtype=torch.uint8, device=x.device)
        kept = self.host("resting", (size,), torch.uint8)
        kept.copy_(flat.set_(storage), non_blocking=False)
        storage.resize_(0)
        try:
            yield
        finally:
            storage.resize_(size)
            torch.empty(0, dtype=torch.uint8, device=x.device).set_(storage).copy_(kept, non_blocking=True)


@dataclass(frozen=True)
class HostRows(Rows):
    """Rows for tensors that may live in host memory: their blocks pass through the bus's device.

    Tensors on the device are worked on as `Rows` does. `slots` are the representations to keep on the host; None
    keeps all.
    """

    bus: Bus | None = None
    slots: frozenset[str] | None = None

    def zeros(self, slot: str, like: Tensor, *shape: int) -> Tensor:
        if self.slots is not None and slot not in self.slots:
            return super().zeros(slot, like, *shape)
        assert self.bus is not None
        return self.bus.host(slot, shape, like.dtype).zero_()

    def _passes(self, x: Tensor) -> bool:
        """Does x live on the host and go through the bus? On a CPU all that came from `zeros` does."""
        if self.bus is None or torch.is_grad_enabled():
            return False
        if self.bus.on_gpu:
            return not x.is_cuda
        return self.bus.keeps(x.untyped_storage())

    def gather(self, prepare: Callable[..., Tensor], *operands: Tensor, axis: int, out_axis: int) -> Tensor:
        passing = [self._passes(x) for x in operands]
        if not any(passing):
            return super().gather(prepare, *operands, axis=axis, out_axis=out_axis)
        assert self.bus is not None
        whole, total = None, operands[0].shape[axis]
        self.bus.begin()
        for index, (start, size) in enumerate(self.blocks(total)):
            blocks = [x.narrow(axis, start, size) for x in operands]
            for i, comes in enumerate(passing):
                if comes:
                    blocks[i] = self.bus.bring(index, i, blocks[i])
            part = prepare(*blocks)
            self.bus.used(index)
            if whole is None:
                shape = list(part.shape)
                shape[out_axis] = total
                whole = part.new_empty(shape)
            whole.narrow(out_axis, start, size).copy_(part)
            del part
        assert whole is not None
        return whole

    def update(self, update: Callable[..., Tensor], x: Tensor, *operands: Tensor, axis: int) -> Tensor:
        passing = [self._passes(operand) for operand in (x, *operands)]
        if not any(passing):
            return super().update(update, x, *operands, axis=axis)
        assert self.bus is not None
        self.bus.begin()
        for index, (start, size) in enumerate(self.blocks(x.shape[axis])):
            there = [operand.narrow(axis, start, size) for operand in (x, *operands)]
            here = [
                self.bus.bring(index, i, block) if comes else block.to(self.bus.device)
                for i, (block, comes) in enumerate(zip(there, passing, strict=True))
            ]
            new = update(*here)
            if new.data_ptr() != here[0].data_ptr():
                here[0].copy_(new)
            del new
            if passing[0]:
                self.bus.send(index, here[0], there[0])
            else:
                self.bus.used(index)
        return x


def _row_major(x: Tensor) -> Tensor:
    """x, or its two leading axes exchanged where that is the order in which it lies in memory."""
    return x.transpose(-2, -3) if x.dim() > 2 and x.stride(-3) < x.stride(-2) else x


def _pin(memory: Tensor) -> None:
    """Lock it in physical memory until it is freed. PyTorch's own pinned memory comes in powers of two."""
    runtime, address, size = torch.cuda.cudart(), memory.data_ptr(), memory.numel()
    if int(runtime.cudaHostRegister(address, size, 0)):
        raise AxfoldError(
            f"{size / 2**30:.1f} GiB of host memory can't be locked for transfers to the GPU; close other "
            "programs, or ask for less with a shorter protein."
        )
    weakref.finalize(memory.untyped_storage(), runtime.cudaHostUnregister, address)


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of the driver's interface."""

    _fields_ = [
        (f"{side}_{name}", kind)
        for side in ("source", "target")
        for name, kind in (
            ("x", ctypes.c_size_t),
            ("y", ctypes.c_size_t),
            ("type", ctypes.c_uint),
            ("host", ctypes.c_void_p),
            ("device", ctypes.c_uint64),
            ("array", ctypes.c_void_p),
            ("pitch", ctypes.c_size_t),
        )
    ] + [("width", ctypes.c_size_t), ("height", ctypes.c_size_t)]


_HOST, _DEVICE = 1, 2  # CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_DEVICE


def _copy(target: Tensor, source: Tensor, stream: "torch.cuda.Stream") -> None:
    """Copy between the host and a GPU on `stream`; one side may be columns of a larger tensor.

    PyTorch would gather such columns on the CPU first; the copy engine takes them as they lie.
    """
    if any(_row_major(x) is not x for x in (target, source)):
        target, source = target.transpose(-2, -3), source.transpose(-2, -3)
    if target.is_contiguous() and source.is_contiguous():
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        return
    copy = _Copy2D(width=source[0].numel() * source.element_size(), height=source.shape[0])
    for side, x in (("source", source), ("target", target)):
        assert x[0].is_contiguous()
        setattr(copy, f"{side}_type", _DEVICE if x.is_cuda else _HOST)
        setattr(copy, f"{side}_{'device' if x.is_cuda else 'host'}", x.data_ptr())
        setattr(copy, f"{side}_pitch", x.stride(0) * x.element_size())
    with torch.cuda.device(stream.device):
        failed = ctypes.CDLL("libcuda.so.1").cuMemcpy2DAsync_v2(
            ctypes.byref(copy), ctypes.c_void_p(stream.cuda_stream)
        )
    if failed:
        raise RuntimeError(f"a copy between host and GPU failed: CUDA driver error {failed}")
