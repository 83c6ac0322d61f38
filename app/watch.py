"""Every function of the page and the API tells the journal when it begins and how it ends."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app.errors import NoAnswerError, UserError
from app.journal import Call, Journal, Outcome

PUBLIC = "public"


def watch(page: gr.Blocks, journal: Journal) -> None:
    """Wrap all functions of a page that is built; one added later is not seen.

    Args:
        page: Not yet served.
        journal: Told of each call; API calls by the name of their endpoint, those of the page as
            "page:" and the name of the function.
    """
    for block in page.fns.values():
        if block.fn is not None:
            public = block.api_visibility == PUBLIC
            function = getattr(block.fn, "__name__", "function")
            name = str(block.api_name) if public else f"page:{function}"
            block.fn = _watched(block.fn, name, journal)


def _watched(fn: Callable[..., Any], name: str, journal: Journal) -> Callable[..., Any]:
    def ended(started: float, error: BaseException | None) -> None:
        outcome, reason = outcome_of(error)
        seconds = time.perf_counter() - started
        journal.record(Call(name=name, outcome=outcome, reason=reason, seconds=seconds))

    if inspect.isgeneratorfunction(fn):

        @functools.wraps(fn)
        def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
            started = time.perf_counter()
            with journal.at_work():
                try:
                    yield from fn(*args, **kwargs)
                except BaseException as error:
                    ended(started, error)
                    raise
                ended(started, None)

        return steps

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        with journal.at_work():
            try:
                found = fn(*args, **kwargs)
            except BaseException as error:
                ended(started, error)
                raise
            ended(started, None)
            return found

    return call


def outcome_of(error: BaseException | None) -> tuple[Outcome, str | None]:
    """How a call ended, and in a word why.

    Args:
        error: What it raised; the page's wrapper raises `gr.Error` from what really happened.
    """
    if error is None:
        return "answered", None
    if isinstance(error, GeneratorExit):
        return "left", None
    cause = error.__cause__ if isinstance(error, gr.Error) and error.__cause__ else error
    mendable = isinstance(cause, UserError) and not isinstance(cause, NoAnswerError)
    return "refused" if mendable else "failed", type(cause).__name__
