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
    if device.type == "cuda":
        torch.cuda.set_device(device)
    laboratory: Laboratory | None = None
    while (task := pipe.recv()) is not None:
        try:
            if laboratory is None:
                laboratory = Laboratory(study, data_dir, work_dir, device)
            if task.kind == "rehearsal":
                laboratory.rehearse(task.arm)
                pipe.send(Report(task=task))
            else:
                pipe.send(Report(task=task, outcome=laboratory.run(task.arm)))
        except (ConnectionError, EOFError):
            return
        except Exception as error:  # Whatever one arm does must not stop the others.
            no_memory = isinstance(error, torch.OutOfMemoryError)
            pipe.send(Report(task=task, error=_told(error), out_of_memory=no_memory))
            if isinstance(error, torch.AcceleratorError):
                # The device's state is lost to this process; a new one goes on.
                os._exit(1)
            if no_memory:
                torch.cuda.empty_cache()


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
