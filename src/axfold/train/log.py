"""What a training tells: a line of a table for every step and every validation, and the curve."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from axfold.output import plots
from axfold.output.files import failure, write

STEPS, VALIDATION, CURVE = "steps.csv", "validation.csv", "curve.png"


class Table:
    """A CSV file that grows by a row at a time; rows of steps after `step`, which are done again, are cut off."""

    def __init__(self, path: Path, step: int):
        self.path = path
        self.rows: list[dict[str, float]] = [row for row in read(path) if row["step"] <= step]
        self._names = list(self.rows[0]) if self.rows else []
        try:
            self._file = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise failure(path, error) from error
        if self.rows:
            self._write(self._names)
            for row in self.rows:
                self._write(map(_shown, row.values()))
        self.flush()

    def add(self, row: Mapping[str, float]) -> None:
        """One row more; all have the columns of the first."""
        if not self.rows:
            self._names = list(row)
            self._write(self._names)
        self.rows.append({name: row[name] for name in self._names})
        self._write(_shown(row[name]) for name in self._names)

    def flush(self) -> None:
        """What was added is in the file. Raises as `output.files.writing`."""
        try:
            self._file.flush()
        except OSError as error:
            raise failure(self.path, error) from error

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()

    def _write(self, cells: Any) -> None:
        try:
            csv.writer(self._file, lineterminator="\n").writerow(cells)
        except OSError as error:
            raise failure(self.path, error) from error


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a table; a row that a killed run left unfinished is none."""
    if not path.exists():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: float(value) for name, value in row.items()})
            except (TypeError, ValueError):
                break
    return rows


def _shown(value: float) -> str:
    return (
        str(int(value)) if isfinite(value) and value == int(value) and abs(value) < 1e15 else f"{value:.9g}"
    )


class Log:
    """The tables of a run in its folder, and TensorBoard's files where that is installed."""

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        self.steps, self.validation = Table(folder / STEPS, step), Table(folder / VALIDATION, step)
        self._board = _tensorboard(folder, step)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """What is known of a step."""
        self._add(self.steps, "train", step, values)

    def validated(self, step: int, values: Mapping[str, float]) -> None:
        """What a validation found; the curve is drawn anew."""
        self._add(self.validation, "validation", step, values)
        self.flush()
        write(self.folder / CURVE, curve(self.folder.name, self.steps.rows, self.validation.rows))

    def flush(self) -> None:
        """All that was told is on disk."""
        self.steps.flush()
        self.validation.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """The run ends."""
        self.steps.close()
        self.validation.close()
        if self._board is not None:
            self._board.close()

    def _add(self, table: Table, group: str, step: int, values: Mapping[str, float]) -> None:
        table.add({"step": float(step), **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)


def curve(name: str, steps: list[dict[str, float]], validation: list[dict[str, float]]) -> bytes:
    """A picture (PNG) of a run's tables."""
    shown = {"lddt_ca": "lDDT of C-alpha", "gdt_ts": "GDT_TS", "tm": "TM-score"}
    scores = [
        (row["samples"], {label: row[key] for key, label in shown.items() if key in row})
        for row in validation
    ]
    return plots.training(name, [(row["samples"], row["loss"]) for row in steps], scores)


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # it isn't installed
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
