"""Claims and the one rule that judges them.

*Supported* if the interval excludes zero in the claimed direction (after Holm's correction where
the estimate has such a p); *not supported* if it does not, and excludes every useful effect in that
direction; *undecided* otherwise, and whenever there are fewer than three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nbcore.study.statistics import MIN_SEEDS, Estimate

SUPPORTED, REFUTED, UNDECIDED = "supported", "not supported", "undecided"
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence, its verdict and the numbers behind it."""

    topic: str
    sentence: str
    verdict: str
    numbers: str


def judge(estimate: Estimate, useful: float) -> str:
    """Verdict on a positive effect.

    Args:
        estimate: Its p value Holm-corrected if it is one of a family.
        useful: Smallest effect that would matter.
    """
    if estimate.n < MIN_SEEDS or math.isnan(estimate.low):
        return UNDECIDED
    if estimate.low > 0 and not estimate.p >= ALPHA:
        return SUPPORTED
    return REFUTED if estimate.high < useful else UNDECIDED


def all_of(verdicts: Sequence[str]) -> str:
    """Verdict on several statements together."""
    if REFUTED in verdicts:
        return REFUTED
    return SUPPORTED if verdicts and set(verdicts) == {SUPPORTED} else UNDECIDED


def points(estimate: Estimate) -> str:
    """An accuracy difference in words, in percentage points."""
    if not estimate.n:
        return "not run"
    if math.isnan(estimate.low):
        return f"{100 * estimate.mean:+.2f} points (n = {estimate.n}, no interval)"
    return (
        f"{100 * estimate.mean:+.2f} points [{100 * estimate.low:+.2f}, "
        f"{100 * estimate.high:+.2f}], n = {estimate.n}"
    )


def number(estimate: Estimate, digits: int = 2) -> str:
    """Any estimate in words."""
    if not estimate.n or math.isnan(estimate.mean):
        return "not defined"
    if math.isnan(estimate.low):
        return f"{estimate.mean:.{digits}f} (n = {estimate.n}, no interval)"
    return (
        f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}], "
        f"n = {estimate.n}"
    )


def factor(estimate: Estimate) -> str:
    """An estimate of a logarithm as a factor."""
    if not estimate.n or math.isnan(estimate.mean):
        return "not defined"
    if math.isnan(estimate.low):
        return f"×{math.exp(estimate.mean):.2f} (n = {estimate.n}, no interval)"
    return (
        f"×{math.exp(estimate.mean):.2f} [{math.exp(estimate.low):.2f}, "
        f"{math.exp(estimate.high):.2f}], n = {estimate.n}"
    )
