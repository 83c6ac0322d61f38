"""Answers leave quickly, and say what they would say anyway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from gradio import processing_utils, routes
from hypothesis import given
from hypothesis import strategies as st

from app.outgoing import answer_quickly, dumps, past_numbers, past_numbers_async

WALKS = processing_utils.client_utils
FILE = {"path": "a.png", "meta": {"_type": "gradio.FileData"}}
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = st.none() | st.booleans() | st.integers() | FLOATS
VALUES: Any = st.recursive(
    NUMBERS | st.text() | st.just(FILE),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(NUMBERS),
)


@pytest.fixture
def own_walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradio's own functions; after the test all is as before, or the next app makes it so."""
    for name in ("traverse", "async_traverse"):
        walk = getattr(WALKS, name)
        monkeypatch.setattr(WALKS, name, getattr(walk, "__wrapped__", walk))
    monkeypatch.setattr(routes, "json", json)
    answer_quickly.cache_clear()
    yield
    answer_quickly.cache_clear()


@given(VALUES)
def test_all_files_are_found_wherever_they_lie(value: Any) -> None:
    def url(file: dict[str, Any]) -> str:
        return f"/file={file['path']}"

    async def awaited(file: dict[str, Any]) -> str:
        return url(file)

    is_file = WALKS.is_file_obj_with_meta
    traverse = getattr(WALKS.traverse, "__wrapped__", WALKS.traverse)
    wanted = traverse(value, url, is_file)
    assert past_numbers(traverse)(value, url, is_file) == wanted
    walk = getattr(WALKS.async_traverse, "__wrapped__", WALKS.async_traverse)
    assert asyncio.run(past_numbers_async(walk)(value, awaited, is_file)) == wanted


@given(VALUES)
def test_json_reads_as_pythons_does_and_is_one_line(value: Any) -> None:
    said = dumps(value)
    assert json.loads(said) == value
    assert said.isascii()
    assert len(said.splitlines()) == 1


def test_what_no_json_has_a_word_for_is_null() -> None:
    # Python's encoder writes NaN and Infinity, at which other readers stop.
    assert dumps([float("nan"), float("inf"), 1.0]) == "[null,null,1.0]"
    # Some readers of event streams take U+2028 or U+0085 for the end of a line.
    assert dumps(["a\u2028b\x85c", float("nan")]) == r'["a\u2028b\u0085c", null]'


def test_what_the_quick_encoder_refuses_is_written_all_the_same() -> None:
    assert dumps({1: 2**70}) == json.dumps({1: 2**70})
    assert dumps([1, 2], indent=1) == json.dumps([1, 2], indent=1)


@pytest.mark.usefixtures("own_walks")
def test_gradio_looks_at_no_number_from_then_on() -> None:
    seen: list[Any] = []

    def is_file(value: Any) -> bool:
        seen.append(value)
        return value == FILE

    answer = {"maps": [[[0.5, 1.5], [2.5, None]]], "picture": FILE}
    answer_quickly()
    answer_quickly()
    found = WALKS.traverse(answer, lambda file: file["path"], is_file)
    assert found == {"maps": answer["maps"], "picture": "a.png"}
    # The answer, `maps` and the map in it, and the file; no row, no number.
    assert seen == [answer, answer["maps"], answer["maps"][0], FILE]
    assert routes.json.dumps({"a": [1]}) == '{"a":[1]}'
    assert routes.json.loads('{"a":[1]}') == {"a": [1]}
