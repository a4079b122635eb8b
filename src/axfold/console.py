"""What the user sees while a command runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from axfold.progress import Event, Step

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from axfold.batch import Outcome

_EVERY = 30.0  # seconds between plain lines on a prediction under way


class Plain:
    """Lines; while a prediction goes on, one now and then. Warnings go to stderr."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._title = ""
        self._told = now()

    def line(self, text: str) -> None:
        """Something happened."""
        print(text, flush=True)
        self._told = self._now()

    def warning(self, text: str) -> None:
        """Something the user should know of."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def begin(self, title: str) -> None:
        """Another prediction begins."""
        self._title = title
        self.line(title)

    def step(self, step: Step) -> None:
        """It goes on."""
        if self._now() - self._told >= _EVERY:
            self.line(f"{self._title}: {describe(step)}, {left(step.remaining)}")

    def event(self, event: Event) -> None:
        """Any event of a prediction, of which steps are shown."""
        if isinstance(event, Step):
            self.step(event)

    def end(self) -> None:
        """It has ended."""


class Live(Plain):
    """A bar that moves with each block, with the time left; lines scroll above it."""

    def __init__(self, bar: Progress):
        super().__init__()
        self._bar = bar
        self._task: TaskID | None = None

    def line(self, text: str) -> None:
        """Something happened."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Something the user should know of."""
        self._bar.console.print(
            f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def begin(self, title: str) -> None:
        """Another prediction begins."""
        self.end()
        self._title = title
        self._task = self._bar.add_task(title, total=1.0, state="preparing")

    def step(self, step: Step) -> None:
        """It goes on."""
        if self._task is not None:
            state = f"{describe(step)}, {left(step.remaining)}"
            self._bar.update(self._task, completed=step.share, state=state)

    def end(self) -> None:
        """It has ended."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[Plain]:
    """A display for `stream`, stdout unless given."""
    if not (stream or sys.stdout).isatty():
        yield Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[state]}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        yield Live(bar)


def describe(step: Step) -> str:
    """pass 2/4, Evoformer 12/48."""
    return f"pass {step.number}/{step.passes}, {step.stage} {step.block}/{step.blocks}"


def left(seconds: float | None) -> str:
    """about 3 min left; as exact as such a number can be."""
    if seconds is None:
        return "time left not known yet"
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"


def summary(outcome: Outcome, out: Path) -> int:
    """Show the predictions and failures; the exit code."""
    from axfold.batch import table

    if outcome.finished:
        print(table(outcome))
    for failure in outcome.failures:
        print(f"failed: {failure.name} ({failure.stage}): {failure.error}", file=sys.stderr)
    if outcome.failures:
        print(f"{len(outcome.failures)} failed, see {out / 'failures.json'}", file=sys.stderr)
    return 1 if outcome.failures else 0
