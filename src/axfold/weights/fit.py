"""Do the tensors of a file fit a model? Answered from names and shapes, before any value is read."""

import math
from collections.abc import Callable, Mapping

from axfold.config import PRESETS, Model
from axfold.errors import WeightsError
from axfold.weights import names
from axfold.weights.tensors import Shape, Shapes

Layout = Callable[[Model], Shapes]
"""The tensors that a file of one sort holds for a model."""


def check(where: str, found: Mapping[str, Shape], model: Model, layout: Layout) -> None:
    """Raise WeightsError with the first tensor of file `where` that is missing, of another shape or too many.

    Says for which presets the file is, if it fits any.
    """
    wrong = _first_difference(found, layout(model))
    if wrong is None:
        return
    fitting = [name for name, config in PRESETS.items() if layout(config.model) == found]
    if fitting:
        mend = f"The file fits {', '.join(fitting)}: choose with --model, or name this model's own file."
    elif any("~_relative_encoding" in name for name in found):
        mend = "It is a file of AlphaFold-Multimer: name the file of a single-chain model."
    else:
        mend = "Name a file of this model's parameters; `axfold weights download` fetches DeepMind's."
    raise WeightsError(f"{where}: {wrong}. {mend}")


def state_shapes(model: Model) -> Shapes:
    """The layout of axfold's own files: the state dict of `axfold.model`."""
    return {
        name: _outputs_and_inputs(
            [(piece.shape[: piece.inputs], piece.shape[piece.inputs :]) for piece in pieces]
        )
        for name, pieces in names.parameters(model).items()
    }


def _outputs_and_inputs(pieces: list[tuple[Shape, Shape]]) -> Shape:
    outputs = sum(math.prod(axes) for _, axes in pieces)
    inputs, _ = pieces[0]
    return (outputs, math.prod(inputs)) if inputs else (outputs,)


def _first_difference(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str | None:
    for name, shape in wanted.items():
        if name not in found:
            return f"tensor {name} is missing (shape wanted: {shape})"
        if found[name] != shape:
            return f"tensor {name} has shape {found[name]}, and {shape} is wanted"
    for name, shape in found.items():
        if name not in wanted:
            return f"tensor {name!r} (shape {shape}) has no place in the model"
    return None
