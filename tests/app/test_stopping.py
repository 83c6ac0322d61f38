"""The app as a process: it finishes what runs when it is stopped, and a kill loses no promise."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
import uvicorn
from PIL import Image, ImageOps

from app import stopping
from app.answer_diff import deviation
from nbcore.checkpoint import sha256_of
from tests.app.processes import API, AppProcess, app_process
from tests.app.serving import example_path

pytestmark = pytest.mark.slow
RUNNING = "nb_calls_running"
WAITING = 12
"""Calls that take longer together than a server waits that only closes, however quick each is."""


def begin_long_call(app: AppProcess) -> tuple[str, str]:
    """A call that takes a while, at work when this returns: its endpoint and event."""
    event = app.ask("compare", app.upload(example_path()), method="occlusion")
    app.wait_until(RUNNING, 1)
    return "compare", event


def test_sigterm_lets_calls_that_run_or_wait_end_and_be_fetched(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    options = ("--log-format", "json", "--concurrency", "1", "--stop-seconds", "120")
    with app_process(tiny_checkpoints, tmp_path, *options) as app:
        app.wait_until("nb_ready", 1)
        photo = app.upload(example_path())
        calls = [("compare", app.ask("compare", photo, method="occlusion")) for _ in range(WAITING)]
        app.wait_until(RUNNING, 1)
        with ThreadPoolExecutor(WAITING) as pool:
            answers = [pool.submit(app.fetch, *call) for call in calls]
            app.process.send_signal(signal.SIGTERM)
            refused = None
            # The signal is taken at the next turn of the server's loop.
            while refused is None:
                found = httpx.post(f"{app.url}{API}/call/v2/models", json={}, timeout=60)
                refused = found if found.status_code != 200 else None
            assert refused.status_code == 503
            assert "being stopped" in refused.json()["detail"]
            assert httpx.get(f"{app.url}/readyz", timeout=30).status_code == 503
            assert httpx.get(f"{app.url}/healthz", timeout=30).status_code == 200
            found_answers = [answer.result() for answer in answers]
        assert all("event: complete" in found for found in found_answers)
        assert all('"attributions"' in found for found in found_answers)
        assert app.process.wait(60) == -signal.SIGTERM
        lines = [line for line in app.said().splitlines() if line.startswith("{")]
        logged = [entry for entry in map(json.loads, lines) if entry["logger"] == "app.calls"]
        outcomes = [entry["outcome"] for entry in logged if entry["call"] == "compare"]
        assert outcomes == ["answered"] * WAITING
        assert "turned_away" in [entry["outcome"] for entry in logged if entry["call"] == "gate"]
        assert example_path().stem not in app.said()


@pytest.mark.parametrize("fetches", [(), (0.2,), (0.2, 0.4, 0.6)])
def test_a_call_that_ended_just_before_the_stop_can_still_be_fetched(
    fetches: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to run; visitors hold a stream for 0.1 s each, begun at these seconds."""
    monkeypatch.setattr(stopping, "FETCH_S", 0.3)
    gate = Mock(streams=0, queued=lambda: 0)
    server = stopping.FinishingServer(
        uvicorn.Config(Mock()), gate=gate, journal=Mock(running=0), seconds=10
    )

    async def fetch(start: float) -> None:
        await asyncio.sleep(start)
        gate.streams += 1
        await asyncio.sleep(0.1)
        gate.streams -= 1

    async def stop() -> float:
        visitors = asyncio.gather(*map(fetch, fetches))
        began = time.monotonic()
        assert await server._finished()
        stopped = time.monotonic()
        assert visitors.done() or not fetches
        await visitors
        return stopped - began

    # The last stream ends at its start + 0.1, and once more 0.3 s are left to whoever comes.
    assert asyncio.run(stop()) >= max(fetches, default=-0.1) + 0.1 + 0.3 - 0.05


def test_what_takes_longer_than_its_time_is_cut_off(tiny_checkpoints: Path, tmp_path: Path) -> None:
    options = ("--concurrency", "1", "--stop-seconds", "0.01")
    with app_process(tiny_checkpoints, tmp_path, *options) as app:
        app.wait_until("nb_ready", 1)
        photo = app.upload(example_path())
        for _ in range(WAITING):  # one alone may have ended before the signal arrives
            app.ask("compare", photo, method="occlusion")
        app.wait_until(RUNNING, 1)
        started = time.monotonic()
        app.process.send_signal(signal.SIGTERM)
        app.process.wait(60)
        assert time.monotonic() - started < 30
        assert "calls are cut off after 0.01 s" in app.said()


def test_a_kill_in_the_middle_of_a_call_loses_nothing_promised(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    # Not an example, which the page itself keeps beside the uploads.
    photo = tmp_path / "visitors-own.png"
    with Image.open(example_path()) as example:
        ImageOps.mirror(example).save(photo)

    def answer(app: AppProcess) -> dict:
        app.wait_until("nb_ready", 1)
        said = app.fetch("predict", app.ask("predict", app.upload(photo)))
        assert "event: complete" in said
        return json.loads(said.split("data: ")[-1])[0]

    before = {path: sha256_of(path) for path in tiny_checkpoints.rglob("*") if path.is_file()}
    with app_process(tiny_checkpoints, tmp_path) as app:
        first = answer(app)
        begin_long_call(app)
        port = int(app.url.rsplit(":", 1)[1])
        app.process.kill()
        app.process.wait(30)
    left = [path for path in tmp_path.rglob(photo.name) if path != photo]
    assert left
    for path in left:
        # As if the hour that uploads are kept had passed meanwhile.
        os.utime(path, (time.time() - 3700,) * 2)
    with app_process(tiny_checkpoints, tmp_path, port=port) as app:
        app.wait_until("nb_ready", 1)
        assert not any(path.exists() for path in left)
        # Who else asked meanwhile may have been in the same run, which rounds differently.
        assert deviation(answer(app), first).where is None
    after = {path: sha256_of(path) for path in tiny_checkpoints.rglob("*") if path.is_file()}
    assert after == before
