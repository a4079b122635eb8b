"""What an operation is: a reference that defines it, and backends that agree with it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from axfold.errors import AxfoldError
from axfold.ops.health import HEALTH, capturing
from axfold.ops.small import Smalls

_CHOICES = 4096  # as many kinds of calls as an operation remembers


class BackendError(AxfoldError):
    """A backend was asked for by name and can't take the call."""


class Op:
    """A function of tensors, defined by a plain PyTorch reference; backends that are faster register beside it.

    A call takes the backend that was registered last and can take it; the reference can always, and is what
    torch.compile sees. A backend that is checked must have computed what the reference does, once on this machine: see
    `health`.
    """

    def __init__(self, reference: Callable[..., Any]):
        self.name = reference.__name__
        self.reference = reference
        self.__doc__ = reference.__doc__
        self.backends: dict[str, tuple[Callable[..., Any], Callable[..., str | None]]] = {}
        self.checked: set[str] = set()
        self.small: Callable[..., Smalls] | None = None
        self._choices: dict[Any, str] = {}
        self._chosen_among = self.backends
        self.backend("reference", why_not=lambda *args: None, checked=False)(reference)

    def backend(
        self, name: str, *, why_not: Callable[..., str | None], checked: bool = True
    ) -> Callable[..., Any]:
        """Register a backend; why_not(*args) says why it can't take a call, or returns None.

        why_not may look at shapes, strides, dtypes and devices of the arguments, at whether gradients are recorded,
        and at PyTorch's precision of float32 products: calls that agree in these share its answer. `checked`: its
        first use on a device is preceded by a comparison with the reference.
        """

        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            self.backends[name] = run, why_not
            if checked:
                self.checked.add(name)
            self.forget()
            return run

        return register

    def like(self, small: Callable[..., Smalls]) -> Callable[..., Smalls]:
        """Register small(*args): which small arguments check a backend before it takes a call with these."""
        self.small = small
        return small

    def forget(self) -> None:
        """Choose backends anew: something changed that `why_not` doesn't see."""
        self._choices.clear()
        self._chosen_among = self.backends

    def __call__(self, *args: Any, backend: str | None = None) -> Any:
        """Run the operation; `backend` names the one to use, which then fails if it can't take the call."""
        if backend is None and (len(self.backends) == 1 or torch.compiler.is_compiling()):
            return self.backends["reference"][0](*args)  # of which a compiler makes kernels of its own
        kind = (
            backend,
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            *[
                (x.shape, x.stride(), x.dtype, x.device, x.requires_grad) if isinstance(x, Tensor) else x
                for x in args
            ],
        )
        if self._chosen_among is not self.backends:  # a test gave it others
            self.forget()
        name = self._choices.get(kind)
        if name not in self.backends:
            name = self._checked(backend, args) if backend else self.backend_for(*args)
            if not capturing():  # when nothing can be checked
                if len(self._choices) >= _CHOICES:
                    self.forget()
                self._choices[kind] = name
        return self.backends[name][0](*args)

    def backend_for(self, *args: Any) -> str:
        """Name of the backend that such a call takes; one that was never used is checked now."""
        for name in reversed(self.backends):
            takes = self.backends[name][1](*args) is None
            if takes and (name not in self.checked or HEALTH.allows(self, name, args)):
                return name
        raise AssertionError("the reference takes every call")

    def why_not(self, backend: str, *args: Any) -> str | None:
        """Why a backend can't take such a call, or None; one that was never used is checked now."""
        if reason := self.backends[backend][1](*args):
            return reason
        return HEALTH.why_not(self, backend, args) if backend in self.checked else None

    def _checked(self, backend: str, args: tuple[Any, ...]) -> str:
        """`backend`, which can take the call. Raises BackendError."""
        if backend not in self.backends:
            raise BackendError(f"{self.name} has no backend {backend!r}; it has {', '.join(self.backends)}.")
        if reason := self.why_not(backend, *args):
            raise BackendError(f"{self.name}: backend {backend!r} can't take this call: {reason}.")
        return backend
