"""Which photos tell most about pruning: every criterion ranks all photos, and they take turns.

Turns go over criteria and classes, so that no criterion and no class crowds out the others; flips
that a mitigation repairs get most turns, since they are what visitors look for and are rare. A new
criterion is one function with one `criterion` line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nbcore.registry import Registry

NO = -np.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What all variants say of all photos; V variants, n photos, K classes."""

    targets: np.ndarray
    """int [n]."""
    probs: np.ndarray
    """[V, n, K]."""
    predicted: np.ndarray
    """int [V, n]."""
    burden: np.ndarray
    """Mean burden [V, n]; not a number for dense variants."""
    pairs: Sequence[tuple[int, int]]
    """(dense, pruned from it)."""
    triples: Sequence[tuple[int, int, int]]
    """(dense, pruned without a mitigation, the same host and budget with one)."""

    @property
    def right(self) -> np.ndarray:
        """bool [V, n]."""
        return self.predicted == self.targets

    @property
    def of_truth(self) -> np.ndarray:
        """Probability of the true class [V, n]."""
        return np.take_along_axis(self.probs, self.targets[None, :, None], 2)[..., 0]


Scores = Callable[[Said], Iterator[np.ndarray]]
"""Yields scores [n], higher is more telling, -inf where it does not apply; the best one counts."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """An entry of the table."""

    scores: Scores
    turns: int
    """Photos it takes of each class when it is its turn."""


CRITERIA: Registry[Criterion] = Registry("criterion")


def criterion(name: str, *, turns: int) -> Callable[[Scores], Scores]:
    """Decorator that puts a function into `CRITERIA`."""

    def add(scores: Scores) -> Scores:
        CRITERIA.register(name)(Criterion(scores=scores, turns=turns))
        return scores

    return add


@criterion("repaired", turns=4)
def repaired(said: Said) -> Iterator[np.ndarray]:
    """Dense right, pruned wrong, mitigated right."""
    right, truth = said.right, said.of_truth
    for dense, plain, other in said.triples:
        applies = right[dense] & ~right[plain] & right[other]
        yield np.where(applies, truth[other] - truth[plain], NO)


@criterion("harmed", turns=2)
def harmed(said: Said) -> Iterator[np.ndarray]:
    """Dense right, pruned right, mitigated wrong."""
    right, truth = said.right, said.of_truth
    for dense, plain, other in said.triples:
        applies = right[dense] & right[plain] & ~right[other]
        yield np.where(applies, truth[plain] - truth[other], NO)


@criterion("broken", turns=2)
def broken(said: Said) -> Iterator[np.ndarray]:
    """Dense right, pruned wrong."""
    right, truth = said.right, said.of_truth
    for dense, pruned in said.pairs:
        yield np.where(right[dense] & ~right[pruned], truth[dense] - truth[pruned], NO)


@criterion("gained", turns=2)
def gained(said: Said) -> Iterator[np.ndarray]:
    """Dense wrong, pruned right."""
    right, truth = said.right, said.of_truth
    for dense, pruned in said.pairs:
        yield np.where(~right[dense] & right[pruned], truth[pruned] - truth[dense], NO)


@criterion("all_wrong", turns=1)
def all_wrong(said: Said) -> Iterator[np.ndarray]:
    """Every variant wrong, the surest first."""
    yield np.where(~said.right.any(0), said.probs.max(-1).mean(0), NO)


@criterion("shaken", turns=1)
def shaken(said: Said) -> Iterator[np.ndarray]:
    """Every variant right, with the largest change of confidence against dense."""
    everyone, truth = said.right.all(0), said.of_truth
    for dense, pruned in said.pairs:
        yield np.where(everyone, abs(truth[pruned] - truth[dense]), NO)


@criterion("burdened", turns=1)
def burdened(said: Said) -> Iterator[np.ndarray]:
    """The highest mean burden."""
    for _, pruned in said.pairs:
        yield np.nan_to_num(said.burden[pruned], nan=NO, posinf=NO, neginf=NO)


def choose(said: Said) -> list[int]:
    """Positions of the photos to which any criterion applies, the most telling first."""
    queues = [
        (iter(order[said.targets[order] == k].tolist()), CRITERIA[name].turns)
        for name in CRITERIA
        for order in [_ranking(said, CRITERIA[name])]
        for k in np.unique(said.targets).tolist()
    ]
    chosen: dict[int, None] = {}
    while queues:
        left = []
        for queue, turns in queues:
            new = islice((photo for photo in queue if photo not in chosen), turns)
            taken = dict.fromkeys(new)
            chosen |= taken
            if taken:
                left.append((queue, turns))
        queues = left
    return list(chosen)


def _ranking(said: Said, entry: Criterion) -> np.ndarray:
    """Positions of the photos to which a criterion applies, the most telling first."""
    none = np.full(len(said.targets), NO)
    scores = np.max([none, *entry.scores(said)], axis=0)
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > NO]
