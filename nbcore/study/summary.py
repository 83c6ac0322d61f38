"""One line for each arm, mean over its seeds: what `summary.csv` and the report's table show."""

from __future__ import annotations

import math

import pandas as pd

from nbcore.study.grid import DENSE, UNPRUNED
from nbcore.study.rows import QUANTITIES
from nbcore.study.statistics import (
    Estimate,
    by_cell,
    differences_in_differences,
    gains,
    mean_over_seeds,
    recovered,
)

ARM = ["pruner", "target_macs_ratio", "mitigation"]


def summarise(runs: pd.DataFrame, *, one_fork: bool = False) -> pd.DataFrame:
    """One row for each arm, host by host, the largest budget first.

    Args:
        runs: Rows of `runs.csv`.
        one_fork: All seeds fork from one dense model, which then has one seed and no interval.

    Returns:
        The arm, its seeds, accuracy, gain over `none`, recovered share of the pruning loss and
        difference in differences with 95 % intervals (p values Holm-corrected over the hosts and
        budgets of a mitigation), and means of cost and burden.
    """
    mitigations = [m for m in dict.fromkeys(runs["mitigation"]) if m != "none"]
    gained = {name: by_cell(gains(runs, name)) for name in mitigations}
    relief = {name: by_cell(differences_in_differences(runs, name)) for name in mitigations}
    shares = {name: recovered(runs, name) for name in mitigations}
    rows = []
    for (pruner, ratio, name), group in runs.groupby(ARM, sort=False):
        top1 = mean_over_seeds(group["top1"])
        if one_fork and pruner == DENSE:
            top1 = Estimate(mean=top1.mean, n=1)
        row = {
            "pruner": pruner,
            "target_macs_ratio": ratio,
            "mitigation": name,
            "seeds": top1.n,
            "macs_ratio": group["macs_ratio"].mean(),
            "num_params": group["num_params"].mean(),
        }
        row |= _columns("top1", top1)
        row |= _columns("val_top1", mean_over_seeds(group["val_top1"]), interval=False)
        cell, pruned = (pruner, ratio), pruner not in UNPRUNED and name != "none"
        for column, table in (("gain", gained), ("recovered", shares), ("did", relief)):
            estimate = table[name].get(cell) if pruned else None
            row |= _columns(column, estimate, p=column != "recovered")
        row |= {quantity: group[quantity].mean() for quantity in QUANTITIES}
        row["seconds"] = group["seconds"].mean()
        rows.append(row)
    table = pd.DataFrame(rows)
    hosts = {host: position for position, host in enumerate(dict.fromkeys(table["pruner"]))}
    order = table.assign(
        host=table["pruner"].map(hosts), budget=-table["target_macs_ratio"]
    ).sort_values(["host", "budget"], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def _columns(
    name: str, estimate: Estimate | None, *, interval: bool = True, p: bool = False
) -> dict[str, float]:
    found = {name: estimate.mean if estimate else math.nan}
    if interval:
        found[f"{name}_low"] = estimate.low if estimate else math.nan
        found[f"{name}_high"] = estimate.high if estimate else math.nan
    if p:
        found[f"{name}_p"] = estimate.p if estimate else math.nan
    return found
