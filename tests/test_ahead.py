"""What is made before it is asked for: its order, its errors, its end."""

import threading
import time

import pytest

from axfold.ahead import Ahead


def test_items_come_in_order():
    with Ahead(lambda: iter(range(5)), depth=2) as items:
        assert list(items) == [0, 1, 2, 3, 4]
        with pytest.raises(StopIteration):
            next(items)


def test_they_are_made_before_they_are_asked_for_and_no_more_than_wanted():
    made, go = [], threading.Event()

    def items():
        for i in range(10):
            made.append(i)
            if i == 3:
                go.set()
            yield i

    with Ahead(items, depth=3) as ahead:
        assert go.wait(10)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]  # three are ready, and one waits for room
        assert next(ahead) == 0
    assert len(made) <= 6


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise ValueError("no second one")

    ahead = Ahead(items, depth=4)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="no second one"):
            next(ahead)
    ahead.close()


def test_closing_ends_the_thread():
    before = threading.active_count()

    def endless():
        while True:
            yield 0

    ahead = Ahead(endless, depth=1)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(ahead)


def test_seconds_are_those_of_making():
    def items():
        time.sleep(0.05)
        yield 1

    with Ahead(items, depth=1) as ahead:
        list(ahead)
        assert ahead.seconds >= 0.05
