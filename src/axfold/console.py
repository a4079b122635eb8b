"""What the user sees while a command runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from axfold.output import files
from axfold.progress import Event, Planned, Step

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

    from axfold.weights.registry import Release

_EVERY = 30.0  # seconds between plain lines on what is under way


class Plain:
    """Lines on stdout, warnings on stderr; while a prediction goes on, a line now and then."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._title = ""
        self._told = now()

    def line(self, text: str) -> None:
        """Something happened."""
        print(text, flush=True)
        self._told = self._now()

    def warning(self, text: str) -> None:
        """Something to know of."""
        print(text, file=sys.stderr, flush=True)

    def begin(self, title: str) -> None:
        """Work begins on something."""
        self._title = title
        self.line(title)

    def step(self, step: Step) -> None:
        """A prediction goes on."""
        self.progress(step.share, describe(step))

    def event(self, event: Event) -> None:
        """A prediction reports anything; its steps are shown."""
        if isinstance(event, Step):
            self.step(event)
        elif isinstance(event, Planned):
            self.line(f"plan: {event.text}")

    def progress(self, share: float, state: str) -> None:
        """Work goes on: the share of it that is done, and how it stands."""
        if self._now() - self._told >= _EVERY:
            self.line(f"{self._title}: {state}")

    def end(self) -> None:
        """Work has ended, well or not."""


class Live(Plain):
    """A bar that moves with each block; lines scroll above it."""

    def __init__(self, bar: Progress):
        super().__init__()
        self._bar = bar
        self._task: TaskID | None = None

    def line(self, text: str) -> None:
        """Something happened."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Something to know of."""
        self._bar.console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def begin(self, title: str) -> None:
        """Work begins on something."""
        self.end()
        self._task = self._bar.add_task(title, total=1.0, state="preparing")

    def progress(self, share: float, state: str) -> None:
        """Work goes on."""
        if self._task is not None:
            self._bar.update(self._task, completed=share, state=state)

    def end(self) -> None:
        """Work has ended, well or not."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


@contextmanager
def display() -> Iterator[Plain]:
    """What suits stdout."""
    if not sys.stdout.isatty():
        yield Plain()
        return
    from rich.progress import Progress

    with Progress(*bar_columns(), transient=True, expand=True) as bar:
        yield Live(bar)


def bar_columns() -> tuple[ProgressColumn, ...]:
    """Title, bar, and how it stands; where the terminal is narrow the title is cut."""
    from rich.progress import BarColumn, TextColumn
    from rich.table import Column

    return (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[state]}", markup=False, table_column=Column(no_wrap=True, min_width=44)),
    )


@contextmanager
def logged(path: Path, display: Plain) -> Iterator[None]:
    """axfold's log lines go to `path`, behind those of earlier runs, and to `display`. Raises as `files.writing`."""
    try:
        handlers: tuple[logging.Handler, ...] = (_File(path, encoding="utf-8"), _Shown(display))
    except OSError as error:
        raise files.failure(path, error) from error
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("axfold")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told of by who writes the results."""


class _Shown(logging.Handler):
    def __init__(self, display: Plain):
        super().__init__(logging.INFO)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            self._display.line(text)
        else:
            self._display.warning(f"{record.levelname.lower()}: {text}")


def describe(step: Step) -> str:
    """pass 2/4, Evoformer 12/48, about 3 min left."""
    where = f"pass {step.number}/{step.passes}, {step.stage} {step.block}/{step.blocks}"
    return where if step.remaining is None else f"{where}, {left(step.remaining)}"


def left(seconds: float) -> str:
    """about 3 min left: as exact as such a number can be."""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """A line for each row, with the cells below one another."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def terms(release: Release) -> str:
    """Under which licence the parameters of a release are, and what to cite."""
    cited = "".join(f"\n  {citation}" for citation in release.citations)
    return f"Licence of the parameters: {release.licence} ({release.licence_address})\nPlease cite:{cited}"


def bytes_shown(display: Plain) -> Callable[[str, int, int], None]:
    """Shows the progress of `weights.download`: its step, the bytes done and all bytes; with the rate."""
    begun: dict[str, tuple[float, int]] = {}

    def show(step: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, at = begun.setdefault(step, (now, done))  # what was there before has cost nothing
        state = f"{step} {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        if done > at and now - start > 1:
            state += f", {left((total - done) * (now - start) / (done - at))}"
        display.progress(done / total, state)

    return show
