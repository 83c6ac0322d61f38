"""What Gradio keeps of callers: nothing of the API's, and of pages the states that they set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file

from app import text
from app.load import Api, Question
from app.sessions import Session, Sessions
from app.visit import Visit
from tests.app.serving import Served, example_path, function_of, join, open_page, serve


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


def kept_by(served: Served) -> Sessions:
    """What the server itself asks, which is there after the first call."""
    calls = f"{served.url}/gradio_api/call"
    event = httpx.post(f"{calls}/v2/models", json={}, timeout=60).json()["event_id"]
    assert "event: complete" in httpx.get(f"{calls}/models/{event}", timeout=60).text
    holder = served.page._queue.server_app.state_holder
    assert isinstance(holder, Sessions)
    return holder


def test_a_call_of_the_api_leaves_nothing_behind(served: Served) -> None:
    queue, holder = served.page._queue, kept_by(served)

    def kept() -> set[str]:
        """Whose things are kept: ids of pages and of calls."""
        streams = queue.pending_event_ids_session, queue.pending_messages_per_session
        return set().union(holder.session_data, *streams, queue.event_ids_to_events)

    async def ask(times: int) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            api = Api(served.url, client)
            await api.upload("photo.jpg", example_path().read_bytes())
            for _ in range(times):
                assert await api.ask(Question(endpoint="burden", photo=0))

    # Pages of other visitors keep theirs.
    before = kept()
    asyncio.run(ask(3))
    deadline = time.monotonic() + 30
    # An answer is here a moment before its call has ended there.
    while kept() - before and time.monotonic() < deadline:
        assert httpx.get(f"{served.url}/healthz", timeout=30).is_success
    assert kept() - before == set()
    assert len(queue.event_analytics) == 1


def test_a_page_keeps_its_states_and_no_answers(served: Served) -> None:
    client = Client(served.url, verbose=False, download_files=False)
    photo = handle_file(str(example_path()))
    first = client.predict(photo, api_name="/predict")
    holder = kept_by(served)
    session = holder.session_data[client.session_hash]
    assert isinstance(session, Session)
    assert session.config_values == {}
    assert client.predict(photo, api_name="/predict").keys() == first.keys()
    assert holder.session_data[client.session_hash] is session
    state = next(block for block in served.page.blocks.values() if block.stateful)
    session[state._id] = "seen"
    assert holder[client.session_hash][state._id] == "seen"
    assert Session(served.page)[state._id] != "seen"


ASKED_AGAIN = (None, "saliency", "base", False, "burden", 1, "mlp")
"""The page's state and its controls."""


def state_of(served: Served) -> Any:
    """The block that stands for what a page shows."""
    blocks = served.page.blocks.values()
    (state,) = [block for block in blocks if block.stateful and isinstance(block.value, Visit)]
    return state


def gone(is_gone: Callable[[], bool]) -> bool:
    """Whether it goes within some seconds: Gradio looks every second."""
    deadline = time.monotonic() + 20
    while not is_gone() and time.monotonic() < deadline:
        time.sleep(0.1)
    return is_gone()


def test_a_page_is_forgotten_after_its_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, session = state_of(served), open_page(served)
    kept = kept_by(served).session_data[session]
    visit = kept.state_data[state._id]
    assert visit.image is not None
    # A page is used when one of its events reads its state.
    _, used = kept._state_ttl[state._id]
    assert kept[state._id] is visit
    assert kept._state_ttl[state._id][1] > used
    monkeypatch.setattr(state, "time_to_live", 0.1)
    assert kept[state._id] is visit
    assert gone(lambda: state._id not in kept.state_data)
    monkeypatch.undo()
    # Whoever comes back to it is told what to do: saliency instead of what was shown.
    told = join(served, session, function_of(served, "run"), *ASKED_AGAIN)
    assert text.ERROR_FORGOTTEN in told


def test_a_page_that_was_closed_is_forgotten(served: Served) -> None:
    state, session = state_of(served), open_page(served)
    kept = kept_by(served).session_data[session]
    kept.STATE_TTL_WHEN_CLOSED = 0
    assert state._id in kept.state_data
    heart = f"{served.url}/gradio_api/heartbeat/{session}"
    with httpx.stream("GET", heart, timeout=60) as beats:
        next(beats.iter_raw())
    assert gone(lambda: state._id not in kept.state_data)
    assert kept.is_closed
