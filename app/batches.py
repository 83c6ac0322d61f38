"""Requests to one session, gathered into one run; and which thread runs which session."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from nbcore.serve import ServedSession

GATHER_SECONDS = 0.002
"""Longest that a request waits for others, and only while others are being asked."""

Arrays = dict[str, np.ndarray]
Watcher = Callable[[str, int, float, float], None]
"""Called after each run with the variant, how many images it held, the longest wait of a request
and its own duration, in seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Outputs of one request's images, and how long the run took that held them."""

    outputs: Arrays
    provider: str
    seconds: float


@dataclass(kw_only=True, eq=False)
class _Request:
    line: Line
    images: np.ndarray
    gates: tuple[np.ndarray | None, np.ndarray | None]
    """unit_gate and unit_keep [U]."""
    answer: Future[Answered] = field(default_factory=Future)
    asked: float = field(default_factory=time.perf_counter)


class Line:
    """Everything that is asked of one session."""

    def __init__(self, name: str, open_session: Callable[[], ServedSession], lane: Lane) -> None:
        """A line whose session is opened by the lane's thread, at the first request.

        Args:
            name: Of the variant, for watchers.
            open_session: Opens the session, warm.
            lane: Whose thread runs it.
        """
        self.name = name
        self._open = open_session
        self._lane = lane
        self._session: ServedSession | None = None

    def ask(
        self,
        images: np.ndarray,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Answered:
        """Outputs for images [B, 3, S, S], in a run that may hold other requests' images too.

        Args:
            images: RGB, float32 in [0, 1] or uint8.
            unit_gate: Factors on contributions [U].
            unit_keep: Units summed in token loads [U].

        Raises:
            Exception: What ONNX Runtime says of this request; those of others are none of it.
        """
        request = _Request(line=self, images=images, gates=(unit_gate, unit_keep))
        self._lane.put(request)
        return request.answer.result()

    def session(self) -> ServedSession:
        """The session; called by the lane's thread alone."""
        if self._session is None:
            self._session = self._open()
        return self._session


class Lane:
    """One thread that runs the sessions of its lines, oldest request first."""

    def __init__(self, *, most_images: int, gather_seconds: float = GATHER_SECONDS) -> None:
        """Start the thread.

        Args:
            most_images: Most images of one gathered run; a single request may hold more.
            gather_seconds: How long a request may wait for others to come.
        """
        self.watchers: list[Watcher] = []
        self._most = most_images
        self._gather = gather_seconds
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._together = False
        threading.Thread(target=self._work, name="lane", daemon=True).start()

    def put(self, request: _Request) -> None:
        with self._changed:
            self._queue.append(request)
            self._changed.notify()

    def waiting(self) -> int:
        """Requests that no run holds yet."""
        return len(self._queue)

    def _work(self) -> None:
        while True:
            requests = self._next()
            started = time.perf_counter()
            try:
                answers = _run(requests)
            except Exception as error:
                answers = [error] if len(requests) == 1 else [_alone(one) for one in requests]
            ended = time.perf_counter()
            images = sum(len(request.images) for request in requests)
            for watcher in self.watchers:
                waited = started - min(request.asked for request in requests)
                watcher(requests[0].line.name, images, waited, ended - started)
            for request, answer in zip(requests, answers, strict=True):
                if isinstance(answer, Exception):
                    request.answer.set_exception(answer)
                else:
                    request.answer.set_result(answer)
            del requests, answers

    def _next(self) -> list[_Request]:
        """The oldest request and those of the same line that fit into its run."""
        with self._changed:
            while not self._queue:
                self._changed.wait()
            oldest = self._queue[0]
            # Who is alone waits for nobody: others are expected only where others just were.
            until = oldest.asked + self._gather
            while self._together or len(self._queue) > 1:
                left = until - time.perf_counter()
                if left <= 0 or self._images(oldest.line) >= self._most:
                    break
                self._changed.wait(left)
            taken: list[_Request] = []
            images = 0
            for request in list(self._queue):
                fits = not taken or images + len(request.images) <= self._most
                if request.line is oldest.line and fits:
                    taken.append(request)
                    images += len(request.images)
                    self._queue.remove(request)
            self._together = len(taken) > 1 or bool(self._queue)
            return taken

    def _images(self, line: Line) -> int:
        return sum(len(request.images) for request in self._queue if request.line is line)


def _alone(request: _Request) -> Answered | Exception:
    """Its own answer, or its own error."""
    try:
        return _run([request])[0]
    except Exception as error:
        return error


def _run(requests: Sequence[_Request]) -> list[Answered | Exception]:
    """Run the images of all requests at once.

    Raises:
        Exception: If the run fails, whosever images are to blame.
    """
    session = requests[0].line.session()
    images = [request.images for request in requests]
    gates = [_rows(requests, position) for position in (0, 1)]
    started = time.perf_counter()
    found = session.run(images, *gates)
    seconds = time.perf_counter() - started
    ends = list(itertools.accumulate(len(request.images) for request in requests))
    return [
        Answered(
            outputs={name: value[start:end] for name, value in found.items()},
            provider=session.provider,
            seconds=seconds,
        )
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _rows(requests: Sequence[_Request], position: int) -> np.ndarray | None:
    """One gate for every image [B, U]; None where nobody gave any."""
    given = [request.gates[position] for request in requests]
    known = next((gate for gate in given if gate is not None), None)
    if known is None:
        return None
    rows = [
        np.broadcast_to(np.ones_like(known) if gate is None else gate, (len(r.images), len(known)))
        for gate, r in zip(given, requests, strict=True)
    ]
    return np.concatenate(rows).astype(np.float32)
