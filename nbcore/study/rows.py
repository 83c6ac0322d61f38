"""What was measured, as rows of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nbcore.burden import BurdenReport, PooledLoads, pooled_site_loads
from nbcore.macs import macs_of
from nbcore.measure import removed_macs, weighted_mean
from nbcore.study.forks import Fork
from nbcore.study.grid import Arm

QUANTITIES = (
    "burden",
    "burden_null",
    "burden_dense_plus",
    "selection",
    "takeover",
    "residual",
    "stream",
)


def site_rows(
    arm: Arm,
    fork: Fork,
    dense_plus: PooledLoads | None,
    report: BurdenReport,
    kept: Sequence[Tensor],
) -> list[dict[str, Any]]:
    """Rows of `sites.csv` for one run.

    Args:
        arm: The run.
        fork: The dense model it started from.
        dense_plus: Loads of the dense model trained on; None for dense runs with a mitigation.
        report: Measured burden.
        kept: Per site the indices of the survivors.
    """
    dense = fork.metered.model
    kept = [units.to(dense.keep.device) for units in kept]
    ratios: list[float | None] = [None] * len(kept)
    if dense_plus is not None:
        ratios = (
            pooled_site_loads(dense_plus, kept) / pooled_site_loads(fork.loads, kept)
        ).tolist()
    gone = removed_macs(dense, kept)
    return [
        {
            **arm.columns(),
            "site": site.name,
            "kind": site.kind,
            "total": site.num_units,
            "kept": len(kept[i]),
            "removed_macs": gone[i],
            "burden": as_text(report.burden[i]),
            "burden_null": as_text(report.burden_null[i]),
            "burden_dense_plus": as_text(ratios[i]),
            "selection": as_text(report.selection[i]),
            "takeover": as_text(report.takeover[i]),
            "residual": as_text(report.residual[i]),
            "stream": as_text(report.stream[i]),
            "occupancy": as_text(report.occupancy[i]),
            "occupancy_dense": as_text(report.occupancy_dense[i]),
        }
        for i, site in enumerate(dense.sites)
    ]


def run_means(sites: Sequence[dict[str, Any]], weights: Sequence[int]) -> dict[str, Any]:
    """Site values averaged over sites by removed MACs, for the run's row.

    Args:
        sites: From `site_rows`; empty where there is no dense past.
        weights: Used where no unit was removed: MACs of each whole site.
    """
    gone = [row["removed_macs"] for row in sites]
    means: dict[str, Any] = {}
    for name in QUANTITIES:
        values = [float(row[name]) if row[name] else None for row in sites]
        means[name] = as_text(weighted_mean(values, gone if any(gone) else weights[: len(sites)]))
    return means


def whole_sites(model: Any) -> list[int]:
    """MACs of each site with all its units."""
    costs = macs_of(model).per_unit
    return [cost * site.num_units for cost, site in zip(costs, model.sites, strict=True)]


def history_rows(arm: Arm, history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `history.csv.gz`: the loads of a training as it went on, of whole sites and of single
    units (root of the mean square over the survivors), averaged over sites of a kind."""
    return [
        {
            **arm.columns(),
            "step": record["step"],
            "macs_ratio": as_text(record["macs_ratio"]),
            "load_heads": as_text(_mean(record["loads"][0::2])),
            "load_neurons": as_text(_mean(record["loads"][1::2])),
            "unit_load_heads": as_text(_mean_per_unit(record, 0)),
            "unit_load_neurons": as_text(_mean_per_unit(record, 1)),
            "loss": as_text(record["loss"]),
        }
        for record in history
    ]


def _mean_per_unit(record: dict[str, Any], kind: int) -> float:
    pairs = zip(record["loads"][kind::2], record["kept"][kind::2], strict=True)
    return _mean([load / max(1, kept) ** 0.5 for load, kept in pairs])


def as_text(value: float | None) -> str:
    """Six digits are more than any of these is known to; nothing where a value is undefined."""
    return "" if value is None else f"{value:.6g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
