"""Answers leave in less time than Gradio takes by itself; what they say stays the same.

To find the files in an answer, it walks twice through all of it, number by number; a comparison has
15,000. The answers of plain HTTP it writes with Python's encoder, those of its own page with one
that is ten times as fast. All that in its one thread, which answers nobody else meanwhile.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import orjson
from gradio import processing_utils, routes

NUMBERS = frozenset({int, float, bool, type(None)})


@functools.cache
def answer_quickly() -> None:
    """Let Gradio pass on lists of numbers as they are, and write all JSON as it does for its page;
    from now on, in this process."""
    walks = processing_utils.client_utils
    walks.traverse = past_numbers(walks.traverse)
    walks.async_traverse = past_numbers_async(walks.async_traverse)
    routes.json = SimpleNamespace(**vars(json) | {"dumps": dumps})


def past_numbers(walk: Callable[..., Any]) -> Callable[..., Any]:
    """Gradio's search through nested lists, which calls itself by its name for what lies in them,
    but for lists of numbers: none is a file."""

    @functools.wraps(walk)
    def quick(json_obj: Any, *how: Any, **named: Any) -> Any:
        return json_obj if _are_numbers(json_obj) else walk(json_obj, *how, **named)

    return quick


def past_numbers_async(walk: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """As `past_numbers`, of the search that is awaited."""

    @functools.wraps(walk)
    async def quick(json_obj: Any, *how: Any, **named: Any) -> Any:
        return json_obj if _are_numbers(json_obj) else await walk(json_obj, *how, **named)

    return quick


def dumps(value: Any, **options: Any) -> str:
    """JSON in one line of ASCII, as Gradio's own, but where NaN and infinity are null.

    Args:
        value: What Gradio sends.
        options: Of `json.dumps`; with any, or with a value that orjson has no word for, that writes
            all of it.
    """
    if options:
        return json.dumps(value, **options)
    try:
        quick = orjson.dumps(value)
    except TypeError:
        return json.dumps(value)
    # Readers of event streams may take U+2028 and its like for the end of a line.
    return quick.decode() if quick.isascii() else json.dumps(orjson.loads(quick))


def _are_numbers(value: Any) -> bool:
    return type(value) is list and NUMBERS.issuperset(map(type, value))
