"""Two attribution maps of one class -> how far they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TOP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """A map against the dense base's."""

    difference: np.ndarray
    """The map minus the base's [rows, columns]."""
    rank_correlation: float | None
    """Spearman's; 1 = patches in the same order; None where a map is constant."""
    top_overlap: float | None
    """Share of the map's top tenth that lies in the base's too; None where a map is constant."""


def agreement(values: np.ndarray, base: np.ndarray) -> Agreement:
    """Hold a map against that of the dense base, for the same class [rows, columns].

    Maps in random order overlap by a tenth and correlate by nothing.
    """
    difference = values - base
    if np.ptp(values) == 0 or np.ptp(base) == 0:
        return Agreement(difference=difference, rank_correlation=None, top_overlap=None)
    # Here, since scipy's statistics take half a second to import.
    from scipy.stats import spearmanr

    both = _top(values) & _top(base)
    return Agreement(
        difference=difference,
        rank_correlation=float(spearmanr(values.ravel(), base.ravel()).statistic),
        top_overlap=len(both) / len(_top(values)),
    )


def _top(values: np.ndarray) -> set[int]:
    """The top tenth of patches, rounded up; of equal ones the one further up and left."""
    order = np.argsort(-values.ravel(), kind="stable")
    return set(order[: math.ceil(TOP_SHARE * values.size)].tolist())
