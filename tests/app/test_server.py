"""Health routes, limits and what the page's HTML asks for."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.routing import Mount

from app.server import FURTHER_THREADS, create_app
from app.service import Service
from app.settings import Settings
from app.takeaway import Takeaway
from tests.app.folders import copy_of, flip_byte, ids_by_mitigation
from tests.app.serving import Served, serve
from tests.sources import ROOT


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


def test_readiness_waits_for_the_start_up_checks(tiny_checkpoints: Path) -> None:
    settings = Settings(checkpoints=tiny_checkpoints, device="cpu", threads=1)
    service = Service.from_settings(settings)
    app = create_app(service, settings)
    client = TestClient(app)
    assert client.get("/healthz").json() == {"status": "ok"}
    before = client.get("/readyz")
    assert (before.status_code, before.json()["ready"], before.json()["checked"]) == (
        503,
        False,
        False,
    )
    assert set(before.json()["parity"].values()) == {None}
    service.start_checks()
    assert service.parity.wait(60)
    after = client.get("/readyz")
    assert after.status_code == 200
    found = after.json()
    assert found["ready"]
    assert found["provider"] == "CPUExecutionProvider"
    assert all(0 < difference <= 1e-5 for difference in found["parity"].values())
    app.state.gate.closed = True
    stopping = client.get("/readyz")
    assert (stopping.status_code, stopping.json()["stopping"]) == (503, True)
    app.state.gate.closed = False
    for key in found["variants"]:
        service.registry.refuse(key, "it is broken")
    broken = client.get("/readyz")
    assert (broken.status_code, broken.json()["ready"]) == (503, False)


@pytest.mark.parametrize(
    ("name", "body", "status", "words"),
    [
        ("v2/nope", {}, 404, "there is no call 'nope'"),
        ("nope", {"data": []}, 404, "there is no call 'nope'"),
        ("v2/predict", {}, 422, "image"),
        ("v2/predict", {"image": None, "nope": 1}, 422, "nope"),
        ("v2/flips", {}, 422, "pattern"),
    ],
)
def test_a_call_that_makes_no_sense_is_told_why(
    served: Served, name: str, body: dict[str, Any], status: int, words: str
) -> None:
    answer = httpx.post(f"{served.url}/gradio_api/call/{name}", json=body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert "/gradio_api/info" in answer.json()["detail"]


def test_health_answers_while_many_take_files_away(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Semaphore(0), threading.Event()

    def slow(*_: object) -> bytes:
        began.release()
        go.wait(30)
        return b""

    monkeypatch.setattr(Takeaway, "file", slow)
    with ThreadPoolExecutor(60) as pool:
        taking = [
            pool.submit(httpx.get, f"{served.url}/take/abc/numbers.json", timeout=60)
            for _ in range(60)
        ]
        began.acquire(timeout=30)
        assert httpx.get(f"{served.url}/healthz", timeout=10).is_success
        assert httpx.get(f"{served.url}/readyz", timeout=10).status_code in (200, 503)
        go.set()
        assert {one.result().status_code for one in taking} == {200}


def test_metrics_name_the_provider_and_count_what_was_asked(served: Served) -> None:
    def metrics() -> str:
        return httpx.get(f"{served.url}/metrics").text

    def value(text: str, name: str) -> float:
        found = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    # A process counts once for all its apps, and other tests have asked theirs.
    counted = (
        'nb_calls_total{call="predict",outcome="refused"}',
        'nb_unanswered_total{outcome="refused",reason="UserError"}',
    )
    before = metrics()
    assert 'nb_provider{device="cpu",provider="CPUExecutionProvider"} 1.0' in before
    assert "nb_queue_size 32.0" in before
    upload = {"files": ("holiday.png", b"this is no picture")}
    (path,) = httpx.post(f"{served.url}/gradio_api/upload", files=upload).json()
    asked = {"image": {"path": path, "meta": {"_type": "gradio.FileData"}}}
    call = httpx.post(f"{served.url}/gradio_api/call/v2/predict", json=asked).json()["event_id"]
    answer = httpx.get(f"{served.url}/gradio_api/call/predict/{call}", timeout=60).text
    assert "event: error" in answer
    after = metrics()
    for name in counted:
        assert value(after, name) == value(before, name) + 1
    assert "holiday" not in after


def test_a_damaged_variant_is_refused_by_name_and_the_others_are_served(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_checkpoints, tmp_path)
    ids = ids_by_mitigation(folder)
    flip_byte(folder / ids["none"] / "model.onnx")
    settings = Settings(checkpoints=folder, device="cpu", threads=1)
    service = Service.from_settings(settings)
    service.start_checks()
    assert service.parity.wait(60)
    found = TestClient(create_app(service, settings)).get("/readyz").json()
    assert sorted(found["variants"]) == sorted(set(ids.values()) - {ids["none"]})
    assert list(found["refused"]) == [ids["none"]]
    assert "sha256" in found["refused"][ids["none"]]
    assert found["ready"]
    assert found["checked"]


def test_page_asks_no_other_host_for_anything(served: Served) -> None:
    page = httpx.get(served.url).text
    styles = httpx.get(f"{served.url}/theme.css").text
    assert "fonts.googleapis" not in page + styles
    assert '"analytics_enabled":false' in page.replace(" ", "")


def test_uploads_above_the_limit_are_turned_away(served: Served) -> None:
    limit = int(Settings().max_upload_mb * 1024 * 1024)
    upload = f"{served.url}/gradio_api/upload"
    refused = httpx.post(upload, files={"files": ("a.png", bytes(limit + 1))}, timeout=60)
    assert refused.status_code == 413
    assert httpx.post(upload, files={"files": ("a.png", b"small")}).status_code == 200
    assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_queue_is_bounded_and_the_page_keeps_its_events_to_itself(tiny_checkpoints: Path) -> None:
    settings = Settings(checkpoints=tiny_checkpoints, device="cpu", queue_size=3, concurrency=1)
    app = create_app(Service.from_settings(settings), settings)
    mounted = next(route.app for route in app.routes if isinstance(route, Mount))
    blocks = mounted.get_blocks()  # type: ignore[attr-defined]
    assert blocks._queue.max_size == 3
    # Both lines full leave threads.
    assert blocks.max_threads > 2 * settings.concurrency + 8
    assert blocks._queue.max_thread_count == blocks.max_threads
    assert blocks.delete_cache == (3600, 3600)
    open_to_all = {
        fn.api_name: fn.concurrency_limit
        for fn in blocks.fns.values()
        if fn.api_visibility != "private"
    }
    computed = dict.fromkeys(("predict", "attribute", "burden", "compare"), 1)
    looked_up = dict.fromkeys(("models", "flips"))
    assert open_to_all == computed | looked_up
    # Page and API share the line of comparisons, or together they would exceed the limit, and
    # what is quick has one of its own, or it would wait for comparisons to end.
    lines = {fn.api_name: fn.concurrency_id for fn in blocks.fns.values() if fn.api_name}
    assert lines["compare"] == lines["attribute"] == "compute"
    assert lines["predict"] == lines["burden"] == "quick"
    page = [fn for fn in blocks.fns.values() if fn.api_visibility == "private"]
    assert "compute" in {fn.concurrency_id for fn in page}


def test_no_setting_makes_calls_wait_for_the_threads_that_read_files() -> None:
    for concurrency in range(1, 65):
        blocks = gr.Blocks()
        blocks.max_threads = 2 * concurrency + FURTHER_THREADS
        blocks.create_limiter()
        assert blocks.limiter is not None


def test_pyplot_is_whole_before_anything_is_served() -> None:
    # Gradio touches a pyplot that it finds; one that another thread is still importing fails.
    code = (
        "import sys, app.server\n"
        "sys.exit('switch_backend' not in vars(sys.modules['matplotlib.pyplot']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
