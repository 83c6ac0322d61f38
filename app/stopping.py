"""A server that finishes what runs before it stops."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import uvicorn

from app.gate import Gate
from app.journal import Journal

POLL_S = 0.05
FETCH_S = 1.0
"""After the last call ended, so that a visitor who asked can still begin to fetch the answer."""
CLOSE_S = 2
"""For connections that stay open for ever, as that of every open page."""

logger = logging.getLogger(__name__)


class FinishingServer(uvicorn.Server):
    """On SIGTERM or SIGINT: turns new calls away, lets those that wait or run end and be fetched,
    then closes. A second SIGINT ends it at once."""

    def __init__(
        self, config: uvicorn.Config, *, gate: Gate, journal: Journal, seconds: float
    ) -> None:
        """Serve an app.

        Args:
            config: Of uvicorn.
            gate: Stands before the app.
            journal: Counts what runs.
            seconds: What does not end within this time is cut off.
        """
        config.timeout_graceful_shutdown = CLOSE_S
        super().__init__(config)
        self._gate = gate
        self._journal = journal
        self._seconds = seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish, then close as uvicorn does."""
        self._gate.closed = True
        if not await self._finished():
            logger.warning("%d calls are cut off after %g s", self._left(), self._seconds)
        await super().shutdown(sockets)

    def _left(self) -> int:
        return self._journal.running + self._gate.queued()

    async def _finished(self) -> bool:
        """Whether everything ended in time, and whoever asked had time to fetch it."""
        logger.info("stopping: %d calls are finished first", self._left())
        deadline, quiet_since = time.monotonic() + self._seconds, time.monotonic()
        while not self.force_exit and time.monotonic() < deadline:
            if self._left() or self._gate.streams:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= FETCH_S:
                return True
            await asyncio.sleep(POLL_S)
        return not self._left()
