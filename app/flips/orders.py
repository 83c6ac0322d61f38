"""In which order photos are listed. A new order is one function with one registration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.flips.book import Trio, Voice
from nbcore.registry import Registry

Score = Callable[[Trio, Voice, np.ndarray], np.ndarray]
"""(models, the one whose numbers count, targets [n]) -> scores [n], the highest first."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """An entry of the menu."""

    name: str
    title: str
    score: Score
    place: int
    """In the menu, from zero."""


ORDERS: Registry[Order] = Registry("order")


def order(name: str, title: str) -> Callable[[Score], Score]:
    """Decorator that puts a function into `ORDERS`."""

    def add(score: Score) -> Score:
        ORDERS.register(name)(Order(name=name, title=title, score=score, place=len(ORDERS)))
        return score

    return add


def orders() -> tuple[Order, ...]:
    """All, in the order of the menu."""
    return tuple(sorted((ORDERS[name] for name in ORDERS), key=lambda entry: entry.place))


def kl_to_dense(trio: Trio, voice: Voice) -> np.ndarray:
    """KL(dense || voice) of every photo in nats [n]."""
    dense = trio.dense
    return np.maximum(0.0, (dense.probs * (dense.log_probs - voice.log_probs)).sum(1))


def margin(voice: Voice, targets: np.ndarray) -> np.ndarray:
    """Probability of the true class minus the largest of the others [n]."""
    truth = np.take_along_axis(voice.probs, targets[:, None], 1)[:, 0]
    others = voice.probs.copy()
    np.put_along_axis(others, targets[:, None], -1.0, 1)
    return truth - others.max(1)


@order("confidence", "surest first")
def surest(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return voice.confidence


@order("unsure", "least sure first")
def least_sure(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return -voice.confidence


@order("burden", "most burdened first")
def most_burdened(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return np.full(len(targets), -np.inf) if voice.burden is None else voice.burden


@order("unburdened", "least burdened first")
def least_burdened(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return -most_burdened(trio, voice, targets)


@order("kl", "furthest from dense first (KL)")
def furthest(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return kl_to_dense(trio, voice)


@order("margin", "largest loss of margin first")
def lost_margin(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return margin(trio.dense, targets) - margin(voice, targets)


@order("position", "as in the test split")
def as_they_come(trio: Trio, voice: Voice, targets: np.ndarray) -> np.ndarray:
    return -np.arange(len(targets), dtype=np.float64)
