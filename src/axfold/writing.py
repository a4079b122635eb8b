"""Results written while the next protein is folded, by processes: plots and mmCIF files are made by Python code, which
would keep the thread that feeds the device waiting."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from axfold.output.prediction import Prediction
from axfold.output.results import Results

log = logging.getLogger("axfold")

Messages = list[tuple[int, str]]
"""Level and text of what was logged."""


class Writers:
    """Processes that write. They finish what they have begun when the command is interrupted."""

    def __init__(self, processes: int):
        self.processes = processes
        self._pool = ProcessPoolExecutor(
            processes, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
        )

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args) in one of them."""
        return self._pool.submit(function, *args).result()

    def close(self) -> None:
        self._pool.shutdown()


class Writing:
    """One protein's predictions on their way to disk, one after the other in the order in which they were put.

    `stage` says what is under way. begin: the results have not been started, which is done first
    """

    def __init__(self, results: Results, writers: Writers, *, begin: bool = False):
        self.results = results
        self.stage = "writing"
        self.messages: Messages = []
        self._writers = writers
        self._begin = begin
        self._error: BaseException | None = None
        self._predictions: queue.SimpleQueue[Prediction | float | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def put(self, prediction: Prediction) -> None:
        self._predictions.put(prediction)

    def finish(self, features_seconds: float) -> None:
        """All predictions have been put: rank them once they are written."""
        self._predictions.put(features_seconds)

    def stop(self) -> None:
        """No more will be put, and what there is isn't all: write that."""
        self._predictions.put(None)

    def wait(self) -> Results:
        """The results once they are on disk. Raises what went wrong on the way."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.results

    def _write(self) -> None:
        try:
            if self._begin:
                self.results, _ = self._writers.call(_start, self.results)
            while (item := self._predictions.get()) is not None:
                ends = isinstance(item, float)
                self.stage = "ranking" if ends else "writing"
                self.results, told = self._writers.call(_finish if ends else _write, self.results, item)
                self.messages += told
                if ends:
                    return
        except BaseException as error:  # raised again where the result is waited for
            self._error = error


class _Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: Messages = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append((record.levelno, record.getMessage()))


def _start(results: Results) -> tuple[Results, Messages]:
    return results, _heard(results.start)


def _write(results: Results, prediction: Prediction) -> tuple[Results, Messages]:
    return results, _heard(lambda: results.write(prediction))


def _finish(results: Results, features_seconds: float) -> tuple[Results, Messages]:
    return results, _heard(lambda: results.finish(features_seconds=features_seconds))


def _heard(work: Callable[[], object]) -> Messages:
    """What is logged meanwhile: this process shows nothing."""
    listener = _Listener()
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        work()
    finally:
        log.removeHandler(listener)
    return listener.messages


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; who has begun a file finishes it, and the parent waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
