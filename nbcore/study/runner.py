"""A study from its grid to its tables: workers on all devices, one row per finished run.

The parent alone writes tables. It may be killed at any point: what has its row is done, the rest is
done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from tqdm import tqdm

from nbcore.study.experiment import structure_of
from nbcore.study.forks import check_forks, restore_forks
from nbcore.study.grid import Arm, StudyConfig
from nbcore.study.schedule import Schedule
from nbcore.study.tables import FAILURE_COLUMNS, StudyTables, Table
from nbcore.study.worker import Report, Task, work

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a study stands after a call."""

    finished: int
    """Runs with a row, of those asked for."""
    total: int
    failed: dict[Arm, str]
    """Runs that were tried in vain, with the reason."""


def run_study(
    study: StudyConfig,
    *,
    out: Path,
    work_dir: Path,
    data_dir: Path | None,
    devices: Sequence[str],
    workers: int,
    seeds: Sequence[int] | None = None,
    limit_seconds: float | None = None,
) -> Progress:
    """Do what of a study is not done yet.

    Args:
        study: The study.
        out: Folder of the tables.
        work_dir: Folder of forks and compiled code; needed to go on, not to report.
        data_dir: Where prepared data lie.
        devices: Such as ["cuda:0", "cuda:1"] or ["cpu"].
        workers: Processes for each device.
        seeds: Only these; None means all.
        limit_seconds: Start no run after this time.

    Raises:
        ValueError: If rows of `runs.csv` come from other settings, forks are missing, or another
            process is at work on the same study.
    """
    deadline = time.monotonic() + limit_seconds if limit_seconds is not None else None
    arms = study.arms(seeds)
    if not arms:
        raise ValueError(f"study {study.name} has no run with a seed of {list(seeds or ())}")
    with _alone(work_dir):
        tables = StudyTables(out)
        done = finished_runs(study, tables.mend())
        waiting = [arm for arm in arms if arm not in done]
        restore_forks(out, work_dir)
        check_forks(work_dir, study, done, waiting)
        failures = Table(out / "failures.csv", FAILURE_COLUMNS)
        failures.path.unlink(missing_ok=True)
        schedule = Schedule(waiting, set(done))
        if waiting:
            if any(device.startswith("cuda") for device in devices):
                _share_compiled_code(work_dir, len(devices) * workers)
                if len(devices) * workers > 1:
                    schedule.rehearse_first(lambda arm: structure_of(study, arm))
            context = (study, data_dir, work_dir)
            with tqdm(total=len(arms), initial=len(arms) - len(waiting), unit="run") as bar:
                _drive(schedule, context, devices, workers, deadline, tables, failures, bar)
            tables.history.mend()
    return Progress(
        finished=sum(arm in schedule.done for arm in arms),
        total=len(arms),
        failed=schedule.failed,
    )


def finished_runs(study: StudyConfig, rows: Sequence[dict[str, str]]) -> dict[Arm, float]:
    """Finished arms and their test top-1.

    Raises:
        ValueError: If a row was made with other settings than the study has now.
    """
    done: dict[Arm, float] = {}
    for row in rows:
        arm = Arm.from_columns(row)
        if row["config"] != study.fingerprint(arm):
            raise ValueError(
                f"{arm.key} in runs.csv was run with other settings (config {row['config']}, the "
                f"study now says {study.fingerprint(arm)}): give another --out, or remove the rows "
                "that were run with the old settings"
            )
        if arm in done:
            raise ValueError(f"{arm.key} has two rows in runs.csv; remove one")
        done[arm] = float(row["top1"])
    return done


@dataclass(kw_only=True, eq=False)
class _Worker:
    process: Any
    pipe: Connection
    device: str
    task: Task | None = None
    beside: int = 0
    """Workers that its device had when the task was handed out, this one included."""


@dataclass(kw_only=True)
class _Crew:
    """Workers that come and go."""

    context: tuple[StudyConfig, Path | None, Path]
    threads: int | None
    workers: list[_Worker] = field(default_factory=list)
    leaving: list[_Worker] = field(default_factory=list)

    def on(self, device: str) -> int:
        """How many workers a device has."""
        return sum(worker.device == device for worker in self.workers)

    def hire(self, device: str) -> None:
        spawn = torch.multiprocessing.get_context("spawn")
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(
            target=work, args=(theirs, *self.context, device, self.threads), daemon=True
        )
        with _without_bars():
            process.start()
        theirs.close()
        self.workers.append(_Worker(process=process, pipe=pipe, device=device))

    def replace(self, worker: _Worker) -> None:
        """Hire another in place of one that has ended."""
        self.workers.remove(worker)
        worker.process.join()
        self.hire(worker.device)

    def let_go(self, worker: _Worker) -> None:
        """Let an idle worker leave; no other takes its place."""
        self.workers.remove(worker)
        self.leaving.append(worker)
        with contextlib.suppress(OSError):
            worker.pipe.send(None)

    def dismiss(self) -> None:
        """Let idle workers leave, and end those that are busy or cannot hear."""
        for worker in [*self.workers]:
            if worker.task is not None:
                worker.process.kill()
            self.let_go(worker)
        for worker in self.leaving:
            worker.process.join(5)
            worker.process.kill()
            worker.process.join()


