"""Counts over the whole test split: accuracies with intervals, confusion against dense, and how
far confidence can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from app.flips.book import Chapter, Trio, Voice
from app.flips.patterns import applicable

NUM_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Share:
    """A count of right answers and what it says of the rate behind it."""

    right: int
    total: int
    low: float
    """Ends of the 95 % Wilson interval."""
    high: float

    @property
    def value(self) -> float:
        return self.right / self.total


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Photos of which a model was about equally sure."""

    low: float
    high: float
    """Confidence is above `low` and at most `high`."""
    confidence: float
    """Mean over the photos."""
    right: Share


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Confidence held against accuracy."""

    bins: tuple[Bin, ...]
    """Those that hold a photo."""
    error: float
    """Expected calibration error: mean |accuracy - confidence| of the bins, weighted by photos."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """All that is counted of three models."""

    num_photos: int
    counts: Mapping[str, int]
    """Photos by name of the pattern."""
    accuracy: Mapping[str, Share]
    """By role."""
    by_class: Mapping[str, Mapping[str, Share]]
    """By class, then by role."""
    confusion: Mapping[str, np.ndarray]
    """By role but dense's: photos by dense's answer (rows) and this model's (columns) [K, K]."""
    reliability: Mapping[str, Reliability]
    """By role."""


def summarize(chapter: Chapter, trio: Trio) -> Summary:
    """Count everything once over all photos."""
    voices, targets = trio.voices, chapter.targets
    size = len(chapter.classes)
    classes = [(name, targets == k) for k, name in enumerate(chapter.classes)]
    return Summary(
        num_photos=len(targets),
        counts={entry.name: int(entry.matches(trio).sum()) for entry in applicable(trio)},
        accuracy={role: share(voice.right) for role, voice in voices.items()},
        by_class={
            name: {role: share(voice.right[own]) for role, voice in voices.items()}
            for name, own in classes
            if own.any()
        },
        confusion={
            role: confusion(trio.dense.predicted, voice.predicted, size)
            for role, voice in voices.items()
            if role != "dense"
        },
        reliability={role: reliability(voice) for role, voice in voices.items()},
    )


def share(right: np.ndarray) -> Share:
    """Right answers among at least one, bool [n]."""
    count, total = int(right.sum()), len(right)
    interval = binomtest(count, total).proportion_ci(0.95, method="wilson")
    return Share(right=count, total=total, low=float(interval.low), high=float(interval.high))


def confusion(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    """How often each pair of answers occurs, int [size, size]."""
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def reliability(voice: Voice) -> Reliability:
    """Photos in ten bins of equal width by confidence."""
    sure, right = voice.confidence, voice.right
    edges = np.linspace(0, 1, NUM_BINS + 1)
    owner = np.clip(np.digitize(sure, edges, right=True) - 1, 0, NUM_BINS - 1)
    bins = tuple(
        Bin(
            low=float(edges[k]),
            high=float(edges[k + 1]),
            confidence=float(sure[owner == k].mean()),
            right=share(right[owner == k]),
        )
        for k in np.unique(owner).tolist()
    )
    gaps = sum(b.right.total * abs(b.right.value - b.confidence) for b in bins)
    return Reliability(bins=bins, error=gaps / len(sure))
