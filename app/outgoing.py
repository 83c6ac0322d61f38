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
    """JSON, where NaN and infinity are null; by the slower encoder where options are given or the
    quick one has no word for a value."""
    if not options:
        try:
            return orjson.dumps(value).decode()
        except TypeError:
            pass
    return json.dumps(value, **options)


def _are_numbers(value: Any) -> bool:
    return type(value) is list and NUMBERS.issuperset(map(type, value))
