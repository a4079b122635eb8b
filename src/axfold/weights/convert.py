"""Any parameter file -> axfold's own format: read by memory mapping, no names to map, its origin inside."""

from dataclasses import dataclass
from pathlib import Path

from axfold.config import PRESETS
from axfold.errors import InputError
from axfold.weights import files, names
from axfold.weights.registry import ALPHAFOLD
from axfold.weights.source import Source, opened


@dataclass(frozen=True)
class Converted:
    """A file written by `convert`: its parameters (tensors) and all their numbers."""

    path: Path
    model: str
    parameters: int
    values: int


def convert(source: Source, model: str, out: Path) -> Converted:
    """Write the parameters of the preset `model` from `source` to `out` as axfold's safetensors.

    Raises WeightsError where the source is not of that model, InputError for an unknown model or a name that
    does not end in .safetensors, AxfoldError where `out` can't be written.
    """
    if model not in PRESETS:
        raise InputError(f"There is no model {model!r}: choose one of {', '.join(PRESETS)}.")
    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the file to write must end in .safetensors.")
    config = PRESETS[model]
    with opened(source, config) as tensors:
        if tensors.naming == "axfold":
            state = dict(tensors)
        else:
            wanted = names.parameters(config.model)
            state = {name: names.assemble(pieces, tensors) for name, pieces in wanted.items()}
    about = {
        "model": model,
        "source": str(source) if source.path is None else files.origin(source.path) or source.path.name,
        "licence": "none (pseudo-random numbers)" if source.is_synthetic else _LICENCE,
    }
    files.write(out, state, about)
    return Converted(out, model, len(state), sum(array.size for array in state.values()))


_LICENCE = (
    f"that of the source; the released parameters of AlphaFold and of OpenFold are {ALPHAFOLD.licence} "
    f"({ALPHAFOLD.licence_address})"
)
