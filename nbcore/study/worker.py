"""A process that runs arms: tasks come through a pipe, outcomes go back through it."""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

import torch

from nbcore.study.experiment import Laboratory, Outcome
from nbcore.study.grid import Arm, StudyConfig


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to do: a run, or a rehearsal of one that only compiles what it needs."""

    kind: Literal["run", "rehearsal"]
    arm: Arm


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a task: an outcome, or an error."""

    task: Task
    outcome: Outcome | None = None
    error: str | None = None
    out_of_memory: bool = False
    """The error is that the device's memory did not do, which others beside may have taken."""
    leaving: bool = False
    """This was the worker's last word."""


def work(
    pipe: Connection,
    study: StudyConfig,
    data_dir: Path | None,
    work_dir: Path,
    device_name: str,
    threads: int | None,
) -> None:
    """Serve tasks until None comes or the parent is gone.

    Args:
        pipe: Gives `Task`s, takes `Report`s.
        study: What is studied.
        data_dir: Where prepared data lie.
        work_dir: Folder for the forks.
        device_name: Device of this worker.
        threads: CPU threads; None leaves torch's own choice.
    """
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    device = torch.device(device_name)
    if threads:
        torch.set_num_threads(threads)
    laboratory: Laboratory | None = None
    while (task := pipe.recv()) is not None:
        try:
            if laboratory is None:
                if device.type == "cuda":
                    torch.cuda.set_device(device)
                laboratory = Laboratory(study, data_dir, work_dir, device)
            if task.kind == "rehearsal":
                laboratory.rehearse(task.arm)
                report = Report(task=task)
            else:
                report = Report(task=task, outcome=laboratory.run(task.arm))
        except Exception as error:  # Whatever one arm does must not stop the others.
            full = out_of_memory(error)
            # Any other error of the device may have damaged this process; a new one goes on.
            leaving = isinstance(error, torch.AcceleratorError) and not full
            report = Report(task=task, error=_told(error), out_of_memory=full, leaving=leaving)
        try:
            pipe.send(report)
        except (ConnectionError, EOFError):
            return
        if report.leaving:
            os._exit(1)
        if report.out_of_memory:
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException | None) -> bool:
    """Whether the device's memory did not do, for this error or for one that led to it."""
    while error is not None:
        text = str(error).lower()
        known = isinstance(error, torch.OutOfMemoryError)
        if known or "out of memory" in text or "alloc_failed" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def _told(error: Exception) -> str:
    """One line: what, and where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}:{frame.lineno})"


def _leave_with_parent() -> None:
    """End this process as soon as its parent has, however it died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
