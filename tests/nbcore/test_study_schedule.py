"""Which run is next, what a failure takes with it, and how often a dead worker is forgiven."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nbcore.study.grid import Arm, references
from nbcore.study.schedule import Schedule
from nbcore.study.worker import Task
from tests.nbcore.tiny_study import arm, tiny_study

D0, P0 = references(0)
D1, P1 = references(1)


def run(a: Arm) -> Task:
    return Task(kind="run", arm=a)


def drain(schedule: Schedule, workers: int) -> list[Arm]:
    """Hand out all runs to workers that finish in the order they began."""
    busy: list[Task] = []
    order = []
    while True:
        while len(busy) < workers and (task := schedule.next()):
            busy.append(task)
            order.append(task.arm)
        if not busy:
            return order
        schedule.succeeded(busy.pop(0))


def test_one_worker_follows_the_grid() -> None:
    arms = tiny_study().arms()
    assert drain(Schedule(arms, set()), 1) == list(arms)


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_nothing_begins_before_what_it_needs_is_finished(workers: int) -> None:
    arms = tiny_study().arms()
    schedule = Schedule(arms, set())
    running: list[Task] = []
    begun = set()
    while True:
        while len(running) < workers and (task := schedule.next()):
            assert set(task.arm.needs()) <= schedule.done
            assert task.arm not in begun
            begun.add(task.arm)
            running.append(task)
        if not running:
            break
        schedule.succeeded(running.pop())
    assert begun == set(arms)


def test_free_workers_go_on_with_the_next_seed_meanwhile() -> None:
    schedule = Schedule(tiny_study().arms(), set())
    assert schedule.next() == run(D0)
    # A twin needs nothing, so it may come first; the forks of both seeds are under way early.
    assert {schedule.next() for _ in range(3)} >= {run(D1)}


def test_what_is_done_is_a_need_met() -> None:
    schedule = Schedule([arm()], {D0, P0})
    assert schedule.next() == run(arm())
    assert Schedule([arm()], {D0}).next() is None


def test_a_failure_takes_along_what_needs_it_and_nothing_else() -> None:
    arms = [D0, P0, arm(), arm(mitigation="handoff"), D1, P1, arm(seed=1)]
    schedule = Schedule(arms, set())
    task = schedule.next()
    assert task == run(D0)
    schedule.fail(task, "ValueError: no")
    assert set(schedule.failed) == {D0, P0, arm(), arm(mitigation="handoff")}
    assert schedule.failed[D0] == "ValueError: no"
    assert schedule.failed[P0] == f"needs {D0.key}, which failed"
    assert drain(schedule, 1) == [D1, P1, arm(seed=1)]


def test_an_arm_whose_worker_dies_is_tried_once_more_and_first() -> None:
    schedule = Schedule([arm(), arm(mitigation="handoff")], {D0, P0})
    task = schedule.next()
    assert task == run(arm())
    assert schedule.died(task) is None
    assert schedule.next() == task
    reason = schedule.died(task)
    assert reason is not None
    assert "died 2 times" in reason
    schedule.fail(task, reason)
    assert drain(schedule, 1) == [arm(mitigation="handoff")]


def by_mitigation(a: Arm) -> str:
    if a.mitigation == "impossible":
        raise ValueError("cannot be combined")
    return a.mitigation


def rehearsing(structure: Callable[[Arm], str | None]) -> Schedule:
    arms = [arm(), arm("random"), arm(mitigation="handoff"), arm(mitigation="impossible")]
    schedule = Schedule(arms, {D0, P0})
    schedule.rehearse_first(structure)
    return schedule


def test_each_structure_is_rehearsed_once_and_waited_for() -> None:
    schedule = rehearsing(by_mitigation)
    plain, handoff = schedule.next(), schedule.next()
    assert plain == Task(kind="rehearsal", arm=arm())
    assert handoff == Task(kind="rehearsal", arm=arm(mitigation="handoff"))
    # An impossible arm compiles nothing: it may run, and fail, at once.
    assert schedule.next() == run(arm(mitigation="impossible"))
    assert schedule.next() is None
    schedule.succeeded(handoff)
    assert schedule.next() == run(arm(mitigation="handoff"))
    assert schedule.next() is None
    schedule.succeeded(plain)
    assert schedule.next() == run(arm())
    assert schedule.done == {D0, P0}


def test_what_trains_nothing_is_not_rehearsed_and_waits_for_nobody() -> None:
    schedule = rehearsing(lambda a: None if a.pruner == "random" else by_mitigation(a))
    first = schedule.next()
    assert first == Task(kind="rehearsal", arm=arm())
    assert schedule.next() == Task(kind="rehearsal", arm=arm(mitigation="handoff"))
    assert schedule.next() == run(arm("random"))


def test_a_rehearsal_that_fails_stops_no_run() -> None:
    schedule = rehearsing(by_mitigation)
    first, second = schedule.next(), schedule.next()
    assert first is not None
    assert second is not None
    schedule.fail(first, "ValueError: no")
    reason = schedule.died(second)
    assert reason is not None
    schedule.fail(second, reason)
    assert schedule.failed == {}
    assert len(drain(schedule, 2)) == 4
