"""Which run is next: the first in the order of the grid whose needs are met."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from nbcore.study.grid import Arm
from nbcore.study.worker import Task

DEATHS_FORGIVEN = 1
"""How often the worker of one arm may die before the arm is given up."""

logger = logging.getLogger(__name__)


class Schedule:
    """Which arm is next: the first whose needs are met.

    Args:
        waiting: Arms to be run, in order.
        done: Arms that are finished.
    """

    def __init__(self, waiting: Sequence[Arm], done: set[Arm]) -> None:
        self.waiting = list(waiting)
        self.done = done
        self.failed: dict[Arm, str] = {}
        self.deaths: dict[Task, int] = {}
        self.rehearsals: list[tuple[str, Arm]] = []
        self.rehearsing: dict[str, str] = {}
        self._structure: Callable[[Arm], str | None] | None = None

    def rehearse_first(self, structure: Callable[[Arm], str | None]) -> None:
        """Let one worker compile each structure before others need it; None is none."""
        found: dict[str, Arm] = {}
        for arm in self.waiting:
            with contextlib.suppress(ValueError):  # An impossible arm fails when it is run.
                name = structure(arm)
                if name is not None:
                    found.setdefault(name, arm)
        self.rehearsals = [*found.items()]
        self._structure = structure

    def next(self) -> Task | None:
        """A task that can start now, or None."""
        if self.rehearsals:
            name, arm = self.rehearsals.pop(0)
            task = Task(kind="rehearsal", arm=arm)
            self.rehearsing[name] = arm.key
            return task
        for arm in self.waiting:
            if all(need in self.done for need in arm.needs()) and not self._compiling(arm):
                self.waiting.remove(arm)
                return Task(kind="run", arm=arm)
        return None

    def _compiling(self, arm: Arm) -> bool:
        if self._structure is None or not self.rehearsing:
            return False
        try:
            return self._structure(arm) in self.rehearsing
        except ValueError:
            return False

    def succeeded(self, task: Task) -> None:
        self._ended(task)
        if task.kind == "run":
            self.done.add(task.arm)

    def fail(self, task: Task, reason: str) -> None:
        """Give a task up, and what needs it."""
        self._ended(task)
        if task.kind == "rehearsal":
            logger.warning("rehearsal of %s: %s", task.arm.key, reason)
            return
        self.failed[task.arm] = reason
        lost = [arm for arm in self.waiting if task.arm in arm.needs()]
        self.waiting = [arm for arm in self.waiting if arm not in lost]
        for arm in lost:
            self.fail(Task(kind="run", arm=arm), f"needs {task.arm.key}, which failed")

    def again(self, task: Task) -> None:
        """Let a task wait once more, before all others."""
        if task.kind == "run":
            self.waiting.insert(0, task.arm)
        else:
            names = [name for name, key in self.rehearsing.items() if key == task.arm.key]
            self.rehearsals[:0] = [(name, task.arm) for name in names]
        self._ended(task)

    def died(self, task: Task) -> str | None:
        """The worker of a task died: try again, or give up; returns the reason in that case."""
        self.deaths[task] = self.deaths.get(task, 0) + 1
        if self.deaths[task] <= DEATHS_FORGIVEN and task.kind == "run":
            self.again(task)
            return None
        return f"its worker died {self.deaths[task]} times (out of memory, or killed)"

    def _ended(self, task: Task) -> None:
        if task.kind == "rehearsal":
            self.rehearsing = {s: key for s, key in self.rehearsing.items() if key != task.arm.key}
