"""Who is right and who is wrong: the patterns by which photos are found.

A new pattern is one function with one registration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.errors import UserError
from app.flips.book import Trio
from nbcore.registry import Registry

Matches = Callable[[Trio], np.ndarray]
"""Which photos match, bool [n]."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """An entry of the menu."""

    name: str
    title: str
    """In words; the API takes it as well as the name."""
    matches: Matches
    needs_mitigated: bool
    place: int
    """In the menu, from zero."""


PATTERNS: Registry[Pattern] = Registry("pattern")


def pattern(
    name: str, title: str, *, needs_mitigated: bool = False
) -> Callable[[Matches], Matches]:
    """Decorator that puts a function into `PATTERNS`."""

    def add(matches: Matches) -> Matches:
        PATTERNS.register(name)(
            Pattern(
                name=name,
                title=title,
                matches=matches,
                needs_mitigated=needs_mitigated,
                place=len(PATTERNS),
            )
        )
        return matches

    return add


def pattern_named(name: str) -> Pattern:
    """A pattern by its name or its title.

    Raises:
        UserError: If there is none.
    """
    for key in PATTERNS:
        if str(name).strip().lower() in (key, PATTERNS[key].title.lower()):
            return PATTERNS[key]
    raise UserError(f"unknown pattern {name!r}; available: {', '.join(PATTERNS)}")


def matches(entry: Pattern, trio: Trio) -> np.ndarray:
    """Which photos match, bool [n].

    Raises:
        UserError: If the pattern speaks of a mitigated variant and none is chosen.
    """
    if entry.needs_mitigated and trio.mitigated is None:
        raise UserError(
            f"the pattern {entry.title!r} needs a mitigated variant beside {trio.pruned.info.id}; "
            "name one"
        )
    return entry.matches(trio)


def applicable(trio: Trio) -> tuple[Pattern, ...]:
    """Patterns that can be asked of these models, in the order of the menu."""
    found = sorted((PATTERNS[name] for name in PATTERNS), key=lambda entry: entry.place)
    return tuple(p for p in found if trio.mitigated is not None or not p.needs_mitigated)


def _mitigated_right(trio: Trio) -> np.ndarray:
    assert trio.mitigated is not None
    return trio.mitigated.right


@pattern("repaired", "dense right, pruned wrong, mitigated right", needs_mitigated=True)
def repaired(trio: Trio) -> np.ndarray:
    return trio.dense.right & ~trio.pruned.right & _mitigated_right(trio)


@pattern("unrepaired", "dense right, pruned wrong, mitigated wrong", needs_mitigated=True)
def unrepaired(trio: Trio) -> np.ndarray:
    return trio.dense.right & ~trio.pruned.right & ~_mitigated_right(trio)


@pattern("harmed", "dense right, pruned right, mitigated wrong", needs_mitigated=True)
def harmed(trio: Trio) -> np.ndarray:
    return trio.dense.right & trio.pruned.right & ~_mitigated_right(trio)


@pattern("broken", "dense right, pruned wrong")
def broken(trio: Trio) -> np.ndarray:
    return trio.dense.right & ~trio.pruned.right


@pattern("gained", "dense wrong, pruned right")
def gained(trio: Trio) -> np.ndarray:
    return ~trio.dense.right & trio.pruned.right


@pattern("all_wrong", "all wrong")
def all_wrong(trio: Trio) -> np.ndarray:
    return ~np.any([voice.right for voice in trio.voices.values()], axis=0)


@pattern("all_right", "all right")
def all_right(trio: Trio) -> np.ndarray:
    return np.all([voice.right for voice in trio.voices.values()], axis=0)


@pattern("disagree", "models disagree")
def disagree(trio: Trio) -> np.ndarray:
    said = np.stack([voice.predicted for voice in trio.voices.values()])
    return (said != said[0]).any(0)


@pattern("any", "every photo")
def every_photo(trio: Trio) -> np.ndarray:
    return np.ones(len(trio.dense.right), bool)
