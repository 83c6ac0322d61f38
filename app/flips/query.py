"""A question about photos -> those that answer it, in order, with what every model says of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import UserError
from app.flips.book import Chapter, Trio, Voice
from app.flips.orders import ORDERS, kl_to_dense
from app.flips.patterns import matches, pattern_named

MOST_ITEMS = 200
"""In one answer."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which photos, and in which order."""

    pattern: str
    """Name or title of an entry of `PATTERNS`."""
    class_name: str | None = None
    """The true class; None means any."""
    of: str = "pruned"
    """Whose confidence and burden count: dense, pruned or mitigated."""
    sort: str = "confidence"
    """Name of an entry of `ORDERS`."""
    min_confidence: float = 0.0
    max_confidence: float = 1.0
    min_burden: float | None = None
    max_burden: float | None = None
    packed: bool = False
    """Only photos that are here to be seen."""

    def __post_init__(self) -> None:
        if self.sort not in ORDERS:
            raise UserError(f"unknown order {self.sort!r}; available: {', '.join(ORDERS)}")
        for name in ("min_confidence", "max_confidence", "min_burden", "max_burden"):
            value = getattr(self, name)
            limit = 1.0 if name.endswith("confidence") else np.inf
            if value is not None and not (_is_number(value) and 0 <= value <= limit):
                right = "from 0 to 1" if limit == 1 else "of at least 0"
                raise UserError(f"{name} must be a number {right}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one model says of one photo."""

    class_name: str
    prob: float
    """Of its answer."""
    truth_prob: float
    """Of the true class."""
    right: bool
    kl_to_base: float
    """KL(dense || it) in nats; 0 for dense itself."""
    burden: float | None
    """Mean burden; None for dense."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One photo."""

    position: int
    """In the test split, from zero."""
    name: str
    truth: str
    packed: bool
    answers: dict[str, Cell]
    """By variant id: dense, pruned and, if there is one, mitigated."""


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Part of the photos that match."""

    total: int
    """How many can be listed: all that match, or with `Query.packed` those that are here."""
    matching: int
    """How many match."""
    packed: int
    """How many of them are here to be seen."""
    items: tuple[Item, ...]


def find(chapter: Chapter, trio: Trio, query: Query, *, limit: int, offset: int = 0) -> Flips:
    """Photos that match a query.

    Args:
        chapter: Answers on one data set.
        trio: Who is held against whom.
        query: Which photos.
        limit: Most items.
        offset: Items before the first one given.

    Raises:
        UserError: If something is asked for that is not to be had; the text says what is.
    """
    if not _is_whole(limit) or not 1 <= limit <= MOST_ITEMS:
        raise UserError(f"limit must be a whole number from 1 to {MOST_ITEMS}, got {limit!r}")
    if not _is_whole(offset) or offset < 0:
        raise UserError(f"offset must be a whole number of at least 0, got {offset!r}")
    matching = positions(chapter, trio, query)
    here = chapter.packed[matching]
    found = matching[here] if query.packed else matching
    chosen = found[offset : offset + limit]
    distances = {role: kl_to_dense(trio, voice) for role, voice in trio.voices.items()}
    items = tuple(
        Item(
            position=position,
            name=chapter.names[position],
            truth=chapter.classes[chapter.targets[position]],
            packed=bool(chapter.packed[position]),
            answers={
                voice.info.id: _cell(chapter, voice, position, distances[role][position])
                for role, voice in trio.voices.items()
            },
        )
        for position in chosen.tolist()
    )
    return Flips(total=len(found), matching=len(matching), packed=int(here.sum()), items=items)


def positions(chapter: Chapter, trio: Trio, query: Query) -> np.ndarray:
    """Positions of the photos that match, packed or not, in the order asked for."""
    mask = matches(pattern_named(query.pattern), trio)
    if query.class_name is not None:
        if query.class_name not in chapter.classes:
            known = ", ".join(chapter.classes)
            raise UserError(f"unknown class {query.class_name!r}; available: {known}")
        mask = mask & (chapter.targets == chapter.classes.index(query.class_name))
    voice = trio.voice(query.of)
    sure = voice.confidence
    mask = mask & (sure >= query.min_confidence) & (sure <= query.max_confidence)
    if query.min_burden is not None or query.max_burden is not None:
        mask = mask & _in_range(voice, query.min_burden, query.max_burden)
    found = np.flatnonzero(mask)
    scores = ORDERS[query.sort].score(trio, voice, chapter.targets)[found]
    # What is no number, a burden that does not exist, comes last.
    return found[np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")]


def _in_range(voice: Voice, low: float | None, high: float | None) -> np.ndarray:
    if voice.burden is None:
        raise UserError(
            f"{voice.info.id} is dense and has no burden; ask for that of pruned or mitigated"
        )
    with np.errstate(invalid="ignore"):
        above = voice.burden >= (0.0 if low is None else low)
        return above & (voice.burden <= (np.inf if high is None else high))


def _cell(chapter: Chapter, voice: Voice, position: int, distance: float) -> Cell:
    burden = None if voice.burden is None else float(voice.burden[position])
    return Cell(
        class_name=chapter.classes[voice.predicted[position]],
        prob=float(voice.confidence[position]),
        truth_prob=float(voice.probs[position, chapter.targets[position]]),
        right=bool(voice.right[position]),
        kl_to_base=float(distance),
        burden=burden if burden is not None and np.isfinite(burden) else None,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
