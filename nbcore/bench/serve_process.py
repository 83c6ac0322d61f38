"""One process of the serving bench: `python -m nbcore.bench.serve_process TASK`, then one line of
JSON asked on its input and one answered on its output, until the input ends."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import torch

from nbcore.bench.contenders import CONTENDERS, Opened, Step
from nbcore.bench.photos import made_up_photos
from nbcore.bench.serve_task import CHECKED_PHOTOS, HOST, PLACES, Memory, Message, ServeTask
from nbcore.checkpoint import Variant, read_manifest

DIFFERENT = 2 * CHECKED_PHOTOS
"""Photos that are made; a run's time does not depend on what they show."""
WARM_RUNS = 3
"""Beyond the first of a batch size: algorithms are chosen and graphs captured in these."""


class ServeProcess:
    """A contender that holds a variant, and what was measured on it so far."""

    def __init__(self, task: ServeTask) -> None:
        self.task = task
        self.opened: Opened | None = None
        self.variant = _variant(task)
        self.steps: dict[tuple[int, str], Step] = {}

    def answer(self, asked: Message) -> Message:
        """Do what a message asks."""
        verbs: dict[str, Callable[[Message], Message]] = {
            "open": self._open,
            "warm": self._warm,
            "measure": self._measure,
            "logits": self._logits,
        }
        return verbs[asked["do"]](asked)

    def _open(self, asked: Message) -> Message:
        started = time.perf_counter()
        self.opened = CONTENDERS[self.task.contender].open(self.task, self.variant)
        return {"seconds": time.perf_counter() - started}

    def _warm(self, asked: Message) -> Message:
        assert self.opened is not None
        started = time.perf_counter()
        images = photos(asked["batch"], self.variant.img_size)
        for place in PLACES if self.task.device == "cuda" else (HOST,):
            step = self.opened.step(images, place)
            if step is not None:
                self.steps[asked["batch"], place] = step
                for _ in range(1 + WARM_RUNS):
                    step()
        places = [place for size, place in self.steps if size == asked["batch"]]
        found = asdict(_memory(self.task.device))
        return {"seconds": time.perf_counter() - started, "places": places, **found}

    def _measure(self, asked: Message) -> Message:
        step = self.steps[asked["batch"], asked["place"]]
        step()  # What ran in between may have lowered clocks and emptied caches.
        times: list[float] = []
        began = time.perf_counter()
        while not times or time.perf_counter() - began < asked["seconds"]:
            start = time.perf_counter()
            step()
            times.append((time.perf_counter() - start) * 1e3)
        return {"ms": times}

    def _logits(self, asked: Message) -> Message:
        assert self.opened is not None
        smallest = min(self.task.batches)
        if (smallest, HOST) not in self.steps:
            return {"error": f"batch {smallest} did not run"}
        images = photos(CHECKED_PHOTOS + smallest, self.variant.img_size)
        rows: list[np.ndarray] = []
        for start in range(0, CHECKED_PHOTOS, smallest):
            step = self.opened.step(images[start : start + smallest], HOST)
            assert step is not None
            found = step()
            assert found is not None
            # A compiled model may hand out the same memory again.
            rows.append(found.copy())
        return {"logits": np.concatenate(rows)[:CHECKED_PHOTOS].astype(float).tolist()}


def photos(count: int, side: int) -> np.ndarray:
    """Made-up photos, RGB, uint8 [count, 3, side, side]; the first are always the same, and from
    `DIFFERENT` on they come again."""
    made = made_up_photos(DIFFERENT, side).images.numpy()
    return np.tile(made, (-(-count // DIFFERENT), 1, 1, 1))[:count]


def _variant(task: ServeTask) -> Variant:
    manifest = read_manifest(Path(task.checkpoints))
    return next(v for v in manifest.variants if v.id == task.variant)


def _memory(device: str) -> Memory:
    return Memory(host_bytes=_peak_rss(), device_bytes=_on_card() if device == "cuda" else None)


def _peak_rss() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 if peaks else None


def _on_card() -> int | None:
    """Memory of this process on the card, as the driver tells it."""
    try:
        told = torch.cuda.list_gpu_processes()
    except Exception:
        return None
    found = re.search(rf"process\s+{os.getpid()} uses\s+([\d.]+) MB", told)
    return None if found is None else int(float(found[1]) * 2**20)


def serve_requests(task: ServeTask, asked: IO[str], answers: IO[str]) -> None:
    """Answer until there are no more requests; a failure is an answer too."""
    process = ServeProcess(task)
    for line in asked:
        try:
            answer = process.answer(json.loads(line))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve the process's own input and output."""
    # Libraries print; only answers may go where the bench reads.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    values = json.loads(sys.argv[1])
    task = ServeTask(**values | {"batches": tuple(values["batches"])})
    serve_requests(task, sys.stdin, answers)


if __name__ == "__main__":
    main()
