"""Photos by address: small, soon, unpacked, from public hosts; the other server is made up."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gradio as gr
import httpx
import pytest
import safehttpx
from gradio import processing_utils

from app.remote import Fetcher, fetch_within

PUBLIC = "93.184.216.34"
Handler = Callable[[httpx.Request], httpx.Response]


class Pieces(httpx.AsyncByteStream):
    """A body that comes bit by bit."""

    def __init__(self, count: int, pause: float = 0.0) -> None:
        self.left, self.pause = count, pause

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.left:
            await asyncio.sleep(self.pause)
            self.left -= 1
            yield bytes(1000)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts that were looked up; all are public but `inside`."""
    asked: list[str] = []

    async def validate(host: str) -> str:
        asked.append(host)
        if host == "inside":
            raise ValueError("Hostname inside failed validation")
        return PUBLIC

    monkeypatch.setattr(safehttpx, "async_validate_url", validate)
    return asked


def fetch(folder: Path, handler: Handler, url: str = "http://a.example/cat.jpg") -> bytes:
    fetcher = Fetcher(0.01, seconds=0.5, transport=lambda _: httpx.MockTransport(handler))
    return Path(asyncio.run(fetcher(url, str(folder)))).read_bytes()


def test_a_photo_is_fetched_over_redirects_that_are_looked_up_each(
    tmp_path: Path, names: list[str]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        if request.url.host == "a.example":
            return httpx.Response(302, headers={"Location": "https://b.example/dog.jpg"})
        return httpx.Response(200, stream=Pieces(2))

    assert fetch(tmp_path, answer) == bytes(2000)
    assert names == ["a.example", "b.example"]
    (path,) = tmp_path.rglob("photo")
    assert path.parent.parent == tmp_path


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda r: httpx.Response(404), "No photo could be fetched"),
        (lambda r: httpx.Response(302, headers={"Location": str(r.url)}), "No photo could be"),
        (lambda r: httpx.Response(302, headers={"Location": "http://inside/"}), "must be public"),
        (lambda r: httpx.Response(200, stream=Pieces(11)), "larger than 0.01 MB"),
        (lambda r: httpx.Response(200, stream=Pieces(9, 0.2)), "within 0 s"),
        (
            lambda r: httpx.Response(
                200,
                content=gzip.compress(bytes(10**6)),
                headers={"Content-Encoding": "gzip"},
            ),
            "No photo could be fetched",
        ),
    ],
    ids=["missing", "in circles", "inside", "large", "slow", "packed"],
)
def test_what_is_not_to_be_had_within_the_limits_is_refused(
    tmp_path: Path, answer: Handler, words: str
) -> None:
    with pytest.raises(gr.Error, match=words):
        fetch(tmp_path, answer)
    assert list(tmp_path.iterdir()) == []


def test_no_host_inside_is_asked(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    with pytest.raises(gr.Error, match="must be public"):
        fetch(tmp_path, answer, "http://inside/secret")


def test_gradio_fetches_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", None)
    fetch_within(3)
    assert isinstance(processing_utils.async_ssrf_protected_download, Fetcher)
