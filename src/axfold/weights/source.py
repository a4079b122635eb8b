"""What `--params` says: a file, a folder, made-up parameters, or nothing (the cache)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from axfold.config import DEMO, Config
from axfold.errors import WeightsError
from axfold.weights import files, registry, synthetic
from axfold.weights.names import released_shapes
from axfold.weights.tensors import Tensors


@dataclass(frozen=True)
class Source:
    """Where a model's parameters come from: the file `path`, or `seed` if they are made up."""

    path: Path | None = None
    seed: int = 0

    @property
    def is_synthetic(self) -> bool:
        """True where a structure predicted with these parameters means nothing; every output says so."""
        return self.path is None or files.origin(self.path).startswith("synthetic")

    def __str__(self) -> str:
        return f"synthetic:{self.seed}" if self.path is None else str(self.path)


def find(model_name: str, params: str | Path | None = None, cache: Path | None = None) -> Source:
    """The source that `params` names for a model, nothing of it read yet.

    `params` is `synthetic` or `synthetic:SEED`, a parameter file, a folder with one (AlphaFold's data folder,
    too), or None for the cache (`registry.cache_folder`) or what comes with axfold. Raises WeightsError where there
    is none.
    """
    if params is None:
        folder = registry.cache_folder(cache)
        if path := next(registry.candidates(model_name, folder), None) or registry.packaged(model_name):
            return Source(path)
        if model_name == DEMO:
            raise WeightsError(
                "This copy of axfold comes without the demo model's parameters: name a file of them with --params, "
                "or train some with `axfold train run`."
            )
        raise WeightsError(
            f"There are no parameters of {model_name} in {folder}. Run `axfold weights download`, name a file with "
            "--params FILE, or try --params synthetic (its structures mean nothing)."
        )
    word, colon, seed = str(params).partition(":")
    if word == "synthetic":
        if colon and not (seed.isascii() and seed.isdigit()):
            raise WeightsError(f"--params {params}: the seed must be a whole number, such as synthetic:1.")
        return Source(seed=int(seed) if colon else 0)
    path = Path(params).expanduser()
    if path.is_dir():
        for folder in (path, path / "params"):
            if found := next(registry.candidates(model_name, folder), None):
                return Source(found)
        raise WeightsError(
            f"{path} holds no params_{model_name}.npz, {model_name}.safetensors or {registry.ALPHAFOLD.archive}: "
            "name the parameter file itself, or run `axfold weights download`."
        )
    if not path.exists():
        raise WeightsError(
            f"--params {path}: there is no such file or folder. Run `axfold weights download`, or try "
            "--params synthetic (its structures mean nothing)."
        )
    return Source(path)


@contextmanager
def opened(source: Source, config: Config) -> Iterator[Tensors]:
    """The tensors of `source`, checked to be those of `config`; valid inside the `with`."""
    if source.path is None:
        yield synthetic.parameters(released_shapes(config.model), source.seed)
    else:
        with files.opened(source.path, config) as tensors:
            yield tensors
