"""Models -> how long one photo takes here: the median of many runs, with its 95 % interval.

All models take turns, so that what disturbs the machine for a while disturbs all alike.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.errors import UserError
from app.inference import Predictor
from app.registry import Model

logger = logging.getLogger(__name__)

ROUNDS = 25
WARM_UP = 3
SECONDS = 10.0
"""No new round is begun after this, the opening of sessions left out."""
FEWEST = 6
"""Rounds that a 95 % interval of a median needs."""


@dataclass(frozen=True, kw_only=True)
class Middle:
    """The median of several values and its 95 % interval."""

    median: float
    low: float
    high: float


def middle(values: Sequence[float]) -> Middle:
    """Median and its interval between order statistics, which assumes no distribution.

    The k-th smallest and k-th largest of n hold the median with probability
    1 - 2 P(Binomial(n, 1/2) < k); k is the largest that leaves at least 95 %.

    Raises:
        ValueError: With fewer than six values, which hold no such interval.
    """
    n, ordered = len(values), sorted(values)
    if n < FEWEST:
        raise ValueError(f"a 95 % interval of a median needs at least {FEWEST} values, got {n}")
    k, left, term = 0, 0.0, 0.5**n
    while 2 * (left + term) <= 0.05:
        left += term
        term *= (n - k) / (k + 1)
        k += 1
    return Middle(median=statistics.median(ordered), low=ordered[k - 1], high=ordered[n - k])


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Wall time of one photo, arrays in host memory."""

    times_ms: tuple[float, ...]
    """One for each round."""
    provider: str
    """What really ran it."""

    @property
    def ms(self) -> Middle:
        return middle(self.times_ms)

    def relative_to(self, other: Latency) -> Middle:
        """Its time over another's: both took turns, so each round gives a ratio, in which a
        disturbance that lasted longer than a round cancels."""
        return middle([a / b for a, b in zip(self.times_ms, other.times_ms, strict=True)])


class Stopwatch:
    """Measures once and remembers, since every measurement takes the processor from visitors."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()
        self._known: dict[str, Latency] = {}

    def known(self) -> Mapping[str, Latency]:
        """What was measured before, by variant id."""
        return dict(self._known)

    def measure(self, models: Sequence[Model], *, again: bool = False) -> Mapping[str, Latency]:
        """Latency by variant id; a model that cannot run is left out.

        Args:
            models: Which take turns.
            again: Also those that were measured before.
        """
        # One measurement at a time: a second one would only slow the first.
        with self._lock:
            due = [model for model in models if again or model.id not in self._known]
            if due:
                # All together, since only what was measured side by side can be compared.
                self._known = self._known | self._measure(models)
            return {m.id: self._known[m.id] for m in models if m.id in self._known}

    def _measure(self, models: Sequence[Model]) -> dict[str, Latency]:
        pictures = {model.id: _picture(model.variant.img_size) for model in models}
        running, providers = [], {}
        for model in models:
            try:
                for _ in range(WARM_UP):
                    answer = self._predictor.answer(model, pictures[model.id])
                    providers[model.id] = answer.provider
                running.append(model)
            except UserError as error:
                logger.warning("not timed: %s", error)
        times: dict[str, list[float]] = {model.id: [] for model in running}
        started = time.perf_counter()
        for done in range(ROUNDS):
            if done >= FEWEST and time.perf_counter() - started > SECONDS:
                break
            for model in running:
                answer = self._predictor.answer(model, pictures[model.id])
                times[model.id].append(answer.latency_ms)
        return {
            key: Latency(times_ms=tuple(found), provider=providers[key])
            for key, found in times.items()
        }


def _picture(side: int) -> np.ndarray:
    """The same noise each time: these models take as long for every picture."""
    return np.random.default_rng(0).random((3, side, side), dtype=np.float32)
