"""A table that refuses clashes and answers a wrong name with the right ones."""

from __future__ import annotations

import pytest

from nbcore.registry import Registry


@pytest.fixture
def colours() -> Registry[str]:
    table: Registry[str] = Registry("colour")
    table.register("red")("#f00")
    table.register("blue")("#00f")
    return table


def test_entries_come_in_alphabetical_order(colours: Registry[str]) -> None:
    assert dict(colours) == {"blue": "#00f", "red": "#f00"}
    assert list(colours) == ["blue", "red"]


def test_unknown_name_is_answered_with_the_known_ones(colours: Registry[str]) -> None:
    with pytest.raises(ValueError, match=r"^unknown colour 'green'; available: blue, red$"):
        colours["green"]


def test_unknown_name_of_an_empty_table() -> None:
    with pytest.raises(ValueError, match=r"^unknown colour 'green'; available: none$"):
        Registry[str]("colour")["green"]


def test_taken_name_is_refused_and_the_first_entry_stays(colours: Registry[str]) -> None:
    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        colours.register("red")("#e00")
    assert colours["red"] == "#f00"


def test_decorator_gives_its_object_back() -> None:
    table: Registry[object] = Registry("thing")
    thing = object()
    assert table.register("a")(thing) is thing
