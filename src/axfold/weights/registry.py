"""The released parameters: where they are, what they are called, whose they are, and where axfold keeps them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from axfold.cache import folder
from axfold.config import DEMO, PRESETS


@dataclass(frozen=True, kw_only=True)
class Release:
    """An archive of parameters; `size` in bytes."""

    name: str
    archive: str
    address: str
    size: int
    sha256: str
    models: tuple[str, ...]
    licence: str
    licence_address: str
    citations: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """Files in the archive."""
        return (*(f"params_{model}.npz" for model in self.models), "LICENSE")


ALPHAFOLD = Release(
    name="AlphaFold parameters of 2022-12-06",
    archive="alphafold_params_2022-12-06.tar",
    address="https://storage.googleapis.com/alphafold/alphafold_params_2022-12-06.tar",
    size=5_587_968_000,
    # DeepMind publishes none; public projects that pin this file agree on it.
    sha256="36d4b0220f3c735f3296d301152b738c9776d16981d054845a68a1370b26cfe3",
    models=tuple(f"model_{n}{kind}" for kind in ("", "_ptm", "_multimer_v3") for n in range(1, 6)),
    licence="CC BY 4.0",
    licence_address="https://creativecommons.org/licenses/by/4.0/",
    citations=(
        "Jumper et al. Highly accurate protein structure prediction with AlphaFold. Nature 596, 583-589 (2021). "
        "https://doi.org/10.1038/s41586-021-03819-2",
        "Evans et al. Protein complex prediction with AlphaFold-Multimer. bioRxiv 2021.10.04.463034 (2021). "
        "https://doi.org/10.1101/2021.10.04.463034",
    ),
)


def cache_folder(cache: Path | None = None) -> Path:
    """Where parameters are kept: in axfold's cache, see `axfold.cache.folder`."""
    return folder(cache) / "params"


def candidates(model_name: str, folder: Path) -> Iterator[Path]:
    """Files of `folder` that hold the parameters of a model, the fastest to read first."""
    for name in (f"{model_name}.safetensors", f"params_{model_name}.npz", ALPHAFOLD.archive):
        if (folder / name).is_file():
            yield folder / name


def packaged(model_name: str) -> Path | None:
    """The file that comes with axfold itself, for the one model that has it."""
    path = Path(__file__).with_name(f"{model_name}.safetensors")
    return path if path.is_file() else None


def stand_in(cache: Path | None = None) -> str | None:
    """The small model that comes with axfold, where none of AlphaFold's is on this machine."""
    if packaged(DEMO) is None or any(item.path for item in listed(cache)):
        return None
    return DEMO


SMALL = (
    "AlphaFold's parameters are not here: the small demo model that comes with axfold is used, whose structures are "
    "far less accurate. `axfold weights download` fetches them (5.6 GB)."
)
"""What is said where `stand_in` is used without having been named."""


@dataclass(frozen=True)
class Listed:
    """A released model, and the file that holds its parameters on this machine (None: not here)."""

    model: str
    path: Path | None
    supported: bool


def listed(cache: Path | None = None) -> tuple[Listed, ...]:
    """Every released model, in the release's order."""
    folder = cache_folder(cache)
    return tuple(
        Listed(model, next(candidates(model, folder), None), supported=model in PRESETS)
        for model in ALPHAFOLD.models
    )
