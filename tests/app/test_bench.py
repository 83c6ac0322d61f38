"""The bench of the app: what counts as the same answer, its numbers by hand, and a real run."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.__main__ import main
from app.answer_diff import TOLERANCE, deviation
from app.bench import AppBench, bench_app, line_of, summary, unknown_photos
from app.flatness import flatness
from app.load import Api, Asked, Question, load
from app.registry import ModelRegistry
from tests.app.serving import Served, example_path, serve
from tests.sources import ROOT

PREDICT = Question(endpoint="predict", photo=0)


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.mark.parametrize(
    ("found", "where"),
    [
        ({"a": [1.0, "x"], "latency_ms": 9, "file": {"path": "/b", "size": 2}}, None),
        ({"a": [1.0 + TOLERANCE / 2, "x"], "latency_ms": 1, "file": {"path": "/a"}}, "file: keys"),
        ({"a": [1.01, "x"], "latency_ms": 1, "file": {"path": "/a", "size": 1}}, ".a[0]: 1.01"),
        ({"a": [1.0, "y"], "latency_ms": 1, "file": {"path": "/a", "size": 1}}, ".a[1]: 'y'"),
        ({"a": [1.0], "latency_ms": 1, "file": {"path": "/a", "size": 1}}, ".a: length"),
        ({"a": [False, "x"], "latency_ms": 1, "file": {"path": "/a", "size": 1}}, ".a[0]: False"),
        (
            {"a": [float("nan"), "x"], "latency_ms": 1, "file": {"path": "", "size": 1}},
            ".a[0]: nan",
        ),
    ],
)
def test_answers_are_the_same_but_for_rounding_files_and_latency(
    found: dict[str, Any], where: str | None
) -> None:
    wanted = {"a": [1.0, "x"], "latency_ms": 1.0, "file": {"path": "/a", "size": 1}}
    place = deviation(found, wanted).where
    if where is None:
        assert place is None
    else:
        assert place is not None
        assert where in place


def test_a_large_number_may_differ_relatively() -> None:
    held = deviation([2000.0, 1.0], [2001.0, 1.0005])
    assert held.where is None
    assert held.largest == pytest.approx(0.0005, rel=0.01)


def test_growth_is_from_the_second_fifth_to_the_last() -> None:
    # Warming up 1, 9; then 10, 12 (median 11) ...; at the end 20, 30 (median 25).
    held = [v * 1e6 for v in (1, 9, 10, 12, 15, 16, 17, 18, 20, 30)]
    found = flatness(held, 60)
    assert (found["memory_second_fifth_mb"], found["memory_last_fifth_mb"]) == (11, 25)
    assert (found["memory_growth_mb"], found["memory_largest_mb"]) == (14, 30)
    assert flatness(held[:4], 60) == {"memory_growth_mb": None, "memory_is_flat": None}


@pytest.mark.parametrize(
    ("early", "late", "seconds", "is_flat"),
    [
        # Below 50 MB, or below 3 %: 2000 MB may grow by 60.
        (1000, 1049, 60, True),
        (1000, 1051, 60, False),
        (2000, 2059, 60, True),
        (2000, 2061, 60, False),
        (2000, 1000, 60, True),
        (1000, 1051, 59, None),
    ],
)
def test_memory_is_flat_or_not_or_the_run_is_too_short(
    early: float, late: float, seconds: float, is_flat: bool | None
) -> None:
    held = [v * 1e6 for v in (0, early, early, early, late)]
    assert flatness(held, seconds)["memory_is_flat"] is is_flat


def test_a_run_in_numbers_by_hand() -> None:
    def asked(client: int, seconds: float, problem: str | None = None) -> Asked:
        return Asked(question=PREDICT, client=client, began_s=0, seconds=seconds, problem=problem)

    found = [asked(0, 0.1), asked(0, 0.3), asked(1, 0.2), asked(1, 9, "busy"), asked(2, 9, "broke")]
    entry = summary("predict", 3, found, seconds=2.0)
    assert (entry["answered"], entry["busy"], entry["errors"]) == (3, 1, {"broke": 1})
    assert entry["per_second"] == 1.5
    # The third client got none: starvation shows.
    assert entry["answers_per_client"] == [0, 2]
    latency = entry["latency_ms"]["predict"]
    assert (latency["count"], latency["p50"], latency["max"]) == (3, 200.0, 300.0)
    said = line_of(entry)
    assert "1 told busy" in said
    assert "1 ERRORS: {'broke': 1}" in said


def test_photos_of_the_load_are_none_whose_answers_are_kept(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    from app import gallery
    from app.images import load_image

    for _, data in unknown_photos():
        photo = load_image(data, max_bytes=10**7, max_pixels=10**8)
        assert not gallery.find(photo)
    assert ModelRegistry(tiny_checkpoints).models()


def test_a_wrong_answer_is_an_error_and_says_where(served: Served) -> None:
    async def run() -> list[Asked]:
        async with httpx.AsyncClient(timeout=60) as client:
            api = Api(served.url, client)
            await api.upload("photo.jpg", example_path().read_bytes())
            await api.answer_alone([PREDICT])
            right = await load(api, [PREDICT], clients=2, seconds=0.0, at_least=2)
            answer = api.alone[PREDICT.key]
            next(iter(answer.values()))["top"][0]["prob"] += 0.5
            return right + await load(api, [PREDICT], clients=1, seconds=0.0)

    *right, wrong = asyncio.run(run())
    assert [asked.problem for asked in right] == [None] * 4
    assert all(asked.deviation < 1e-5 for asked in right)
    assert wrong.problem is not None
    assert ".top[0].prob" in wrong.problem


def test_a_bench_of_a_running_app_tells_latencies_and_who_was_told_busy(
    served: Served, tmp_path: Path
) -> None:
    said: list[str] = []
    bench = AppBench(url=served.url, clients=(1, 3), endpoints=("predict",), seconds=0.0)
    out = tmp_path / "app.json"
    report = bench_app(bench, out=out, about={"command": "tests"}, say=said.append)
    assert report == json.loads(out.read_text())
    assert report["sound"]
    one, three, burst = report["runs"]
    assert (one["answered"], three["answered"]) == (1, 3)
    assert three["answers_per_client"] == [1, 1]
    assert burst["clients"] == 80
    assert burst["answered"] + burst["busy"] == 80
    assert burst["answered"] >= 32
    assert said[0] == f"asking {served.url}"
    assert said[1] == f"memory at rest: {report['memory_at_rest_mb']:.0f} MB"
    assert report["memory_at_rest_mb"] > 10
    assert said[2].startswith("predict: ")
    assert len(said) == 3 + 3


def test_a_long_load_watches_memory(served: Served, tmp_path: Path) -> None:
    bench = AppBench(url=served.url, clients=(2,), minutes=0.1)
    out = tmp_path / "app.json"
    said: list[str] = []
    (run,) = bench_app(bench, out=out, about={}, say=said.append)["runs"]
    assert run["asked"] == "mixed"
    assert set(run["latency_ms"]) == {"predict", "burden", "compare"}
    assert len(run["memory"]) >= 5
    assert run["memory"][0][1] > 1e7
    assert run["errors"] == {}
    assert run["memory"][-1][1] / 1e6 == run["memory_after_mb"]
    assert f"{run['memory_after_mb']:.0f} after: run too short to judge" in said[-1]


@pytest.mark.slow
def test_a_bench_that_is_terminated_stops_the_app_that_it_started(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "app", "bench", "--minutes", "5", "--clients", "1"]
    command += ["--out", str(tmp_path / "app.json")]
    command += ["--serve", "--checkpoints", str(tiny_checkpoints), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as bench:
        assert bench.stdout is not None
        url = bench.stdout.readline().removeprefix("asking ").strip()
        assert httpx.get(f"{url}/healthz", timeout=30).status_code == 200
        bench.terminate()
        assert bench.wait(90) == 130
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz", timeout=30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clients", "0"], "clients must be at least 1"),
        (["--minutes", "0"], "must be positive"),
        (["--serve", "--device", "tpu"], "the app did not start: error: NB_DEVICE"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err
