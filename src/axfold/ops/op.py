"""What an operation is: a reference that defines it, and backends that agree with it."""

from collections.abc import Callable
from typing import Any

from axfold.errors import AxfoldError


class BackendError(AxfoldError):
    """A backend was asked for by name and can't take the call."""


class Op:
    """A function of tensors, defined by a plain PyTorch reference; backends that are faster register beside it.

    A call takes the backend that was registered last and can take it; the reference can always.
    """

    def __init__(self, reference: Callable[..., Any]):
        self.name = reference.__name__
        self.__doc__ = reference.__doc__
        self.backends: dict[str, tuple[Callable[..., Any], Callable[..., str | None]]] = {}
        self.backend("reference", why_not=lambda *args: None)(reference)

    def backend(self, name: str, *, why_not: Callable[..., str | None]) -> Callable[..., Any]:
        """Register a backend; why_not(*args) says why it can't take a call, or returns None."""

        def register(run: Callable[..., Any]) -> Callable[..., Any]:
            self.backends[name] = run, why_not
            return run

        return register

    def __call__(self, *args: Any, backend: str | None = None) -> Any:
        """Run the operation; `backend` names the one to use, which then fails if it can't take the call."""
        if backend is not None:
            if backend not in self.backends:
                raise BackendError(
                    f"{self.name} has no backend {backend!r}; it has {', '.join(self.backends)}."
                )
            run, why_not = self.backends[backend]
            if reason := why_not(*args):
                raise BackendError(f"{self.name}: backend {backend!r} can't take this call: {reason}.")
            return run(*args)
        return self.backends[self.backend_for(*args)][0](*args)

    def backend_for(self, *args: Any) -> str:
        """Name of the backend that such a call takes."""
        for name, (_, why_not) in reversed(self.backends.items()):
            if why_not(*args) is None:
                return name
        raise AssertionError("the reference takes every call")
