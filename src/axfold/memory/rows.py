"""The loop that feeds the rows of a representation to an update. It knows neither the model nor a policy:
how many rows go at once is decided by whoever makes a `Rows`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from axfold.memory.budget import at_once


def put(rows: Tensor, new: Tensor) -> None:
    """What an update made of rows in their place, where it has not written into them already."""
    if new.data_ptr() != rows.data_ptr():
        rows.copy_(new)


def narrowed(x: Tensor, axis: int, start: int, size: int) -> Tensor:
    """x narrowed, or x itself for all of it: the gradient of what is narrowed would be copied."""
    return x if size == x.shape[axis] else x.narrow(axis, start, size)


@dataclass(frozen=True)
class Rows:
    """Runs functions over blocks of `size` rows; None takes all rows at once.

    The row axis is the same, counted from the front, in all tensors of a call, since they share their batch axes.
    Rows of an operand that lives elsewhere are brought to the device of x as they are needed.

    context_bytes: a larger context is made and used in parts, where the update allows it; None is all at once
    """

    size: int | None = None
    context_bytes: int | None = field(default=None, kw_only=True)

    def zeros(self, slot: str, like: Tensor, *shape: int) -> Tensor:
        """A tensor for the large representation that `slot` names, where this object's rows live."""
        return like.new_zeros(shape)

    def place(self, slot: str, like: Tensor, x: Tensor) -> Tensor:
        """A copy of x where `zeros` would make it, in the type of `like`."""
        return like.new_empty(x.shape).copy_(x)

    def read(self, x: Tensor, start: int, size: int) -> Tensor:
        """So many rows (axis -3) of a large representation, where they are computed with."""
        return x.narrow(-3, start, size)

    def rereading(self, x: Tensor) -> AbstractContextManager[Any]:
        """While a large representation is read again and again, and nothing writes it."""
        return nullcontext()

    def whole(self, x: Tensor) -> Tensor:
        """All of a large representation as a tensor that anyone may read; x itself where it is one."""
        return x

    def drop(self) -> None:
        """An error has ended a pass: nothing of it is to be completed."""

    def blocks(self, rows: int) -> Iterator[tuple[int, int]]:
        """(first row, number of rows) of each block."""
        size = min(self.size or rows, rows)
        for start in range(0, rows, max(size, 1)):
            yield start, min(size, rows - start)

    def parts(self, columns: int, each_bytes: int) -> Iterator[tuple[int, int]]:
        """(first column, number of columns) of each part of a context that takes so many bytes for a column."""
        size = at_once(columns, each_bytes, self.context_bytes)
        for start in range(0, columns, max(size, 1)):
            yield start, min(size, columns - start)

    def gather(self, prepare: Callable[..., Tensor], *operands: Tensor, axis: int, out_axis: int) -> Tensor:
        """prepare(*rows) of every block, side by side along `out_axis`; `axis` is the operands' row axis."""
        total = operands[0].shape[axis]
        whole, parts = None, []
        for start, size in self.blocks(total):
            part = prepare(*(narrowed(x, axis, start, size) for x in operands))
            if size == total:
                return part
            if torch.is_grad_enabled():
                parts.append(part)
                continue
            if whole is None:
                shape = list(part.shape)
                shape[out_axis] = total
                whole = part.new_empty(shape)
            whole.narrow(out_axis, start, size).copy_(part)
            del part
        return torch.cat(parts, dim=out_axis) if whole is None else whole

    def update(
        self,
        update: Callable[..., Tensor],
        x: Tensor,
        *operands: Tensor,
        axis: int,
        by_element: bool = False,
    ) -> Tensor:
        """x with every block of rows replaced by update(rows of x, rows of each operand).

        Where no gradient is recorded the rows are written into x itself: a finished row is never read again.
        by_element: `update` takes x alone and acts on every element by itself, so that any blocks will do
        """
        recorded = torch.is_grad_enabled()
        parts = []
        for start, size in self.blocks(x.shape[axis]):
            rows = narrowed(x, axis, start, size)
            new = update(rows, *(narrowed(operand, axis, start, size).to(x.device) for operand in operands))
            if recorded:
                parts.append(new)
            else:
                put(rows, new)
            del new
        if not recorded:
            return x
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
