"""The state of a training on disk, such that a run that was killed goes on bit for bit.

A checkpoint is one safetensors file: parameters, moving average and Adam's moments of every parameter, in float32, and
in its metadata, as JSON, the step, the configuration and the validation's score. No generator has a state to be held:
what is drawn depends on the seed and on the number of the sample alone, and so does the position in the data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axfold import config
from axfold.errors import AxfoldError, InputError
from axfold.output.files import TEMPORARY, writing
from axfold.train.loop import Trainer

FORMAT, VERSION = "axfold training", "1"
BEST = "best.safetensors"
_NAME = re.compile(r"step_(\d{9})\.safetensors")
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
PARTS = ("parameters", "average", "first_moment", "second_moment")


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself. score: of its validation, the higher the better; None without one."""

    step: int
    configuration: dict[str, Any]
    score: float | None = None


def configuration(model: config.Config, training: config.Training, **others: Any) -> dict[str, Any]:
    """What must be the same for a run to go on, as JSON has it."""
    return json.loads(json.dumps({"model": asdict(model), "training": asdict(training), **others}))


def save(
    folder: Path,
    trainer: Trainer,
    configuration: Mapping[str, Any],
    *,
    score: float | None = None,
    keep: int = 2,
    best: bool = False,
    compact: bool = False,
) -> Path:
    """Write the state after the steps so far; of the older ones the last `keep` - 1 are kept. Errors as in `writing`.

    A file appears when it is whole, and others are removed only then: where the disk is full the older ones are there.
    best: it is kept as the best too, under a name of its own
    compact: moments in bfloat16, a quarter less on disk; a run goes on from them, but not bit for bit
    """
    about = About(trainer.steps, dict(configuration), score)
    path = folder / f"step_{about.step:09}.safetensors"
    _write(path, trainer, about, compact)
    if best:
        _link(path, folder / BEST)
    for old in saved(folder)[:-keep]:
        old.unlink(missing_ok=True)
    for stray in folder.iterdir():
        if TEMPORARY.fullmatch(stray.name):  # of a run that was killed
            stray.unlink(missing_ok=True)
    return path


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the latest last."""
    return sorted(path for path in folder.glob("step_*.safetensors") if _NAME.fullmatch(path.name))


def _link(path: Path, target: Path) -> None:
    """The same file under a second name, in its place at once."""
    temporary = target.with_name(f".{target.name}.{'0' * 8}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
        temporary.replace(target)
    except OSError:  # a file system without links
        with suppress(OSError):
            temporary.unlink()
        with writing(target) as file, path.open("rb") as whole:
            while part := whole.read(1 << 24):
                file.write(part)


def _write(path: Path, trainer: Trainer, about: About, compact: bool) -> None:
    """Tensor by tensor from the device, so that nothing lies in memory twice."""
    parts = _parts(trainer)
    types = {part: torch.bfloat16 if compact and part.endswith("moment") else torch.float32 for part in parts}
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "format_version": VERSION,
            "step": str(about.step),
            "score": json.dumps(about.score),
            "configuration": json.dumps(about.configuration),
        }
    }
    offset = 0
    for part in parts:
        for name, (_, shape) in trainer.masters.places.items():
            size = shape.numel() * types[part].itemsize
            header[f"{part}/{name}"] = {
                "dtype": _TYPES[types[part]],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with writing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part, flat in parts.items():
            on_host = flat.to("cpu", types[part])
            for _, values in trainer.masters.views(on_host):
                file.write(values.reshape(-1).view(torch.uint8).numpy().data)


def _parts(trainer: Trainer) -> dict[str, Tensor]:
    optimizer = trainer.optimizer
    flats = trainer.masters.values, optimizer.average, *optimizer.moments
    return dict(zip(PARTS, flats, strict=True))


@torch.no_grad()
def restore(path: Path, trainer: Trainer, configuration: Mapping[str, Any]) -> About:
    """Put a trainer of this configuration into the state of a checkpoint. Raises InputError where it is another's."""
    with _opened(path) as (file, about):
        check(path, about, configuration)
        missing = {f"{part}/{name}" for part in PARTS for name in trainer.masters.places} - set(file.keys())
        if missing:
            raise _damaged(path, f"{min(missing)} is missing")
        for part, flat in _parts(trainer).items():
            for name, target in trainer.masters.views(flat):
                target.copy_(_tensor(path, file, f"{part}/{name}"))
    trainer.optimizer.restore(about.step)
    return about


def averaged(path: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The moving average of each parameter in a checkpoint, float32. Raises InputError."""
    with _opened(path) as (file, _):
        for name in names:
            if f"average/{name}" not in file.keys():  # noqa: SIM118 - it is no dict
                raise _damaged(path, f"average/{name} is missing")
            yield name, _tensor(path, file, f"average/{name}")


def about(path: Path) -> About:
    """What a checkpoint says of itself. Raises InputError where it is none, or damaged."""
    with _opened(path) as (_, found):
        return found


def check(path: Path, found: About, wanted: Mapping[str, Any]) -> None:
    """Raises InputError, with the first difference, where a checkpoint is of another configuration."""
    theirs, ours = (dict(_flat(x)) for x in (found.configuration, wanted))
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"{path}: this run has {name} = {theirs.get(name)}, and {ours.get(name)} is asked for. Ask for the "
                "same to go on, or choose another folder with --out."
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, About]]:
    """A checkpoint's tensors, and what it says of itself. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    with ExitStack() as stack:
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such checkpoint.") from None
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
        told = file.metadata() or {}
        if told.get("format") != FORMAT:
            raise InputError(f"{path} is no checkpoint of a training: `axfold train run` writes those.")
        if told.get("format_version") != VERSION:
            raise InputError(
                f"{path} has format version {told.get('format_version')}, and {VERSION} is read: go on with the "
                "axfold that wrote it."
            )
        try:
            configuration, score = json.loads(told["configuration"]), json.loads(told["score"])
            found = About(int(told["step"]), configuration, score)
        except (KeyError, ValueError) as error:
            raise _damaged(path, "what it says of itself is no JSON") from error
        yield file, found


def _tensor(path: Path, file: Any, name: str) -> Tensor:
    from safetensors import SafetensorError

    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    return tensor


def _damaged(path: Path, reason: str) -> InputError:
    first = reason.partition("\n")[0]
    return InputError(
        f"{path} can't be read ({first}): it is damaged or incomplete. Remove it; the run goes on from the one before."
    )


def as_numpy(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The moving average as NumPy arrays."""
    found = {name: tensor.numpy() for name, tensor in averaged(path, names)}
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise AxfoldError(f"{path}: {name} holds numbers that are not finite.")
    return found
