"""A study and a choice -> one line for each arm: the value of every run, their mean, its interval.

Means and intervals are those of `summary.csv` where it has them; what it has none of is averaged
here in the same way, with Student's t over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from app.studies import Study

Row = Mapping[str, str]
MIN_SEEDS = 3
"""Fewer give no interval, as in the report."""
TESTED = ("top1", "gain", "recovered", "did")
"""Measures that show test photos: only for studies that report them."""
MEASURES = ("top1", "gain", "did", "recovered", "val_top1", "excess")
ORDER = ("dense", "dense_plus", "twin")
"""Arms that are not pruned."""


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
    """By seed; empty where a measure is none of single runs."""
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
    names = dict.fromkeys(
        (row["pruner"], row["target_macs_ratio"], row["mitigation"])
        for row in rows
        if choice.takes(row)
    )
    summary = {
        (row["pruner"], row["target_macs_ratio"], row["mitigation"]): row for row in study.summary
    }
    found = []
    for name in names:
        own = [
            row
            for row in study.runs
            if (row["pruner"], row["target_macs_ratio"], row["mitigation"]) == name
        ]
        values = _values(study, own, choice.measure)
        middle = _middle(summary.get(name, {}), values, choice.measure)
        if middle is not None:
            mean, low, high = middle
            host, budget, mitigation = name
            found.append(
                ArmValues(
                    host=host,
                    budget=budget,
                    mitigation=mitigation,
                    values=values,
                    mean=mean,
                    low=low,
                    high=high,
                )
            )
    return tuple(found)


def _values(study: Study, own: Sequence[Row], measure: str) -> dict[str, float]:
    if measure in ("top1", "val_top1"):
        return {row["seed"]: float(row[measure]) for row in own if row[measure]}
    if measure == "excess":
        return {
            row["seed"]: float(row["burden"]) / float(row["burden_null"])
            for row in own
            if row["burden"] and row["burden_null"] and row["pruner"] not in ORDER
        }
    if measure == "gain":
        plain = {
            (row["pruner"], row["target_macs_ratio"], row["seed"]): float(row["top1"])
            for row in study.runs
            if row["mitigation"] == "none"
        }
        keys = [(row, (row["pruner"], row["target_macs_ratio"], row["seed"])) for row in own]
        return {
            row["seed"]: 100 * (float(row["top1"]) - plain[key])
            for row, key in keys
            if key in plain and row["mitigation"] != "none" and row["pruner"] not in ORDER
        }
    return {}


def _middle(
    row: Row, values: Mapping[str, float], measure: str
) -> tuple[float, float | None, float | None] | None:
    scale = 100 if measure in ("gain", "did") else 1
    if measure in TESTED:
        ends = [_number(row.get(key)) for key in (measure, f"{measure}_low", f"{measure}_high")]
        mean, low, high = (None if end is None else scale * end for end in ends)
        return None if mean is None else (mean, low, high)
    if not values:
        return None
    mean, n = statistics.fmean(values.values()), len(values)
    if n < MIN_SEEDS:
        return mean, None, None
    spread = statistics.stdev(values.values()) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return mean, mean - half, mean + half


def _number(words: str | None) -> float | None:
    return float(words) if words else None
