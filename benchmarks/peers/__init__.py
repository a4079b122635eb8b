"""Other packages on the passes that benchmarks/model.py and benchmarks/cold.py run. Nothing of them is shipped.

Each has a module here, an adapter. It runs in a process of its own (`process.measure`), for packages hold memory,
change settings of PyTorch, or fail in ways of their own.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from axfold.config import Config

PEERS = ("colabfold", "openfold", "fastfold")
"""Modules of this folder."""

Pass = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Runs one pass over NumPy features, to its end; returns what the package itself says of it, such as
`compile_seconds`."""


class Peer(Protocol):
    """What such a module has."""

    NAME: str
    PACKAGES: tuple[str, ...]  # whose versions a result records
    SETTINGS: tuple[str, ...]  # ways of running it
    ENVIRONMENT: Mapping[str, str]  # of its process

    def why_not(self, setting: str, config: Config, device: str, precision: str) -> str | None:
        """The reason why it can't be run here, or None."""

    def build(self, setting: str, config: Config, device: str, precision: str) -> Pass:
        """The model that `config` names, with the weights that it starts with: their values change no timing."""

    def forget_peak(self) -> None:
        """Begin to measure the most memory anew, where the package can."""

    def peak_bytes(self) -> int | None:
        """Most memory of the GPU that its tensors took; None on a CPU."""


def load(name: str) -> Peer:
    return cast(Peer, import_module(f"peers.{name}"))
