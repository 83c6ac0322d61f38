"""One process of the training bench: `python -m nbcore.bench TASK.json ANSWER.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from nbcore.bench.own_loop import time_own_loop
from nbcore.bench.task import OURS, TrainTask
from nbcore.bench.timm_loop import TIMM, time_timm_loop


def main(asked: Path, answer: Path) -> None:
    """Do the task of one file and write the measurement to the other."""
    task = TrainTask(**json.loads(asked.read_text(encoding="utf-8")))
    if task.contender == OURS:
        measurement = time_own_loop(task)
    else:
        measurement = time_timm_loop(task, TIMM[task.contender])
    answer.write_text(json.dumps(asdict(measurement)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
