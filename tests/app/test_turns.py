"""Turns go by the order of coming, and a failing turn is handed on."""

from __future__ import annotations

import threading
import time

import pytest

from app.turns import Turns


def test_who_came_first_is_first() -> None:
    turns, order = Turns(1), []

    def visitor(name: str) -> None:
        with turns.one():
            order.append(name)

    threads = [threading.Thread(target=visitor, args=(name,)) for name in "abc"]
    with turns.one():
        for count, thread in enumerate(threads, 1):
            thread.start()
            while len(turns._waiting) < count:
                time.sleep(0.001)
        assert order == []
    # Who holds the turn and asks again stands behind those who wait.
    visitor("again")
    for thread in threads:
        thread.join(30)
    assert order == ["a", "b", "c", "again"]


def test_as_many_as_there_are_places_work_at_once() -> None:
    turns, together = Turns(3), threading.Barrier(3)

    def visitor() -> None:
        with turns.one():
            together.wait(10)

    threads = [threading.Thread(target=visitor) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not together.broken
    assert turns._free == 3


def test_a_turn_that_fails_ends() -> None:
    turns = Turns(1)
    with pytest.raises(RuntimeError), turns.one():
        raise RuntimeError("planted")
    with turns.one():
        pass
    assert turns._free == 1
