"""The gate: what is let through, what is turned away, with which words; by a plain ASGI app."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from app.gate import FORM_BYTES, MEGABYTE, Gate, Guarded
from app.journal import Call, Journal
from app.settings import Settings

CALLS = ("/gradio_api/call/predict", "/gradio_api/call/v2/predict", "/gradio_api/queue/join")


class Stage:
    """A gate before an app that answers with the size of what it was sent."""

    def __init__(self, **settings: Any) -> None:
        self.told: list[Call] = []
        self.waiting = 0
        self.fetched: list[str] = []
        journal = Journal()
        journal.listeners.append(self.told.append)
        self.gate = Gate(
            settings=Settings(**settings),
            journal=journal,
            queued=lambda: self.waiting,
            fetched=self.fetched.append,
        )
        self.streams_seen = 0
        self.bodies: list[int] = []
        """Sizes that the app has read to the end."""
        self.client = TestClient(Guarded(self.answer, self.gate))

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.streams_seen = self.gate.streams
        size = len(await Request(scope, receive).body())
        self.bodies.append(size)
        await PlainTextResponse(str(size))(scope, receive, send)

    @property
    def reasons(self) -> list[str | None]:
        return [call.reason for call in self.told]


@pytest.mark.parametrize("path", CALLS)
def test_a_full_queue_is_a_clear_busy_answer_and_not_for_other_requests(path: str) -> None:
    stage = Stage(queue_size=3)
    stage.waiting = 2
    assert stage.client.post(path, content=b"abc").text == "3"
    stage.waiting = 3
    busy = stage.client.post(path, content=b"abc")
    assert busy.status_code == 503
    assert busy.headers["Retry-After"] == "5"
    assert "3 requests are waiting already" in busy.json()["detail"]
    assert stage.client.get("/gradio_api/queue/data").status_code == 200
    assert stage.client.post("/gradio_api/upload", content=b"ab").text == "2"
    assert stage.client.get("/").status_code == 200
    assert stage.reasons == ["busy"]
    assert stage.told[0].outcome == "turned_away"


def test_each_address_has_its_own_rate_and_is_told_when_to_come_back() -> None:
    stage = Stage(rate_per_minute=2)
    other = TestClient(Guarded(stage.answer, stage.gate), client=("10.0.0.9", 1))
    assert [stage.client.post(CALLS[0]).status_code for _ in range(3)] == [200, 200, 429]
    refused = stage.client.post("/gradio_api/upload")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "More than 2 requests" in refused.json()["detail"]
    assert other.post(CALLS[0]).status_code == 200
    assert stage.client.get("/gradio_api/call/predict/1").status_code == 200
    assert stage.reasons == ["rate", "rate"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://example.org/page",
        "/gradio_api/file=%20HTTP://example.org/page",
        "/gradio_api/file/http://example.org/page",
    ],
)
def test_nobody_is_shown_what_lies_on_other_servers(method: str, path: str) -> None:
    stage = Stage()
    assert stage.client.request(method, path).status_code == 403
    assert stage.client.get("/gradio_api/file=/tmp/own/https.jpg").status_code == 200
    assert stage.reasons == ["proxy"]


def test_files_to_take_away_count_as_calls_do() -> None:
    stage = Stage(rate_per_minute=2)
    found = [stage.client.get("/take/abc/comparison.png").status_code for _ in range(3)]
    assert found == [200, 200, 429]


def test_no_rate_is_no_limit() -> None:
    stage = Stage(rate_per_minute=0)
    assert {stage.client.post(CALLS[0]).status_code for _ in range(50)} == {200}


@pytest.mark.parametrize(
    ("path", "limit"), [("/gradio_api/upload", 2), (CALLS[0], 1), ("/gradio_api/other", 1)]
)
def test_bodies_have_a_limit_whether_they_tell_their_length_or_not(path: str, limit: int) -> None:
    stage = Stage(max_upload_mb=2, max_request_mb=1)
    most = limit * MEGABYTE + FORM_BYTES
    assert stage.client.post(path, content=bytes(most)).text == str(most)
    told = stage.client.post(path, content=bytes(most + 1))
    assert told.status_code == 413
    assert f"larger than {limit} MB" in told.json()["detail"]

    def pieces() -> Any:
        for _ in range(most // 1000 + 1):
            yield bytes(1000)

    assert stage.client.post(path, content=pieces()).status_code == 413
    assert stage.bodies == [most]
    assert stage.reasons == ["size", "size"]


def test_a_closed_gate_lets_results_out_but_no_calls_in() -> None:
    stage = Stage()
    stage.gate.closed = True
    for path in (*CALLS, "/gradio_api/upload"):
        refused = stage.client.post(path)
        assert refused.status_code == 503
        assert "being stopped" in refused.json()["detail"]
    assert stage.client.get("/gradio_api/call/predict/1").status_code == 200
    assert set(stage.reasons) == {"stopping"}


@pytest.mark.parametrize(
    ("path", "streams"),
    [("/gradio_api/queue/data", 1), ("/gradio_api/call/predict/1", 1), ("/readyz", 0)],
)
def test_visitors_that_wait_for_results_are_counted(path: str, streams: int) -> None:
    stage = Stage()
    stage.client.get(path)
    assert (stage.streams_seen, stage.gate.streams) == (streams, 0)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        # The next stream of a page may be open already.
        ("/gradio_api/queue/data?session_hash=abc", []),
        ("/gradio_api/call/predict/1f", ["1f"]),
        ("/gradio_api/call/v2/predict/1f", ["1f"]),
        ("/gradio_api/queue/data", []),
        ("/readyz?session_hash=abc", []),
    ],
)
def test_it_is_told_whose_stream_has_ended(path: str, told: list[str]) -> None:
    stage = Stage()
    stage.client.get(path)
    assert stage.fetched == told


def test_what_is_no_http_passes() -> None:
    stage = Stage()
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(stage.gate.guard(app, {"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
