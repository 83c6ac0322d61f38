"""`python -m app bench`: the app through HTTP, from one client to more than it has places for."""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageOps

from app import gallery
from app.flatness import flatness
from app.load import TIMEOUT_S, Api, Asked, Question, load

PHOTOS = 4
MEMORY = "process_resident_memory_bytes"
SAMPLE_S = 1.0
SETTLE_S = 5.0
"""Until memory is looked at again after the last answer."""
BEYOND = 16
"""Calls of the burst that cannot find a place."""
MIX = ("predict",) * 8 + ("burden", "compare")
"""Of a long load: mostly quick questions, some that take a hundred times as long."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AppBench:
    """What is measured."""

    url: str
    clients: tuple[int, ...] = (1, 8, 32)
    """How many ask at the same time, one run for each."""
    endpoints: tuple[str, ...] = ("predict", "compare")
    seconds: float = 10.0
    """How long each number of clients asks."""
    minutes: float | None = None
    """Instead: one long run of all kinds of questions, memory watched."""

    def __post_init__(self) -> None:
        if not self.clients or min(self.clients) < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}")
        if self.seconds < 0 or (self.minutes is not None and self.minutes <= 0):
            raise ValueError("--seconds and --minutes must be positive")


def bench_app(bench: AppBench, *, out: Path, about: dict[str, Any], say: Say) -> dict[str, Any]:
    """Measure a running app; the report is written after every run.

    Args:
        bench: What is measured.
        out: JSON file.
        about: Command, device and versions, for the record.
        say: Told each line of the report as it comes.
    """
    return asyncio.run(_bench(bench, out, about, say))


async def _bench(bench: AppBench, out: Path, about: dict[str, Any], say: Say) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits) as client:
        api = Api(bench.url, client)
        standing = (await client.get(f"{bench.url}/readyz")).json()
        rest_mb = await api.metric(MEMORY) / 1e6
        report: dict[str, Any] = {"subject": "app", **about, "readyz": standing}
        report |= {"memory_at_rest_mb": rest_mb, "runs": []}
        say(f"asking {bench.url}")
        say(f"memory at rest: {rest_mb:.0f} MB")
        for name, data in unknown_photos():
            await api.upload(name, data)
        long = bench.minutes is not None
        endpoints = tuple(dict.fromkeys(MIX)) if long else bench.endpoints
        questions = {
            name: [Question(endpoint=name, photo=i) for i in range(PHOTOS)] for name in endpoints
        }
        for asked in questions.values():
            started = time.perf_counter()
            await api.answer_alone(asked)
            each_ms = (time.perf_counter() - started) / len(asked) * 1e3
            say(f"{asked[0].endpoint}: {each_ms:.0f} ms for each of {len(asked)} lone requests")

        def keep(entry: dict[str, Any]) -> None:
            report["runs"].append(entry)
            report["sound"] = all(
                not run["errors"] and run.get("memory_is_flat") is not False
                for run in report["runs"]
            )
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            say(line_of(entry))

        if bench.minutes is not None:
            mixed = [questions[name][i % PHOTOS] for i in range(PHOTOS) for name in MIX]
            for clients in bench.clients:
                keep(await _watched(api, mixed, clients, bench.minutes * 60))
            return report
        for name in bench.endpoints:
            for clients in bench.clients:
                started = time.perf_counter()
                found = await load(api, questions[name], clients=clients, seconds=bench.seconds)
                keep(summary(name, clients, found, time.perf_counter() - started))
        keep(await _burst(api, questions[bench.endpoints[0]]))
    return report


def unknown_photos() -> list[tuple[str, bytes]]:
    """Photos that the app has not seen: its examples, mirrored, since answers on those are kept."""
    found = []
    for number, example in enumerate(gallery.read_examples()[:PHOTOS]):
        file = io.BytesIO()
        with Image.open(example.path) as photo:
            ImageOps.mirror(photo.convert("RGB")).save(file, "JPEG", quality=90)
        found.append((f"photo-{number}.jpg", file.getvalue()))
    return found


async def _burst(api: Api, questions: Sequence[Question]) -> dict[str, Any]:
    """More calls at once than there are places: those beyond are to be told so, the others to be
    answered."""
    clients = int(await api.metric("nb_queue_size")) * 2 + BEYOND
    started = time.perf_counter()
    found = await load(api, questions, clients=clients, seconds=0.0)
    entry = summary(questions[0].endpoint, clients, found, time.perf_counter() - started)
    told = [asked.seconds for asked in found if asked.problem == "busy"]
    told_ms = statistics.median(told) * 1e3 if told else None
    return entry | {"burst": True, "busy_after_ms": told_ms}


async def _watched(
    api: Api, questions: Sequence[Question], clients: int, seconds: float
) -> dict[str, Any]:
    """A long load, with the server's memory over time."""
    memory: list[tuple[float, float]] = []
    started = time.perf_counter()

    async def watch() -> None:
        while True:
            memory.append((time.perf_counter() - started, await api.metric(MEMORY)))
            await asyncio.sleep(max(SAMPLE_S, seconds / 200))

    watching = asyncio.create_task(watch())
    try:
        found = await load(api, questions, clients=clients, seconds=seconds)
    finally:
        watching.cancel()
    ended = time.perf_counter()
    entry = summary("mixed", clients, found, ended - started)
    await asyncio.sleep(min(SETTLE_S, seconds / 10))
    memory.append((time.perf_counter() - started, await api.metric(MEMORY)))
    return entry | {
        "memory": [[round(s, 1), held] for s, held in memory],
        **flatness([held for _, held in memory[:-1]], seconds),
        "memory_after_mb": memory[-1][1] / 1e6,
    }


