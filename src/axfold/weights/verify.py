"""Are the parameters on this machine whole? Checksums against what was recorded, then every tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from axfold.config import PRESETS
from axfold.errors import WeightsError
from axfold.weights import registry
from axfold.weights.download import checksums, sha256
from axfold.weights.source import Source, opened


@dataclass(frozen=True)
class Verdict:
    """On one file: `problem` is None where nothing is wrong.

    `recorded` is False where no checksum was recorded when the file came, so that only its tensors are checked.
    """

    path: Path
    model: str
    sha256: str
    recorded: bool
    problem: str | None


def verify(cache: Path | None = None) -> Iterator[Verdict]:
    """Check the cached files of every released model, one after another as they are asked for."""
    folder = registry.cache_folder(cache)
    known = checksums(folder)
    for model in registry.ALPHAFOLD.models:
        for path in registry.candidates(model, folder):
            if path.name != registry.ALPHAFOLD.archive:  # whole by its checksum, about to be unpacked
                yield verify_file(path, model, known.get(path.name))


def verify_file(path: Path, model: str, recorded: str | None = None) -> Verdict:
    """Check one file of the parameters of `model`, against a recorded sha256 if there is one.

    The tensors are checked for the models that axfold can run.
    """
    digest = sha256(path)
    problem = None
    if recorded not in (None, digest):
        problem = f"{path}: has changed since it was unpacked: remove it and run `axfold weights download`."
    elif model in PRESETS:
        try:
            with opened(Source(path), PRESETS[model]) as tensors:
                for name in tensors:
                    tensors[name]
        except WeightsError as error:
            problem = str(error)
    return Verdict(path, model, digest, recorded is not None, problem)
