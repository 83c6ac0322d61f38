"""Photos given by their address: fetched small, soon, and from public hosts alone.

Gradio fetches what a call names by an address before the call begins. By itself it takes answers of
any size into memory, unpacks them, and waits for as long as the other side pleases.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import httpx
import safehttpx
from gradio import processing_utils

from app import text
from nbcore.checkpoint import write_atomically

SECONDS = 10.0
"""For all of it: names, redirects, the file."""
REDIRECTS = 5


class Fetcher:
    """Takes the place of Gradio's download."""

    def __init__(
        self,
        max_mb: float,
        *,
        seconds: float = SECONDS,
        transport: Callable[[str], httpx.AsyncBaseTransport] = safehttpx.AsyncSecureTransport,
    ) -> None:
        """Note the limits.

        Args:
            max_mb: Largest file in MB.
            seconds: Longest time.
            transport: Connects to a verified address, whatever the host's name means by then.
        """
        self._max_bytes = int(max_mb * 1e6)
        self._max_mb = max_mb
        self._seconds = seconds
        self._transport = transport

    async def __call__(self, url: str, cache_dir: str) -> str:
        """Path of a file with what lies at an address.

        Args:
            url: Begins with http:// or https://.
            cache_dir: Gradio's folder of uploads.

        Raises:
            gradio.Error: If it is not to be had within the limits.
        """
        try:
            async with asyncio.timeout(self._seconds):
                data = await self._data(url)
        except TimeoutError:
            raise gr.Error(text.ERROR_REMOTE_SLOW.format(seconds=round(self._seconds))) from None
        except gr.Error:
            raise
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise gr.Error(text.ERROR_REMOTE) from error
        path = Path(cache_dir) / hashlib.sha256(url.encode()).hexdigest() / "photo"
        write_atomically(path, data)
        return str(path)

    async def _data(self, url: str) -> bytes:
        for _ in range(REDIRECTS + 1):
            address = await safehttpx.async_validate_url(httpx.URL(url).host)
            async with (
                httpx.AsyncClient(transport=self._transport(address)) as client,
                # Packed answers could unpack to anything.
                client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer,
            ):
                if answer.has_redirect_location:
                    url = str(httpx.URL(url).join(answer.headers["Location"]))
                    continue
                if answer.status_code != httpx.codes.OK or "Content-Encoding" in answer.headers:
                    raise gr.Error(text.ERROR_REMOTE)
                return await self._read(answer)
        raise gr.Error(text.ERROR_REMOTE)

    async def _read(self, answer: httpx.Response) -> bytes:
        data = bytearray()
        async for piece in answer.aiter_raw():
            data += piece
            if len(data) > self._max_bytes:
                raise gr.Error(text.ERROR_REMOTE_LARGE.format(limit=f"{self._max_mb:g}"))
        return bytes(data)


def fetch_within(max_mb: float) -> None:
    """Let Gradio fetch by a `Fetcher` from now on."""
    processing_utils.async_ssrf_protected_download = Fetcher(max_mb)