def summary(name: str, clients: int, found: Sequence[Asked], seconds: float) -> dict[str, Any]:
    """One run in numbers.

    Args:
        name: What was asked.
        clients: How many asked.
        found: Every question.
        seconds: From the first question to the last answer.
    """
    right = [asked for asked in found if asked.problem is None]
    errors = Counter(a.problem for a in found if a.problem not in (None, "busy"))
    entry: dict[str, Any] = {
        "asked": name,
        "clients": clients,
        "seconds": seconds,
        "answered": len(right),
        "busy": sum(asked.problem == "busy" for asked in found),
        "errors": dict(errors.most_common(20)),
        "per_second": len(right) / seconds,
        "largest_deviation": max((asked.deviation for asked in right), default=None),
        "latency_ms": {},
        "answers_per_client": [],
    }
    counts = Counter(asked.client for asked in right)
    if right:
        entry["answers_per_client"] = [
            min(counts.get(client, 0) for client in range(clients)), max(counts.values())
        ]  # fmt: skip
    for endpoint in sorted({asked.question.endpoint for asked in right}):
        times = [a.seconds * 1e3 for a in right if a.question.endpoint == endpoint]
        entry["latency_ms"][endpoint] = {
            "count": len(times),
            **{f"p{q}": float(np.percentile(times, q)) for q in (50, 90, 95, 99)},
            "max": max(times),
        }
    return entry


def line_of(entry: dict[str, Any]) -> str:
    """A run as a line of text."""
    parts = [f"{entry['asked']:8s}{entry['clients']:4d} clients", f"{entry['answered']:6d} answers"]
    parts.append(f"{entry['per_second']:7.1f}/s")
    for endpoint, ms in entry["latency_ms"].items():
        parts.append(
            f"{endpoint} {ms['p50']:.0f} ms median, {ms['p95']:.0f} p95, {ms['p99']:.0f} p99"
        )
    if entry["busy"]:
        parts.append(f"{entry['busy']} told busy")
    if entry.get("memory_growth_mb") is not None:
        verdict = {True: "FLAT", False: "NOT FLAT", None: "run too short to judge"}
        parts.append(
            f"memory {entry['memory_second_fifth_mb']:.0f} MB in the second fifth, "
            f"{entry['memory_last_fifth_mb']:.0f} in the last, {entry['memory_after_mb']:.0f} "
            f"after: {verdict[entry['memory_is_flat']]}"
        )
    wrong = sum(entry["errors"].values())
    parts.append(f"{wrong} ERRORS: {entry['errors']}" if wrong else "no errors")
    return "; ".join(parts)
