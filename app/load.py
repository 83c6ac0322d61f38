"""Visitors of the API, made up: each uploads a photo, asks, waits for the answer and asks again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.answer_diff import deviation

API = "/gradio_api"
TIMEOUT_S = 300.0
BUSY = 503


@dataclass(frozen=True, kw_only=True)
class Question:
    """A call and the photo it is about."""

    endpoint: str
    photo: int
    """Position among the uploaded photos."""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.endpoint, self.photo


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What came of one question."""

    question: Question
    client: int
    began_s: float
    """Since the load began."""
    seconds: float
    problem: str | None
    """None where the answer is right; else "busy", or what went wrong."""
    deviation: float = 0.0


class BusyError(Exception):
    """The server turned a call away as it is meant to."""


class Api:
    """The app's API over plain HTTP."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self.client = client
        self.photos: list[str] = []
        """Uploaded paths."""
        self.alone: dict[tuple[str, int], Any] = {}
        """Answers that were asked for alone, by `Question.key`."""

    async def upload(self, name: str, data: bytes) -> None:
        """Upload a photo."""
        answer = await self.client.post(f"{self.url}{API}/upload", files={"files": (name, data)})
        answer.raise_for_status()
        self.photos.append(answer.json()[0])

    async def ask(self, question: Question) -> Any:
        """The answer to a question.

        Raises:
            BusyError: If the server has no place for it.
            RuntimeError: If it answers with an error.
        """
        photo = {"path": self.photos[question.photo], "meta": {"_type": "gradio.FileData"}}
        path = f"{self.url}{API}/call/v2/{question.endpoint}"
        began = await self.client.post(path, json={"image": photo, **question.values})
        if began.status_code == BUSY:
            raise BusyError(began.json()["detail"])
        if began.status_code != 200:
            raise RuntimeError(f"status {began.status_code}: {began.text[:200]}")
        event = began.json()["event_id"]
        stream = await self.client.get(f"{self.url}{API}/call/{question.endpoint}/{event}")
        return _complete(stream.text)

    async def answer_alone(self, questions: Sequence[Question]) -> None:
        """Ask each question while nobody else asks, and keep the answers."""
        for question in questions:
            self.alone[question.key] = await self.ask(question)

    async def metric(self, name: str) -> float:
        """The value of a line of /metrics; 0 where it is not there yet."""
        text = (await self.client.get(f"{self.url}/metrics")).text
        values = [line.split()[-1] for line in text.splitlines() if line.startswith(name)]
        return float(values[0]) if values else 0.0


def _complete(stream: str) -> Any:
    """The answer in a stream of events.

    Raises:
        RuntimeError: If it ended with an error.
    """
    event = ""
    for line in stream.splitlines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: ") and event == "complete":
            return json.loads(line.removeprefix("data: "))[0]
        elif line.startswith("data: ") and event == "error":
            raise RuntimeError(f"error: {line.removeprefix('data: ')[:200]}")
    raise RuntimeError("the stream ended without an answer")


async def load(
    api: Api, questions: Sequence[Question], *, clients: int, seconds: float, at_least: int = 1
) -> list[Asked]:
    """Let so many clients ask for so long, each its next question when it has an answer.

    Args:
        api: Holds the photos and the answers to compare with.
        questions: Asked in turn; clients begin at different ones.
        clients: How many ask at the same time.
        seconds: No question is begun after this.
        at_least: Questions of each client, however long they take.
    """
    began = time.perf_counter()
    found: list[Asked] = []

    async def client(number: int) -> None:
        count = 0
        while count < at_least or time.perf_counter() - began < seconds:
            question = questions[(number + count) % len(questions)]
            found.append(await _one(api, question, number, began))
            count += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    return found


async def _one(api: Api, question: Question, client: int, began: float) -> Asked:
    start = time.perf_counter()
    problem, apart = None, 0.0
    try:
        answer = await api.ask(question)
    except BusyError:
        problem = "busy"
    except (RuntimeError, httpx.HTTPError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    if problem is None:
        held = deviation(answer, api.alone[question.key])
        apart = held.largest
        problem = None if held.where is None else f"wrong at {held.where}"
    return Asked(
        question=question,
        client=client,
        began_s=start - began,
        seconds=seconds,
        problem=problem,
        deviation=apart,
    )
