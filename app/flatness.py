"""Samples of a server's memory under load -> whether it is flat."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

FLAT_MB, FLAT_SHARE = 50, 0.03
"""The server's memory is flat if it grows by less than the larger of the two; the second is a share
of what it was."""
JUDGED_S = 60
"""A shorter load is all warming up, so it says nothing of growth."""


def flatness(held: Sequence[float], seconds: float) -> dict[str, Any]:
    """Whether memory stayed as it was, from the second to the last fifth of a run, by medians; the
    first fifth is warming up.

    Args:
        held: Samples in bytes, at even distances.
        seconds: How long questions were begun.

    Returns:
        MB (10**6 bytes), and the verdict: None where the run was too short, or sampled less than
        five times.
    """
    fifth = len(held) // 5
    if not fifth:
        return {"memory_growth_mb": None, "memory_is_flat": None}
    early = statistics.median(held[fifth : 2 * fifth]) / 1e6
    late = statistics.median(held[-fifth:]) / 1e6
    is_flat = late - early < max(FLAT_MB, FLAT_SHARE * early)
    return {
        "memory_second_fifth_mb": early,
        "memory_last_fifth_mb": late,
        "memory_largest_mb": max(held) / 1e6,
        "memory_growth_mb": late - early,
        "memory_is_flat": is_flat if seconds >= JUDGED_S else None,
    }
