"""axfold: predicts and trains protein structures with the AlphaFold 2 network."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axfold.output.prediction import Prediction
    from axfold.predictor import Predictor, predict

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__", "predict"]

_PLACES = {
    "Prediction": "axfold.output.prediction",
    "Predictor": "axfold.predictor",
    "predict": "axfold.predictor",
}


def __getattr__(name: str) -> object:
    """The public names, imported when they are first used: PyTorch takes seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
