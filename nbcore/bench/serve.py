"""Speed of variants as torch, ONNX Runtime and our own sessions run them, side by side in one run.

Every contender holds every variant in a process of its own, all of them warm at once; then they
take turns. A turn is a window of at least one run, and a round gives each one a window for each
batch size, variants of one contender right after another, since their ratio is what pruning is
judged by. Only one process works at a time.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nbcore.bench.contenders import CONTENDERS, ORDER
from nbcore.bench.serve_line import Line
from nbcore.bench.serve_report import Cell, summarise
from nbcore.bench.serve_task import PLACES, PRECISIONS, Message, ServeTask
from nbcore.checkpoint import Manifest, Variant, read_manifest, write_atomically
from nbcore.provenance import device_name, library_versions, source_commit

CORES_PER_START = 4
"""Processes that are started at the same time: one for so many cores."""
PAUSE_S = 0.02
"""Before a window: threads of the process before it may still be spinning."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """What is measured."""

    checkpoints: Path
    """Folder that holds `manifest.json`."""
    variants: tuple[str, ...] = ()
    """Ids; none: dense and, of one host, the first at each budget."""
    contenders: tuple[str, ...] = ORDER
    """Names from `CONTENDERS`."""
    precisions: tuple[str, ...] = ()
    """Names from `PRECISIONS`; none: what the device is good at."""
    batches: tuple[int, ...] = (1, 8, 64, 256)
    """Photos in one run."""
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = 1
    """CPU threads of one run."""
    seconds: float = 0.15
    """Length of a window; at least one run fits in."""
    rounds: int = 6
    """Windows of each cell. The range of six medians holds the true one with 97 %."""
    warm_up_seconds: float | None = None
    """Warm no further batch size after so many seconds; compiling all may take minutes."""
    limit_seconds: float | None = None
    """Start no window after so many seconds; what was measured stands."""

    def __post_init__(self) -> None:
        for name, table in (("contenders", CONTENDERS), ("precisions", PRECISIONS)):
            if unknown := sorted(set(getattr(self, name)) - set(table)):
                raise ValueError(f"unknown {name} {unknown}; available: {', '.join(table)}")
        if not self.contenders or not self.batches or min(self.batches) < 1:
            raise ValueError("name at least one contender and one batch size of at least 1")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        for name in ("threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def bench_serve(bench: ServeBench, *, command: str, out: Path, num_cores: int) -> dict[str, Any]:
    """Run the bench; the report is written after every round, so an early end keeps what was
    measured.

    Args:
        bench: What is measured.
        command: The command line, for the record.
        out: JSON file.
        num_cores: Cores that this process may use.

    Returns:
        The report.

    Raises:
        ValueError: If a variant is unknown, or no contender can do a precision on this device.
        RuntimeError: If nothing ran.
    """
    started = time.monotonic()
    manifest = read_manifest(bench.checkpoints)
    variants = _variants(bench, manifest)
    tasks = _tasks(bench, variants)
    report = _blank(bench, variants, command, num_cores)
    cells = [
        Cell(task=task, batch=batch, place=place)
        for batch in sorted(set(bench.batches))
        for place in (PLACES if bench.device == "cuda" else PLACES[:1])
        for task in tasks
    ]
    lines = {task: Line(task) for task in tasks}
    try:
        _warm_up(lines, cells, bench, num_cores)
        report["warm_up_s"] = time.monotonic() - started
        _compare_logits(lines, cells)
        for _ in tqdm(range(bench.rounds), unit="round"):
            _round(lines, cells, bench, started)
            report["seconds_in_all"] = time.monotonic() - started
            summarise(report, cells)
            write_atomically(out, json.dumps(report, indent=1) + "\n")
    finally:
        for line in lines.values():
            line.close()
    if not any(cell.windows for cell in cells):
        reasons = sorted({cell.error for cell in cells if cell.error})
        raise RuntimeError(f"nothing ran, see {out}: {'; '.join(reasons)}")
    return report


def default_variants(manifest: Manifest) -> tuple[str, ...]:
    """Dense and, of its first host without a mitigation, the variant at each budget."""
    dense = next((v for v in manifest.variants if v.base is None), None)
    if dense is None:
        raise ValueError(
            "the checkpoint folder has no dense variant; name variants with --variants"
        )
    pruned = [v for v in manifest.variants if v.base == dense.id]
    pruned.sort(key=lambda v: (v.mitigation != "none", -v.macs_ratio))
    chosen: list[Variant] = []
    for v in pruned:
        budgets = {round(c.macs_ratio, 1) for c in chosen}
        if round(v.macs_ratio, 1) not in budgets:
            chosen.append(v)
    return dense.id, *(v.id for v in sorted(chosen, key=lambda v: -v.macs_ratio))


def _variants(bench: ServeBench, manifest: Manifest) -> list[Variant]:
    known = {v.id: v for v in manifest.variants}
    ids = bench.variants or default_variants(manifest)
    if unknown := [key for key in ids if key not in known]:
        raise ValueError(f"unknown variants {unknown}; available: {', '.join(known)}")
    return [known[key] for key in dict.fromkeys(ids)]


def _tasks(bench: ServeBench, variants: Sequence[Variant]) -> list[ServeTask]:
    """By precision, contender and variant, in the order in which they take turns."""
    usual = ("tf32", "fp16") if bench.device == "cuda" else ("fp32",)
    tasks = [
        ServeTask(
            contender=name,
            variant=variant.id,
            checkpoints=str(bench.checkpoints),
            precision=precision,
            device=bench.device,
            threads=bench.threads,
            batches=tuple(sorted(set(bench.batches))),
        )
        for precision in bench.precisions or usual
        for name in bench.contenders
        if precision in CONTENDERS[name].precisions[bench.device]
        for variant in variants
    ]
    if not tasks:
        raise ValueError(f"none of {bench.contenders} does {bench.precisions} on {bench.device}")
    return tasks


def _blank(
    bench: ServeBench, variants: Sequence[Variant], command: str, num_cores: int
) -> dict[str, Any]:
    return {
        "subject": "serve",
        "command": command,
        "device": device_name(torch.device(bench.device)),
        "device_type": bench.device,
        "num_cores": num_cores,
        "threads": bench.threads,
        "versions": library_versions(),
        "commit": source_commit(),
        "seconds": bench.seconds,
        "rounds": bench.rounds,
        "variants": {
            v.id: {"base": v.base, "macs": v.macs, "macs_ratio": v.macs_ratio,
                   "num_params": v.num_params} for v in variants
        },
        "contenders": {name: CONTENDERS[name].title for name in bench.contenders},
        "cells": [],
        "targets": [],
    }  # fmt: skip


def _warm_up(
    lines: dict[ServeTask, Line], cells: Sequence[Cell], bench: ServeBench, num_cores: int
) -> None:
    """Open every process and warm every batch size: what compiles first and together, then the
    others one at a time, since they may choose algorithms by their speed."""
    compiling = [task for task in lines if CONTENDERS[task.contender].compiles]
    others = [task for task in lines if task not in compiling]
    share = max(1, num_cores // max(1, len(compiling)))
    deadline = math.inf
    if bench.warm_up_seconds is not None:
        deadline = time.monotonic() + bench.warm_up_seconds

    def cells_of(task: ServeTask) -> list[Cell]:
        return [cell for cell in cells if cell.task == task]

    def start(task: ServeTask) -> None:
        _note(lines[task].start(compile_threads=share), cells_of(task))

    def start_and_warm(task: ServeTask) -> None:
        start(task)
        _warm_one(lines[task], cells_of(task), deadline)
        bar.update()

    at_once = max(1, num_cores // CORES_PER_START)
    with (
        tqdm(total=len(lines), unit="process", desc="warming up") as bar,
        ThreadPoolExecutor(max(at_once, min(len(compiling), num_cores))) as compilers,
        ThreadPoolExecutor(at_once) as starters,
    ):
        first = compilers.map(start_and_warm, compiling)
        started = [starters.submit(start, task) for task in others]
        list(first)
        for task, opened in zip(others, started, strict=True):
            opened.result()
            _warm_one(lines[task], cells_of(task), math.inf)
            bar.update()


def _warm_one(line: Line, cells: Sequence[Cell], deadline: float) -> None:
    for batch in sorted({cell.batch for cell in cells}):
        mine = [cell for cell in cells if cell.batch == batch]
        if any(cell.error for cell in mine):
            continue
        if time.monotonic() > deadline:
            _note({"error": "not warm within --warm-up-seconds"}, mine)
            continue
        answer = line.ask({"do": "warm", "batch": batch})
        _note(answer, mine)
        for cell in mine:
            if cell.error is None:
                cell.memory = {key: answer[key] for key in ("host_bytes", "device_bytes")}
                cell.warm_s = answer["seconds"]
                cell.absent = cell.place not in answer["places"]


def _note(answer: Message, cells: Iterable[Cell]) -> None:
    for cell in cells:
        cell.error = cell.error or answer.get("error")


def _compare_logits(lines: dict[ServeTask, Line], cells: Sequence[Cell]) -> None:
    """Hold each process's logits against the first contender's of the same variant."""
    reference: dict[str, torch.Tensor] = {}
    for task, line in lines.items():
        mine = [cell for cell in cells if cell.task == task]
        if all(cell.error for cell in mine):
            continue
        answer = line.ask({"do": "logits"})
        if "error" in answer:
            logger.warning("%s: %s", task.key, answer["error"])
            continue
        logits = torch.tensor(answer["logits"], dtype=torch.float64)
        first = reference.setdefault(task.variant, logits)
        for cell in mine:
            cell.difference = float((logits - first).abs().max())


def _round(
    lines: dict[ServeTask, Line], cells: Sequence[Cell], bench: ServeBench, started: float
) -> None:
    for cell in cells:
        limit = bench.limit_seconds
        if cell.error or cell.absent:
            continue
        if limit is not None and time.monotonic() - started > limit:
            logger.warning("stopped by --limit-seconds %g", limit)
            return
        time.sleep(PAUSE_S)
        asked = {"batch": cell.batch, "place": cell.place, "seconds": bench.seconds}
        answer = lines[cell.task].ask({"do": "measure", **asked})
        if "error" in answer:
            cell.error = answer["error"]
        else:
            cell.windows.append(answer["ms"])
