"""Named inputs of the operations: the shapes that the network really runs, and those that go wrong first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from axfold.ops.attention import gated_attention
from axfold.ops.op import Op

Arguments = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Attention:
    """Attention within `rows` rows of `length` positions each."""

    name: str
    rows: int
    length: int
    heads: int
    channels: int
    biased: bool = True
    masked: bool = False
    columns: bool = False  # rows of a transposed representation: neighbours in a row are far apart in memory

    op: ClassVar[Op] = gated_attention

    def __str__(self) -> str:
        return self.name

    @property
    def operations(self) -> int:
        """Floating-point operations of the two products."""
        return 4 * self.rows * self.length**2 * self.heads * self.channels

    def inputs(self, dtype: torch.dtype, device: torch.device | str, seed: int = 0) -> Arguments:
        """Random arguments, with the strides that the network's projections give them."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        def rows(*rest: int) -> Tensor:
            if self.columns:
                return normal(self.length, self.rows, *rest).transpose(0, 1)
            return normal(self.rows, self.length, *rest)

        q, k, v = rows(3, self.heads, self.channels).unbind(2)
        gate = rows(self.heads, self.channels)
        bias = normal(self.length, self.length, self.heads).movedim(-1, 0) if self.biased else None
        mask = torch.ones((), device=device).expand(self.rows, self.length)
        if self.masked:
            mask = (torch.rand(self.rows, self.length, generator=generator, device=device) > 0.3).float()
            mask[0] = 0  # a row without keys averages them
        return q, k, v, gate, mask, bias

    def some(self, arguments: Arguments, rows: Sequence[int]) -> Arguments:
        """The arguments that give these rows of the result: the first axis, whose rows do not depend on each other."""
        *by_row, bias = arguments
        return *(x if x is None else x[list(rows)] for x in by_row), bias


def _attention(
    name: str, rows: int | None, lengths: Sequence[int], heads: int, channels: int
) -> list[Attention]:
    return [Attention(f"{name}, N = {n}", rows or n, n, heads, channels) for n in lengths]


REAL = (
    *_attention("triangle attention", None, (256, 512, 1024, 2048), 4, 32),
    Attention("triangle attention, ending node, N = 1024", 1024, 1024, 4, 32, columns=True),
    Attention("triangle attention, masked, N = 1024", 1024, 1024, 4, 32, masked=True),
    *_attention("template attention", None, (512,), 4, 16),
    *_attention("MSA row attention", 512, (256, 1024), 8, 32),
    *_attention("extra MSA row attention", 5120, (256, 1024), 8, 8),
    *(
        Attention(f"MSA column attention, N = {n}", n, 512, 8, 32, biased=False, columns=True)
        for n in (256, 1024)
    ),
)
"""What a pass of the network consists of."""

ODD = tuple(
    Attention(
        f"{n} positions, {heads} x {c}{', biased' * biased}{', masked' * masked}",
        3,
        n,
        heads,
        c,
        biased,
        masked,
    )
    for n, heads, c in ((1, 4, 32), (17, 8, 8), (63, 4, 16), (64, 2, 32), (1000, 2, 32))
    for biased in (True, False)
    for masked in (True, False)
)
"""Sizes beside the powers of two."""
