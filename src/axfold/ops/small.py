"""Small arguments like those of a call: what a backend is checked with before it is used."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ROWS, POSITIONS = 3, 63
"""Of a small representation; its channels are the call's, so that the kernel is compiled as the call needs it."""


class Small(NamedTuple):
    """An argument to be drawn: normal numbers times `scale`, or a mask; "none hidden" is one number expanded."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: Literal["normal", "positive", "mask", "none hidden"] = "normal"
    scale: float = 1.0

    def __str__(self) -> str:
        kind = "" if self.kind == "normal" else f" {self.kind}"
        return f"{str(self.dtype).removeprefix('torch.')}[{','.join(map(str, self.shape))}]{kind}"


Smalls = tuple[Small | None, ...]


def normal(like: Tensor, *shape: int) -> Small:
    """Normal numbers of `shape`, and of the dtype of `like`."""
    return Small(shape, like.dtype)


def mask(like: Tensor, *shape: int) -> Small:
    """A mask that hides a third, or nothing where `like` hides nothing at sight."""
    return Small(shape, like.dtype, "mask" if any(like.stride()) else "none hidden")


def parameters(given: Iterable[Tensor | None]) -> Smalls:
    """Weights [out, in] and vectors of these shapes, so large that what they make is about as large as 1."""
    return tuple(
        None if x is None else Small(tuple(x.shape), x.dtype, scale=x.shape[-1] ** -0.5 if x.dim() > 1 else 1)
        for x in given
    )


def dropout(keep: Tensor | None, channels: int) -> Small | None:
    """What dropout multiplies an update [ROWS, POSITIONS, channels] with, where it does."""
    return None if keep is None else Small((1, POSITIONS, channels), keep.dtype, "mask")


def draw(smalls: Sequence[Small | None], device: torch.device) -> list[Tensor | None]:
    """The arguments, the same each time; no other random numbers are disturbed."""
    generator = torch.Generator().manual_seed(0)

    def tensor(small: Small) -> Tensor:
        shape, dtype, kind, scale = small
        if kind == "none hidden":
            return torch.ones((), dtype=dtype, device=device).expand(shape)
        x = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * scale
        if kind == "mask":
            x = (x > -0.4).float()
        elif kind == "positive":
            x = 1 + x.abs()
        return x.to(device, dtype)

    return [None if small is None else tensor(small) for small in smalls]
