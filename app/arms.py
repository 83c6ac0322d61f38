"""A study and a choice -> one line for each arm: the value of every seed, their mean, its interval.

Means and intervals are those of `summary.csv` where it has them; what it has none of is averaged
here in the same way, with Student's t over seeds. Values of single seeds are differences and ratios
within a seed, as the report takes them (METHODS.md §4).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from app.studies import Study

Row = Mapping[str, str]
Arm = tuple[str, str, str]
"""Host, budget, mitigation."""
MIN_SEEDS = 2
"""Fewer give no interval, as in the report."""
SUMMED = ("top1", "gain", "recovered", "did")
"""Measures whose mean and interval `summary.csv` has."""
TESTED = (*SUMMED, "excess")
"""Measures taken on test photos: only for studies that report them."""
TEST_COLUMNS = ("top1", "burden", "burden_null", "burden_dense_plus", "takeover", "residual")
"""Columns of `runs.csv` that are measured on test photos."""
MEASURES = ("top1", "gain", "did", "recovered", "val_top1", "excess")
PLAIN = "none"
DENSE_PLUS = "dense_plus"
ORDER = ("dense", DENSE_PLUS, "twin")
"""Arms that are not pruned."""
PUBLISHED = ("token_merging", "persistent_dynamic")
"""Parts of the mitigation `published`."""
ON_REMOVAL = ("persistent_dynamic", "handoff", "burden_quota")
"""Parts that act only when units leave: a dense model gains exactly nothing by them."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which arms are looked at; None means all."""

    measure: str
    host: str | None = None
    budget: str | None = None
    mitigation: str | None = None

    def takes(self, row: Row) -> bool:
        pairs = (
            (self.host, row["pruner"]),
            (self.budget, row["target_macs_ratio"]),
            (self.mitigation, row["mitigation"]),
        )
        return all(wanted in (None, found) for wanted, found in pairs)


@dataclass(frozen=True, kw_only=True)
class ArmValues:
    """One arm of a study."""

    host: str
    budget: str
    mitigation: str
    values: Mapping[str, float]
    """By seed; empty where a measure is none of single seeds."""
    seeds: int
    """How many the mean is of; fewer than values where one model was measured again."""
    mean: float
    low: float | None
    high: float | None
    """95 % interval of the mean; None where there is none."""


def measures_of(study: Study) -> tuple[str, ...]:
    """What can be shown: a study that serves to choose shows no test figure."""
    return tuple(name for name in MEASURES if study.summary or name not in TESTED)


def arms(study: Study, choice: Choice) -> tuple[ArmValues, ...]:
    """The arms of a choice that have a value, in the order of the summary or of the runs."""
    rows = study.summary or study.runs
    names = dict.fromkeys(_arm(row) for row in rows if choice.takes(row))
    summary = {_arm(row): row for row in study.summary}
    found = []
    for arm in names:
        values, row = _values(study, arm, choice.measure), summary.get(arm, {})
        seeds = _seeds(study, arm, row, values, choice.measure)
        middle = _middle(row, values, seeds, choice.measure)
        if middle is not None:
            mean, low, high = middle
            host, budget, mitigation = arm
            found.append(
                ArmValues(
                    host=host,
                    budget=budget,
                    mitigation=mitigation,
                    values=values,
                    seeds=seeds,
                    mean=mean,
                    low=low,
                    high=high,
                )
            )
    return tuple(found)


def _arm(row: Row) -> Arm:
    return row["pruner"], row["target_macs_ratio"], row["mitigation"]


def _values(study: Study, arm: Arm, measure: str) -> dict[str, float]:
    """By seed; none for the recovered share, a ratio of means: what pruning costs a single seed may
    be too close to zero to divide by."""
    host, _, mitigation = arm
    if measure in ("top1", "val_top1"):
        return _column(study, arm, measure)
    if host in ORDER:
        return {}
    if measure == "excess":
        return _excess(study, arm)
    if measure == "gain":
        return {seed: 100 * gain for seed, gain in _gains(study, arm).items()}
    if measure == "did":
        dense = _dense_gains(study, mitigation)
        return {seed: 100 * d for seed, d in _differences(_gains(study, arm), dense).items()}
    return {}


def _seeds(study: Study, arm: Arm, row: Row, values: Mapping[str, float], measure: str) -> int:
    if measure in ("top1", "val_top1"):
        # One dense model that all seeds fork from is one seed, however often it was measured.
        return min(len(values), int(row.get("seeds") or len(values)))
    if measure != "recovered":
        return len(values)
    host, budget, _ = arm
    plus = _column(study, (DENSE_PLUS, "1", PLAIN), "top1")
    costs = _differences(plus, _column(study, (host, budget, PLAIN), "top1"))
    return len(costs.keys() & _gains(study, arm).keys())


def _column(study: Study, arm: Arm, name: str) -> dict[str, float]:
    return {row["seed"]: float(row[name]) for row in study.runs if _arm(row) == arm and row[name]}


def _differences(these: Mapping[str, float], those: Mapping[str, float]) -> dict[str, float]:
    return {seed: value - those[seed] for seed, value in these.items() if seed in those}


def _gains(study: Study, arm: Arm) -> dict[str, float]:
    """Accuracy over that of the same seed, host and budget without mitigation."""
    host, budget, mitigation = arm
    if mitigation == PLAIN:
        return {}
    plain = _column(study, (host, budget, PLAIN), "top1")
    return _differences(_column(study, arm, "top1"), plain)


def _dense_gains(study: Study, mitigation: str) -> dict[str, float]:
    """What the dense model trained on gains by the parts that act without removal."""
    named = mitigation.split("+")
    parts = [own for name in named for own in (PUBLISHED if name == "published" else (name,))]
    acting = "+".join(part for part in parts if part not in ON_REMOVAL) or PLAIN
    with_it, without = (_column(study, (DENSE_PLUS, "1", name), "top1") for name in (acting, PLAIN))
    return _differences(with_it, without)


def _excess(study: Study, arm: Arm) -> dict[str, float]:
    """(B / B0) / (ratio of the dense model trained on), of seeds that have all three."""
    found = {}
    for row in study.runs:
        words = [row.get(name) for name in ("burden", "burden_null", "burden_dense_plus")]
        if _arm(row) == arm and all(words):
            burden, null, dense_plus = (float(word) for word in words if word)
            if min(burden, null, dense_plus) > 0:
                found[row["seed"]] = burden / null / dense_plus
    return found


def _middle(
    row: Row, values: Mapping[str, float], seeds: int, measure: str
) -> tuple[float, float | None, float | None] | None:
    scale = 100 if measure in ("gain", "did") else 1
    if measure in SUMMED:
        ends = [_number(row.get(key)) for key in (measure, f"{measure}_low", f"{measure}_high")]
        mean, low, high = (None if end is None else scale * end for end in ends)
        return None if mean is None else (mean, low, high)
    if not values:
        return None
    if measure == "excess":
        # A factor: the report takes means and intervals of its logarithm.
        mean, low, high = _interval([math.log(value) for value in values.values()])
        bottom, top = (None if end is None else math.exp(end) for end in (low, high))
        return math.exp(mean), bottom, top
    mean, low, high = _interval(list(values.values()))
    return (mean, low, high) if seeds >= MIN_SEEDS else (mean, None, None)


def _interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    mean, n = statistics.fmean(values), len(values)
    if n < MIN_SEEDS:
        return mean, None, None
    spread = statistics.stdev(values) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return mean, mean - half, mean + half


def _number(words: str | None) -> float | None:
    return float(words) if words else None
