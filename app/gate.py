"""Before Gradio: calls that come too often, are too large or too many are turned away at once."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import text
from app.journal import Call, Journal
from app.settings import Settings

MEGABYTE = 1024 * 1024
"""As Gradio counts them in the sentence it shows."""
FORM_BYTES = 64 * 1024
"""What a form adds to its file."""
BUSY_RETRY_S = 5
UPLOAD = re.compile(r"/gradio_api/upload/?")
CALL = re.compile(r"/gradio_api/(queue/join|call/.+|run/.+|api/.+|mcp.*)")
FOREIGN = re.compile(r".*/file[=/]\s*https?:.*", re.IGNORECASE | re.DOTALL)
"""Gradio would fetch what lies there and pass it on."""
TAKE = "/take/"
RESULTS = re.compile(r"/gradio_api/(?:queue/data|call/.+/(\w+))/?")
"""Streams of answers; those of a call end with its id."""


class TooLargeError(Exception):
    """A body went on past the limit."""


class Gate:
    """Lets requests through to an app; what it turns away gets status 413, 429 or 503 and a
    sentence."""

    def __init__(
        self,
        *,
        settings: Settings,
        journal: Journal,
        queued: Callable[[], int],
        fetched: Callable[[str], None],
    ) -> None:
        """Begin with nobody counted.

        Args:
            settings: The limits.
            journal: Told of what was turned away.
            queued: How many calls wait.
            fetched: Told which call of the API has had its answer, by its id.
        """
        self.settings = settings
        self.journal = journal
        self.queued = queued
        self.fetched = fetched
        self.closed = False
        """No new call is let in: the server is stopping."""
        self.streams = 0
        """Visitors that wait for results."""
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def guard(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to an app, or turn it away."""
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["method"] == "POST":
            await self._measured(app, scope, receive, send)
        elif stream := RESULTS.fullmatch(scope["path"]):
            self.streams += 1
            try:
                await app(scope, receive, send)
            finally:
                self.streams -= 1
                # A call has one stream; a page may open its next one while the last one ends.
                if stream[1] is not None:
                    self.fetched(stream[1])
        else:
            await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that is not let in."""
        path = scope["path"]
        if FOREIGN.fullmatch(path):
            return self._turn_away("proxy", 403, text.ERROR_PROXY)
        is_call = CALL.fullmatch(path) is not None
        is_work = is_call or UPLOAD.fullmatch(path)
        if not ((scope["method"] == "POST" and is_work) or path.startswith(TAKE)):
            return None
        if self.closed:
            return self._turn_away("stopping", 503, text.ERROR_STOPPING, BUSY_RETRY_S)
        if is_call and self.queued() >= self.settings.queue_size:
            words = text.ERROR_BUSY.format(count=self.settings.queue_size)
            return self._turn_away("busy", 503, words, BUSY_RETRY_S)
        if self.settings.rate_per_minute:
            rate = RateLimitItemPerMinute(self.settings.rate_per_minute)
            client = (scope.get("client") or ("unknown", 0))[0]
            if not self._limiter.hit(rate, client):
                after = self._limiter.get_window_stats(rate, client).reset_time - time.time()
                words = text.ERROR_TOO_OFTEN.format(count=self.settings.rate_per_minute)
                return self._turn_away("rate", 429, words, max(1, round(after)))
        return None

    async def _measured(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request whose body is counted."""
        is_upload = UPLOAD.fullmatch(scope["path"]) is not None
        limit = self.settings.max_upload_mb if is_upload else self.settings.max_request_mb
        most = int(limit * MEGABYTE) + FORM_BYTES
        length = dict(scope["headers"]).get(b"content-length", b"0")
        taken = int(length) if length.isdigit() else 0
        answered = False
        if taken <= most:
            taken = 0

            async def counted() -> Message:
                nonlocal taken
                message = await receive()
                taken += len(message.get("body", b""))
                if taken > most:
                    raise TooLargeError
                return message

            async def noted(message: Message) -> None:
                nonlocal answered
                # The app may have made another error of it.
                if taken <= most:
                    answered = True
                    await send(message)

            with contextlib.suppress(TooLargeError):
                await app(scope, counted, noted)
        if taken > most:
            refusal = self._turn_away("size", 413, text.ERROR_TOO_LARGE.format(limit=limit))
            if not answered:
                await refusal(scope, receive, send)

    def _turn_away(
        self, reason: str, status: int, words: str, retry_s: int | None = None
    ) -> JSONResponse:
        self.journal.record(Call(name="gate", outcome="turned_away", reason=reason, seconds=0.0))
        headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
        return JSONResponse({"detail": words}, status_code=status, headers=headers)


class Guarded:
    """ASGI middleware that asks a gate."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or turn it away."""
        await self.gate.guard(self.app, scope, receive, send)
