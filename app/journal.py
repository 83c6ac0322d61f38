"""What became of each call: told to whoever listens, never with anything of a visitor's photo."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["answered", "refused", "failed", "left", "turned_away"]
"""Answered; refused, because the visitor can mend it; failed in the server; left by its visitor
before the end; turned away before it was begun."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call that has ended."""

    name: str
    """The endpoint, or what the page asked for."""
    outcome: Outcome
    reason: str | None
    """A word for why it was not answered: a limit, or the kind of the error. No text of the error,
    which may name a file."""
    seconds: float


class Journal:
    """Counts calls at work and passes on those that have ended; safe to share between threads."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Call], None]] = []
        self._running = 0
        self._lock = threading.Lock()

    @property
    def running(self) -> int:
        """Calls at work."""
        return self._running

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts a call as running inside the block."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def record(self, call: Call) -> None:
        """Tell all listeners."""
        for listener in self.listeners:
            listener(call)