def _drive(
    schedule: Schedule,
    context: tuple[StudyConfig, Path | None, Path],
    devices: Sequence[str],
    workers: int,
    deadline: float | None,
    tables: StudyTables,
    failures: Table,
    bar: tqdm,
) -> None:
    """Hand out tasks and take in reports until nothing is left or the time is up."""
    everyone = len(devices) * workers
    cuda = any(device.startswith("cuda") for device in devices)
    threads = max(1, (os.cpu_count() or 1) // everyone) if cuda else None
    crew = _Crew(context=context, threads=threads)
    try:
        if deadline is None or time.monotonic() < deadline:
            for device in devices:
                for _ in range(min(workers, len(schedule.waiting))):
                    crew.hire(device)
        while True:
            late = deadline is not None and time.monotonic() > deadline
            for worker in crew.workers:
                if worker.task is None and not late and (task := schedule.next()):
                    worker.task, worker.beside = task, crew.on(worker.device)
                    with contextlib.suppress(OSError):  # A dead worker is noticed below.
                        worker.pipe.send(task)
            busy = [worker for worker in crew.workers if worker.task is not None]
            if not busy:
                return
            wait([w.pipe for w in busy] + [w.process.sentinel for w in busy], timeout=5)
            for worker in busy:
                _attend(worker, crew, schedule, tables, failures, bar)
    finally:
        crew.dismiss()


def _attend(
    worker: _Worker,
    crew: _Crew,
    schedule: Schedule,
    tables: StudyTables,
    failures: Table,
    bar: tqdm,
) -> None:
    """Take in what a worker has to say, or notice that it is gone."""
    task = worker.task
    assert task is not None
    report: Report | None = None
    try:
        if worker.pipe.poll():
            report = worker.pipe.recv()
        elif worker.process.is_alive():
            return
    except (EOFError, OSError):
        pass
    worker.task = None
    if report is None:
        crew.replace(worker)
        reason = schedule.died(task)
        if reason is None:
            logger.warning("%s: its worker died; trying once more", task.arm.key)
            return
        report = Report(task=task, error=reason)
    elif report.leaving:
        crew.replace(worker)
    if report.out_of_memory and _made_room(worker, crew):
        schedule.again(task)
        logger.warning(
            "%s waits: no memory was left on %s beside other runs (%s); workers there now: %d",
            *(task.arm.key, worker.device, report.error, crew.on(worker.device)),
        )
        return
    if report.error is not None:
        before = set(schedule.failed)
        schedule.fail(task, report.error)
        new = [arm for arm in schedule.failed if arm not in before]
        failures.append([{**arm.columns(), "error": schedule.failed[arm]} for arm in new])
        for arm in new:
            logger.error("%s failed: %s", arm.key, schedule.failed[arm])
        return
    if report.outcome is not None:
        outcome = report.outcome
        tables.add(outcome.run, outcome.sites, outcome.history)
        bar.update()
        # Not the test figure: who watches a study also changes it.
        bar.set_postfix_str(f"{task.arm.key} validation {outcome.run['val_top1']:.4f}")
    schedule.succeeded(task)


def _made_room(worker: _Worker, crew: _Crew) -> bool:
    """Whether a task that found no memory left may find some now: fewer workers are on the device
    than when it was handed out. If none has left since, this one does, unless it is alone."""
    here = crew.on(worker.device)
    if here < worker.beside:
        return True
    if here == 1:
        return False
    crew.let_go(worker)
    return True


def _share_compiled_code(work_dir: Path, processes: int) -> None:
    """Let all workers, and later calls, find what one has compiled."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work_dir.absolute() / "compiled"))
    threads = max(1, (os.cpu_count() or 1) // processes)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))


@contextlib.contextmanager
def _alone(work_dir: Path) -> Iterator[None]:
    """Hold the study against a second process.

    Raises:
        ValueError: If another process is at work on it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another process is at work on the study in {work_dir}; wait for it, or give "
                "another --out and --work"
            ) from error
        yield


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Children show no progress bars: the parent's tells how far the study is."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
