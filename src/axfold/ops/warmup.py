"""Kernels made ready beside other work, so that a first protein need not wait for each of them in turn.

Triton compiles a kernel for about a second, in code that lets other threads run, and calls an assembler and a C
compiler, which are processes of their own. So the kernels of a network are built at once, by threads, while its
parameters are read; and those that have never been used on this machine are checked (see `health`).
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from axfold.ops import cases
from axfold.ops.cases import Call
from axfold.ops.small import draw

THREADS = max(2, min(24, os.cpu_count() or 1))
MOST = 2048  # residues or sequences: longer ones take the same backends


class Warmup:
    """Kernels that are being made ready. `wait` before one of them is called, or a precision of products is changed."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        residues: int,
        clusters: int,
        templates: bool = False,
    ):
        """For a network in `dtype`, for proteins of so many residues and so many clusters of the alignment.

        A kernel that nothing uses does no harm, and one that is missing is built when it is called.
        """
        self._device = device
        calls = [
            call
            for call in cases.calls(dtype, length=min(residues, MOST), clusters=min(clusters, MOST))
            if call.of_network and (templates or not call.name.startswith("template"))
        ]
        builders, checker = ThreadPoolExecutor(THREADS), ThreadPoolExecutor(1)
        built = {builders.submit(self._build, call): call for call in calls}
        self._checked = checker.submit(self._check, built)
        builders.shutdown(wait=False)
        checker.shutdown(wait=False)

    def wait(self) -> None:
        """Returns once all is ready. Raises DeviceLost where a kernel has stopped the device."""
        with suppress(torch.OutOfMemoryError):  # the call itself tells
            self._checked.result()

    def _build(self, call: Call) -> None:
        """Compile and load what the call launches, by a call with small arguments."""
        assert call.op.small is not None
        with self._here(), torch.no_grad(), suppress(Exception):  # the check tells what is wrong
            given = self._arguments(call)
            name = next(
                name for name, (_, why_not) in reversed(call.op.backends.items()) if not why_not(*given)
            )
            if name in call.op.checked:
                call.op.backends[name][0](*draw(call.op.small(*given), self._device))

    def _check(self, built: dict[Future[None], Call]) -> None:
        """One after the other, since each thread that multiplies matrices takes memory of the device for that."""
        with self._here(), torch.no_grad():
            for future in as_completed(built):
                call = built[future]
                call.op.backend_for(*self._arguments(call))

    def _arguments(self, call: Call) -> list[Tensor | None]:
        """As large as the network's own, but for most rows: which backend takes them depends on that."""
        return [
            None
            if x is None
            else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=self._device)
            for x in call.arguments
        ]

    def _here(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
