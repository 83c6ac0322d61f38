"""Turns at the processor, first come first served: long work goes in steps, and steps of several
visitors alternate instead of slowing each other down."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Lets a few threads work at a time; the others wait in the order in which they came."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a place and hold it until the block ends."""
        with self._lock:
            mine = None
            if self._free:
                self._free -= 1
            else:
                mine = threading.Event()
                self._waiting.append(mine)
        if mine is not None:
            mine.wait()
        try:
            yield
        finally:
            with self._lock:
                # The place is handed on, so that nobody who comes now is before who waits.
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1


GRADIENTS = {"cpu": Turns(1), "cuda": Turns(3)}
"""By device: one batch of gradients takes all cores of a CPU; a GPU holds a few side by side."""
