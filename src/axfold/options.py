"""What a user may set about a prediction, checked: names, ranges, and what they change of a preset."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from axfold.config import CASP14_ENSEMBLES, PRESETS, Config
from axfold.errors import InputError

PTM_MODELS = tuple(name for name in PRESETS if name.endswith("_ptm"))
"""The models that predict their aligned error, in the order in which they are run."""

DEFAULT_MODEL = PTM_MODELS[0]
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")


def models(names: Sequence[str], number: int | None = None, default: str = DEFAULT_MODEL) -> tuple[str, ...]:
    """The models to run, each once: `names`, each of which may be a list with commas, or the first `number` of
    PTM_MODELS, or `default`. Raises InputError."""
    if number is not None:
        if names:
            raise InputError("--model and --num-models exclude each other: leave one out.")
        if not 1 <= number <= len(PTM_MODELS):
            raise InputError(
                f"--num-models {number}: there are {len(PTM_MODELS)} models; give 1 to {len(PTM_MODELS)}."
            )
        return PTM_MODELS[:number]
    wanted = [name.strip() for item in names for name in item.split(",")] or [default]
    for name in wanted:
        _check_model(name)
    return tuple(dict.fromkeys(wanted))


def configured(
    model: str,
    *,
    recycles: int | None = None,
    tolerance: float | None = None,
    max_msa: str | tuple[int, int] | None = None,
    ensembles: int | None = None,
) -> Config:
    """The preset `model` with what differs from it; None keeps the preset's. Raises InputError.

    recycles: passes after the first; tolerance: Å, see Config; max_msa: clusters and extra rows of the MSA
    ("512:1024"); ensembles: samples of the MSA that each pass averages.
    """
    _check_model(model)
    config = PRESETS[model]
    if recycles is not None:
        if recycles < 0:
            raise InputError(f"--recycles {recycles}: give 0 or more; 0 is a single pass.")
        config = replace(config, recycles=recycles)
    if tolerance is not None:
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise InputError(f"--tolerance {tolerance}: give 0 Å (never stop early) or more.")
        config = replace(config, tolerance=tolerance)
    if max_msa is not None:
        clusters, extra = depths(max_msa)
        config = replace(config, data=replace(config.data, msa_clusters=clusters, extra_msa=extra))
    if ensembles is not None:
        if ensembles < 1:
            raise InputError(
                f"--ensembles {ensembles}: give 1 or more; the CASP14 runs had {CASP14_ENSEMBLES}."
            )
        config = replace(config, ensembles=ensembles)
    return config


def seeds(first: int, number: int) -> tuple[int, ...]:
    """`number` seeds from `first` on. Raises InputError."""
    if first < 0:
        raise InputError(f"--seed {first}: give 0 or more.")
    if number < 1:
        raise InputError(f"--num-seeds {number}: give 1 or more.")
    return tuple(range(first, first + number))


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """`value`, which must be one of `choices`. Raises InputError."""
    if value not in choices:
        raise InputError(f"{option} {value}: choose one of {', '.join(choices)}.")
    return value


def _check_model(name: str) -> None:
    if name not in PRESETS:
        why = "complexes are not predicted yet" if "multimer" in name else "there is no such model"
        raise InputError(f"--model {name}: {why}; choose from {', '.join(PRESETS)}.")


def depths(max_msa: str | tuple[int, int]) -> tuple[int, int]:
    """Clusters and extra rows."""
    text = max_msa if isinstance(max_msa, str) else ":".join(map(str, max_msa))
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(
            f"--max-msa {text}: give clusters and extra rows, 1 or more of each, as in 512:1024."
        )
    return int(parts[0]), int(parts[1])


def day(option: str, text: str | None) -> date | None:
    """A date as YYYY-MM-DD. Raises InputError."""
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{option} {text}: write the date as YYYY-MM-DD.") from None
