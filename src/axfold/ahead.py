"""What is made before it is needed: in threads, since NumPy and copies to a device let others run meanwhile."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_WAIT = 0.2  # seconds between two looks at whether anyone still wants what is made


class Ahead(Iterator[T], Generic[T]):
    """What an iterator gives, made by a thread of its own while others work.

    At most `depth` items are ready at once. An error of the iterator is raised where its item would come. `seconds` is
    the time that making them has taken.
    """

    def __init__(self, items: Callable[[], Iterator[T]], depth: int):
        """items() is called in the thread."""
        self.seconds = 0.0
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(max(depth, 1))
        self._unwanted = threading.Event()
        self._over: BaseException | None = None
        self._thread = threading.Thread(target=self._make, args=(items,), daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._over is not None:
            raise self._over
        item, error = self._ready.get()
        if error is not None:
            self._over = error
            raise error
        return item  # type: ignore[return-value]  # there is an item where there is no error

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody asks for more. Returns once the thread has ended, which finishes the item under way."""
        self._unwanted.set()
        if self._over is None:
            self._over = StopIteration()
        self._thread.join()

    def _make(self, items: Callable[[], Iterator[T]]) -> None:
        try:
            iterator = items()
            while not self._unwanted.is_set():
                start = time.perf_counter()
                item = next(iterator)
                self.seconds += time.perf_counter() - start
                self._put(item, None)
                del item
        except BaseException as error:  # the end, or a defect: whoever asks for the next item is told
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> None:
        while not self._unwanted.is_set():
            try:
                self._ready.put((item, error), timeout=_WAIT)
            except queue.Full:
                continue
            return
