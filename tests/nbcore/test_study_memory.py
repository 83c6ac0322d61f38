"""Runs side by side that find no memory left on their device: fewer of them go on."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from nbcore.study import runner, worker
from nbcore.study.grid import references
from nbcore.study.schedule import Schedule
from nbcore.study.tables import FAILURE_COLUMNS, StudyTables, Table
from nbcore.study.worker import Report, Task, out_of_memory, work
from tests.nbcore.tiny_study import arm, tiny_study

FULL = "OutOfMemoryError: all of it"


@dataclass
class Clerk:
    """Stands for a worker's process: tells when it was sent home."""

    theirs: Connection
    killed: bool = False

    @property
    def sent_home(self) -> bool:
        return self.theirs.poll() and self.theirs.recv() is None

    def is_alive(self) -> bool:
        return True

    def join(self, timeout: float | None = None) -> None:
        pass

    def kill(self) -> None:
        self.killed = True


@dataclass
class Office:
    """A crew of clerks, one for each device named, with the schedule that they serve."""

    devices: str
    folder: Path
    schedule: Schedule
    clerks: list[Clerk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.crew = runner._Crew(context=(tiny_study(), None, self.folder), threads=None)
        for device in self.devices:
            self._hire(device)
        self.crew.hire = self._hire  # type: ignore[method-assign]
        self.failures = Table(self.folder / "failures.csv", FAILURE_COLUMNS)

    def _hire(self, device: str) -> None:
        pipe, theirs = multiprocessing.Pipe()
        self.clerks.append(Clerk(theirs))
        self.crew.workers.append(runner._Worker(process=self.clerks[-1], pipe=pipe, device=device))

    def hand_out(self, *workers: int) -> list[runner._Worker]:
        """The next tasks to these workers."""
        chosen = [self.crew.workers[i] for i in workers]
        for one in chosen:
            one.task = self.schedule.next()
            assert one.task is not None
            one.beside = self.crew.on(one.device)
        return chosen

    def report(self, one: runner._Worker, **what: Any) -> None:
        """What a worker says of its task, taken in."""
        assert one.task is not None
        one.process.theirs.send(Report(task=one.task, **what))
        tables = StudyTables(self.folder)
        runner._attend(one, self.crew, self.schedule, tables, self.failures, tqdm(disable=True))

    def at_work(self) -> str:
        return "".join(one.device for one in self.crew.workers)


@pytest.fixture
def office(tmp_path: Path) -> Callable[..., Office]:
    def create(devices: str, seeds: int = 3) -> Office:
        arms = [arm(seed=seed) for seed in range(seeds)]
        done = {need for seed in range(seeds) for need in references(seed)}
        return Office(devices, tmp_path, Schedule(arms, done))

    return create


def test_it_waits_before_all_others_and_its_worker_leaves(office: Callable[..., Office]) -> None:
    here = office("aab")
    (second,) = here.hand_out(1)
    here.report(second, error=FULL, out_of_memory=True)
    assert here.at_work() == "ab"
    assert second not in here.crew.workers
    assert [clerk.sent_home for clerk in here.clerks] == [False, True, False]
    assert here.schedule.waiting == [arm(seed=seed) for seed in range(3)]
    assert here.schedule.failed == {}
    assert here.failures.read() == []


def test_of_two_that_find_none_one_leaves_and_both_runs_wait(office: Callable[..., Office]) -> None:
    here = office("aa")
    first, second = here.hand_out(0, 1)
    here.report(first, error=FULL, out_of_memory=True)
    here.report(second, error=FULL, out_of_memory=True)
    assert here.crew.workers == [second]
    assert [clerk.sent_home for clerk in here.clerks] == [True, False]
    assert set(here.schedule.waiting) == {arm(seed=seed) for seed in range(3)}
    assert here.schedule.failed == {}


def test_what_finds_none_alone_has_failed(office: Callable[..., Office]) -> None:
    here = office("ab")
    (one,) = here.hand_out(0)
    here.report(one, error=FULL, out_of_memory=True)
    assert here.at_work() == "ab"
    assert here.schedule.failed == {arm(): FULL}
    assert [row["error"] for row in here.failures.read()] == [FULL]


def test_an_error_without_that_sends_no_one_home(office: Callable[..., Office]) -> None:
    here = office("aa")
    (one,) = here.hand_out(0)
    here.report(one, error="ValueError: no")
    assert here.at_work() == "aa"
    assert here.schedule.failed == {arm(): "ValueError: no"}


def test_one_that_leaves_with_its_report_is_replaced_at_once(
    office: Callable[..., Office],
) -> None:
    here = office("ab")
    (one,) = here.hand_out(0)
    here.report(one, error="AcceleratorError: lost", leaving=True)
    assert here.at_work() == "ba"
    assert one not in here.crew.workers
    assert here.schedule.failed == {arm(): "AcceleratorError: lost"}


def test_a_rehearsal_is_tried_again_before_runs_of_its_structure(
    office: Callable[..., Office],
) -> None:
    here = office("aa")
    here.schedule.rehearse_first(lambda _: "all alike")
    (one,) = here.hand_out(0)
    assert one.task == Task(kind="rehearsal", arm=arm())
    assert here.schedule.next() is None
    here.report(one, error=FULL, out_of_memory=True)
    assert here.schedule.next() == Task(kind="rehearsal", arm=arm())
    assert here.schedule.next() is None
    here.schedule.succeeded(Task(kind="rehearsal", arm=arm()))
    assert here.schedule.next() == Task(kind="run", arm=arm())


def test_who_is_dismissed_is_sent_home_and_waited_for(office: Callable[..., Office]) -> None:
    here = office("aab")
    busy, *_ = here.hand_out(0)
    here.crew.dismiss()
    assert here.crew.workers == []
    assert all(clerk.sent_home for clerk in here.clerks)
    assert busy.process.killed


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (ValueError("no such mitigation"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_what_counts_as_no_memory_left(error: Exception, full: bool) -> None:
    assert out_of_memory(error) == full
    wrapped = RuntimeError("while compiling")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped) == full


def test_a_worker_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Crowded:
        tried = 0

        def __init__(self, *_: object) -> None:
            pass

        def run(self, _: object) -> None:
            Crowded.tried += 1
            if Crowded.tried == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise ValueError("no")

    monkeypatch.setattr(worker, "Laboratory", Crowded)
    ours, theirs = multiprocessing.Pipe()
    task = Task(kind="run", arm=arm())
    thread = threading.Thread(
        target=work, args=(theirs, tiny_study(), None, tmp_path, "cpu", None), daemon=True
    )
    thread.start()
    found = []
    for _ in range(2):
        ours.send(task)
        assert ours.poll(20)
        found.append(ours.recv())
    ours.send(None)
    thread.join(20)
    assert not thread.is_alive()
    assert [report.out_of_memory for report in found] == [True, False]
    assert [report.leaving for report in found] == [False, False]
    assert [report.error.split(":")[0] for report in found] == ["OutOfMemoryError", "ValueError"]
