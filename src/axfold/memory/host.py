"""Representations in host memory: rows that stream through a device, and tensors that rest while they are idle."""

import ctypes
import mmap
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from axfold.errors import AxfoldError
from axfold.memory.rows import Rows, put

_PAGE = mmap.PAGESIZE
STAGES = 3  # blocks on the device at once: one comes in, one is worked on, one goes out


@dataclass(frozen=True)
class Deferred:
    """An update of x whose rows have yet to pass through the device: until they do, nothing may read x.

    stage: whose update it is. run(then): lets the rows pass, and calls then(first row, rows) with each updated block
    while it is there.
    """

    stage: str
    x: Tensor
    operands: tuple[Tensor, ...]
    run: Callable[[Callable[[int, Tensor], None] | None], Tensor]


class Bus:
    """Copies blocks between host memory and a device on streams of their own, behind the computation.

    Leading rows of a representation may stay on the device: its tensor has the whole shape, but the memory of those
    rows is never touched, so that the system never provides it; blocks are put together from both here. Where the
    device is the CPU the blocks are copied too, so that everything can be tested there.

    brought_bytes, sent_bytes: what has crossed the bus so far
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self._in, self._out = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.brought_bytes = self.sent_bytes = 0
        self._stages: dict[int, list[Tensor]] = {}
        self._blocks = 0
        self._free: dict[int, torch.cuda.Event] = {}
        self._host: dict[str, Tensor] = {}
        self._pinned: dict[str, int] = {}
        self._kept: dict[str, Tensor] = {}
        self._lent: tuple[Tensor, int, Tensor] | None = None
        self._deferred: Deferred | None = None

    def host(self, slot: str, shape: tuple[int, ...], dtype: torch.dtype, kept: int = 0) -> Tensor:
        """Host memory for the tensor of that name, pinned for a GPU; what the name held before is given up.

        So many of its leading rows (axis -3) stay on the device; see `split`. Pinning takes about a second a GiB, so
        the memory is kept and used again.
        """
        if self._deferred is not None:
            if self._slot(self._deferred.x) == slot:
                self.drop()
            elif any(self._slot(x) == slot for x in self._deferred.operands):
                self.settle()
        self.wait()  # for copies from and to what the name held
        self._kept.pop(slot, None)
        size, first = prod(shape) * dtype.itemsize, 0
        if kept:
            kept = min(kept, shape[-3])
            self._kept[slot] = torch.empty(*shape[:-3], kept, *shape[-2:], dtype=dtype, device=self.device)
            first = kept * prod(shape[-2:]) * dtype.itemsize if len(shape) == 3 else 0
        if slot not in self._host or self._host[slot].numel() < size or self._pinned[slot] > first:
            self._host.pop(slot, None)
            self._host[slot] = torch.empty(0, dtype=torch.uint8)
            self._host[slot].resize_(size)  # only now: `keeps` knows it from its first byte on
            self._pinned[slot] = first if self.on_gpu else 0
            if self.on_gpu and size > first:
                _provide(self._host[slot], first)
                _pin(self._host[slot], first)
        return self._host[slot][:size].view(dtype).view(shape)

    def keeps(self, storage: torch.UntypedStorage) -> bool:
        """Is this the host memory of some name?"""
        return any(storage.data_ptr() == kept.untyped_storage().data_ptr() for kept in self._host.values())

    def split(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Where a tensor from `host`, or a block of its rows or columns, lies: its rows on the device, and those on
        the host; the rows are those of the memory, whichever the block's are. Either may be none."""
        dense = _row_major(block)
        kept = self._kept.get(self._slot(dense) or "")
        if kept is None:
            return dense.narrow(-3, 0, 0), dense
        first, column = divmod(int(dense.storage_offset()), kept.stride(-3))
        stay = min(max(kept.shape[-3] - first, 0), dense.shape[-3])
        mine = kept.narrow(-3, min(first, kept.shape[-3]), stay)
        mine = mine.narrow(-2, column // kept.shape[-1], dense.shape[-2])
        return mine, dense.narrow(-3, stay, dense.shape[-3] - stay)

    @contextmanager
    def lending(self, x: Tensor, rows: int) -> Iterator[None]:
        """Copies of so many rows of a tensor from `host` lie on the device meanwhile, the first of those that don't
        stay there anyway: blocks take them from there. Nothing may write x."""
        x = _row_major(x)
        others = self.split(x)[1]
        if rows and others.dim() == 3 and others.numel():
            first = x.shape[-3] - others.shape[-3]
            others = others.narrow(-3, 0, min(rows, others.shape[-3]))
            lent = torch.empty(others.shape, dtype=x.dtype, device=self.device)
            with self.passing(1):
                self.brought_bytes += others.nbytes
                self._copy(lent, others, coming=True)
            self._lent = x, first, lent
        try:
            yield
        finally:
            self._lent = None

    def wait(self) -> None:
        """Until all copies are done: then the CPU may read what is on the host, and write it."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Give up what is on the device, and what was deferred: what `host` gave out before is of no use any more."""
        self.wait()
        self.drop()
        self._kept.clear()

    def defer(self, update: Deferred) -> None:
        """Let its rows pass later: at the next `settle` that concerns it."""
        self.settle()
        self._deferred = update

    def take(self, x: Tensor) -> Deferred | None:
        """The deferred update of x, for the caller to run; x may also be its transpose."""
        found = self._deferred
        if found is None or not _share(x, found.x) or x.numel() != found.x.numel():
            return None
        self._deferred = None
        return found

    def drop(self) -> None:
        """Forget what was deferred: an error has ended the pass that it belongs to."""
        self._deferred = None

    def settle(self, read: tuple[Tensor, ...] | None = None, written: Tensor | None = None) -> None:
        """Run what was deferred if it concerns what is about to be read and written; None is everything."""
        found = self._deferred
        if found is None:
            return
        operands = (found.x, *found.operands) if written is not None else ()
        if (
            read is None
            or any(_share(x, found.x) for x in read)
            or any(_share(x, written) for x in operands if written is not None)
        ):
            self._deferred = None  # an error on the way leaves nothing to be done
            found.run(None)

    @contextmanager
    def passing(self, blocks: int) -> Iterator[None]:
        """Around so many blocks, for which all that was computed and sent before is complete, as they are for what
        comes after. The buffers on the device last as long."""
        self._blocks = blocks
        if self.on_gpu:
            self._in.wait_stream(torch.cuda.current_stream(self.device))
            self._in.wait_stream(self._out)
            self._free.clear()
        try:
            yield
        finally:
            if self.on_gpu:  # what is computed next may be given the buffers' memory
                torch.cuda.current_stream(self.device).wait_stream(self._in)
                torch.cuda.current_stream(self.device).wait_stream(self._out)
            self._stages.clear()

    def bring(self, index: int, operand: int, block: Tensor) -> Tensor:
        """A copy on the device of the index-th block of an operand; work queued from now on waits for it."""
        stage = index % STAGES
        staged = self._stage(stage, operand, block)
        if self.on_gpu and stage in self._free:
            self._in.wait_event(self._free[stage])
        for target, source, crosses in self._sides(staged, block):
            self.brought_bytes += crosses * source.nbytes
            self._copy(target, source, coming=True)
        if self.on_gpu:
            torch.cuda.current_stream(self.device).wait_stream(self._in)
        return staged

    def send(self, index: int, staged: Tensor, block: Tensor) -> None:
        """Copy a block back to where it came from once the work queued so far is done."""
        if self.on_gpu:
            self._out.wait_stream(torch.cuda.current_stream(self.device))
        for source, target, crosses in self._sides(staged, block):
            self.sent_bytes += crosses * source.nbytes
            self._copy(target, source, coming=False)
        if self.on_gpu:
            self._free[index % STAGES] = self._out.record_event()

    def used(self, index: int) -> None:
        """The blocks of this index are only read, by the work queued so far."""
        if self.on_gpu:
            self._free[index % STAGES] = torch.cuda.current_stream(self.device).record_event()

    def _slot(self, x: Tensor) -> str | None:
        address = x.untyped_storage().data_ptr()
        return next(
            (s for s, kept in self._host.items() if kept.untyped_storage().data_ptr() == address), None
        )

    def _stage(self, stage: int, operand: int, like: Tensor) -> Tensor:
        dense = _row_major(like)
        size = dense.numel() * dense.element_size()
        if operand not in self._stages:  # the first block, which is the largest
            self._stages[operand] = [
                torch.empty(size, dtype=torch.uint8, device=self.device)
                for _ in range(min(STAGES, self._blocks))
            ]
            if self.on_gpu:  # work that is queued may still use this memory
                self._in.wait_stream(torch.cuda.current_stream(self.device))
        buffer = self._stages[operand][stage]
        staged = buffer[:size].view(like.dtype).view(dense.shape)
        return staged if dense is like else staged.transpose(-2, -3)

    def _sides(self, staged: Tensor, block: Tensor) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """(rows of the staged block, the same where they live, do they cross the bus?), of those that stay on the
        device and of the others."""
        if block.dim() < 3:
            yield staged, block, True
            return
        rows = staged if _row_major(block) is block else staged.transpose(-2, -3)
        mine, others = self.split(block)
        lent, others = self._split_lent(others)
        first = 0
        for there, crosses in ((mine, False), (lent, False), (others, True)):
            if there.numel():
                yield rows.narrow(-3, first, there.shape[-3]), there, crosses
            first += there.shape[-3]

    def _split_lent(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """The leading rows of a block in host memory by their copies on the device, if there are any, and the rest."""
        if self._lent is None or not others.numel() or not _share(others, self._lent[0]):
            return others.narrow(-3, 0, 0), others
        x, first, lent = self._lent
        row, column = divmod(int(others.storage_offset() - x.storage_offset()), x.stride(-3))
        there = min(max(first + lent.shape[-3] - row, 0), others.shape[-3])
        copies = lent.narrow(-3, row - first if there else 0, there)
        copies = copies.narrow(-2, column // x.shape[-1], others.shape[-2])
        return copies, others.narrow(-3, there, others.shape[-3] - there)

    def _copy(self, target: Tensor, source: Tensor, coming: bool) -> None:
        if self.on_gpu:
            _copy(target, source, self._in if coming else self._out)
        else:
            target.copy_(source)

    @contextmanager
    def resting(self, x: Tensor) -> Iterator[None]:
        """Keep the values of x on the host meanwhile; its memory on the device is free for others."""
        if not x.is_cuda:
            yield
            return
        self.settle()  # it may read x
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

    Tensors on the device are worked on as `Rows` does.

    slots: the representations to keep on the host; None keeps all
    kept: of these, how many leading rows stay on the device
    lent: of the next rows, how many are there as copies while a representation is read again and again
    stage: whose rows these are. handovers: (a stage, the next): the next one's context is made from the very rows
        that the update of the one before leaves on the device, or its update by element is done on these. So the
        update before is deferred until then, or until anything else wants its rows.
    """

    bus: Bus | None = None
    slots: frozenset[str] | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    stage: str = ""
    handovers: frozenset[tuple[str, str]] = frozenset()
    lent: int = 0

    def zeros(self, slot: str, like: Tensor, *shape: int) -> Tensor:
        if self.slots is not None and slot not in self.slots:
            return super().zeros(slot, like, *shape)
        return self._placed(slot, shape, like.dtype, None)

    def place(self, slot: str, like: Tensor, x: Tensor) -> Tensor:
        if self.slots is not None and slot not in self.slots:
            return super().place(slot, like, x)
        return self._placed(slot, x.shape, like.dtype, x)

    def _placed(self, slot: str, shape: tuple[int, ...], dtype: torch.dtype, values: Tensor | None) -> Tensor:
        assert self.bus is not None
        x = self.bus.host(slot, shape, dtype, self.kept.get(slot, 0))
        first = 0
        for part in self.bus.split(x) if len(shape) > 2 else (x,):
            if values is None:
                part.zero_()
            elif part.numel():
                part.copy_(values.narrow(-3, first, part.shape[-3]))
                first += part.shape[-3]
        return x

    def read(self, x: Tensor, start: int, size: int) -> Tensor:
        rows = super().read(x, start, size)
        if not self._is_away(x):
            return rows
        assert self.bus is not None
        self.bus.settle((x,))
        with self.bus.passing(1):
            return self.bus.bring(0, 0, rows)

    def rereading(self, x: Tensor) -> AbstractContextManager[Any]:
        if not self.lent or not self._passes(x):
            return super().rereading(x)
        assert self.bus is not None
        self.bus.settle((x,))
        return self.bus.lending(x, self.lent)

    def whole(self, x: Tensor) -> Tensor:
        if not self._is_away(x):
            return x
        assert self.bus is not None
        self.bus.settle((x,))
        self.bus.wait()
        mine, others = self.bus.split(x)
        if not mine.numel():
            return x
        whole = torch.cat([mine.cpu(), others], dim=-3)
        return whole if _row_major(x) is x else whole.transpose(-2, -3)

    def drop(self) -> None:
        if self.bus is not None:
            self.bus.drop()

    def _is_away(self, x: Tensor) -> bool:
        """Does x live on the host? On a CPU all that came from `zeros` does."""
        if self.bus is None:
            return False
        return not x.is_cuda if self.bus.on_gpu else self.bus.keeps(x.untyped_storage())

    def _passes(self, x: Tensor) -> bool:
        """Does x go through the bus, row by row?"""
        return not torch.is_grad_enabled() and self._is_away(x)

    def gather(self, prepare: Callable[..., Tensor], *operands: Tensor, axis: int, out_axis: int) -> Tensor:
        passing = [self._passes(x) for x in operands]
        if not any(passing):
            return super().gather(prepare, *operands, axis=axis, out_axis=out_axis)
        assert self.bus is not None
        x, *others = operands
        if passing == [True] + [False] * len(others) and (before := self._before(x)) is not None:
            return self._gather_behind(before, prepare, x, *others, axis=axis, out_axis=out_axis)
        self.bus.settle(operands)
        whole, total = None, x.shape[axis]
        each = list(self.blocks(total))
        with self.bus.passing(len(each)):
            for index, (start, size) in enumerate(each):
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

    def _before(self, x: Tensor) -> Deferred | None:
        """The deferred update of x, if this stage's context is to be made from its rows as they pass."""
        assert self.bus is not None
        found = self.bus.take(x)
        if found is not None and (found.stage, self.stage) not in self.handovers:
            found.run(None)
            return None
        return found

    def _gather_behind(
        self,
        before: Deferred,
        prepare: Callable[..., Tensor],
        x: Tensor,
        *others: Tensor,
        axis: int,
        out_axis: int,
    ) -> Tensor:
        """`gather` from the blocks of a deferred update of x or of its transpose.

        In the latter case a block holds columns of x, some elements of all its rows: `prepare` acts on each element
        by itself, and what it makes has the axis of the columns behind that of the rows, as x has.
        """
        assert self.bus is not None
        whole: Tensor | None = None
        by_rows = (x.shape, x.stride()) == (before.x.shape, before.x.stride())
        along, out = (axis, out_axis) if by_rows else (axis + 1, out_axis + 1)

        def narrowed(first: int, size: int) -> list[Tensor]:
            return [other.narrow(along, first, size) for other in others]

        def then(first: int, rows: Tensor) -> None:
            nonlocal whole
            block = rows if by_rows else rows.transpose(-2, -3)
            for start, size in self.blocks(block.shape[along]):
                part = prepare(block.narrow(along, start, size), *narrowed(first + start, size))
                if whole is None:
                    whole = self._empty_behind(part, prepare, x, others, axis, out_axis, by_rows)
                whole.narrow(out, first + start, size).copy_(part.narrow(out, 0, size))
                del part

        before.run(then)
        assert whole is not None
        return whole

    def _empty_behind(
        self,
        part: Tensor,
        prepare: Callable[..., Tensor],
        x: Tensor,
        others: tuple[Tensor, ...],
        axis: int,
        out_axis: int,
        by_rows: bool,
    ) -> Tensor:
        """Memory for a whole context, of which `part` is some rows or columns."""
        if not by_rows:  # one row tells how wide the rows are: more than x has where `prepare` appends zeros
            row = part.new_zeros(x.narrow(axis, 0, 1).shape, dtype=x.dtype)
            part = prepare(row, *(other.narrow(axis, 0, 1) for other in others))
        shape = list(part.shape)
        shape[out_axis] = x.shape[axis]
        whole = part.new_empty(shape)
        if not by_rows:
            columns = x.shape[axis + 1]
            whole.narrow(out_axis + 1, columns, shape[out_axis + 1] - columns).zero_()
        return whole

    def update(
        self,
        update: Callable[..., Tensor],
        x: Tensor,
        *operands: Tensor,
        axis: int,
        by_element: bool = False,
    ) -> Tensor:
        passing = [self._passes(operand) for operand in (x, *operands)]
        if by_element and passing[0] and (before := self._before(x)) is not None:
            return self._update_behind(before, update, x)
        if self.bus is not None:
            self.bus.settle(operands, written=x)
        if not any(passing):
            return super().update(update, x, *operands, axis=axis)
        assert self.bus is not None

        def run(then: Callable[[int, Tensor], None] | None) -> Tensor:
            return self._update(update, (x, *operands), passing, axis, then)

        if passing[0] and any(stage == self.stage for stage, _ in self.handovers):
            self.bus.defer(Deferred(self.stage, x, operands, run))
            return x
        return run(None)

    def _update_behind(self, before: Deferred, update: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """An update by element of the blocks of a deferred update of x or of its transpose, deferred with it."""
        assert self.bus is not None

        def run(then: Callable[[int, Tensor], None] | None) -> Tensor:
            def both(first: int, rows: Tensor) -> None:
                for start, size in self.blocks(rows.shape[-3]):
                    block = rows.narrow(-3, start, size)
                    new = update(block)
                    put(block, new)
                    del new
                if then is not None:
                    then(first, rows)

            return before.run(both)

        self.bus.defer(Deferred(self.stage, before.x, before.operands, run))
        return x

    def _update(
        self,
        update: Callable[..., Tensor],
        operands: tuple[Tensor, ...],
        passing: list[bool],
        axis: int,
        then: Callable[[int, Tensor], None] | None,
    ) -> Tensor:
        bus, x = self.bus, operands[0]
        assert bus is not None
        each = list(self.blocks(x.shape[axis]))
        with bus.passing(len(each)):
            for index, (start, size) in enumerate(each):
                there = [operand.narrow(axis, start, size) for operand in operands]
                here = [
                    bus.bring(index, i, block) if comes else block.to(bus.device)
                    for i, (block, comes) in enumerate(zip(there, passing, strict=True))
                ]
                new = update(*here)
                put(here[0], new)
                del new
                if then is not None:
                    then(start, here[0])
                if passing[0]:
                    bus.send(index, here[0], there[0])  # only now: the buffer is free once it is sent
                else:
                    bus.used(index)
        return x


def _share(x: Tensor, y: Tensor) -> bool:
    """Is their memory the same?"""
    return bool(x.numel()) and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _row_major(x: Tensor) -> Tensor:
    """x, or its two leading axes exchanged where that is the order in which it lies in memory."""
    return x.transpose(-2, -3) if x.dim() > 2 and x.stride(-3) < x.stride(-2) else x


def _provide(memory: Tensor, first: int) -> None:
    """Let the system provide it from byte `first` on, by several threads and in large pages where it can: pinning
    would ask for one small page after the other."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        start = -(-(memory.data_ptr() + first) // _PAGE) * _PAGE
        size = (memory.data_ptr() + memory.numel()) // _PAGE * _PAGE - start
        if size > 0:  # a system without large pages refuses, and all goes on with small ones
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
    memory[first::_PAGE].zero_()


def _pin(memory: Tensor, first: int) -> None:
    """Lock it from byte `first` on in physical memory until it is freed. PyTorch's own comes in powers of two."""
    runtime, address, size = torch.cuda.cudart(), memory.data_ptr() + first, memory.numel() - first
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
    """Copy on `stream` between the host and a GPU, or within that; one side may be columns of a larger tensor.

    PyTorch would gather such columns on the CPU first; the copy engine takes them as they lie.
    """
    if (target.is_cuda and source.is_cuda) or (target.is_contiguous() and source.is_contiguous()):
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
