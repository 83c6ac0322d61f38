"""What the rows of a study say, with intervals: differences between arms that share a seed.

Seeds are the unit of replication: arms of one seed share fork, data order and steps, so only
differences within a seed are taken, and intervals are those of the mean difference over seeds
(Student's t, statsmodels). Families of tests are corrected by Holm's method (statsmodels).

A `cell` is one host at one budget.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW
from statsmodels.tools import add_constant

from nbcore.study.grid import DENSE_PLUS, UNPRUNED, WEIGHTS, acting_without_removal

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""With fewer seeds nothing is decided."""
CELL = ["pruner", "target_macs_ratio"]
ROUNDING = 1e-12
"""Numbers of order one that differ by less are the same."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its interval."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    """Bounds of the 95 % interval; not a number where there are too few seeds for one."""
    p: float = math.nan
    """Two-sided, of a true mean of zero; Holm-corrected where it is one of a family."""
    n: int
    """Seeds."""


def mean_over_seeds(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of one number per seed with its 95 % interval by Student's t."""
    values = np.asarray(values, float)
    if not len(values):
        return Estimate(mean=math.nan, n=0)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean=mean, n=len(values))
    if np.ptp(values) <= ROUNDING:
        # No spread, no t: an exact tie is no evidence, an exact difference all there can be.
        p = float(abs(mean) <= ROUNDING)
        return Estimate(mean=mean, low=mean, high=mean, p=p, n=len(values))
    described = DescrStatsW(values)
    low, high = described.tconfint_mean(alpha=1 - CONFIDENCE)
    p = described.ttest_mean(0.0)[1]
    return Estimate(mean=mean, low=float(low), high=float(high), p=float(p), n=len(values))


def ratio_of_means(top: Sequence[float], bottom: Sequence[float]) -> Estimate:
    """Ratio of two means over the same seeds with Fieller's 95 % interval.

    The interval holds every r for which a t test does not refute that top - r · bottom has mean
    zero. It is missing where the test does not even refute that the bottom's mean is zero.

    Args:
        top: One number per seed.
        bottom: The same seeds.
    """
    a, b = np.asarray(top, float), np.asarray(bottom, float)
    n = len(a)
    mean = float(a.mean() / b.mean()) if n and b.mean() else math.nan
    if n < 2:
        return Estimate(mean=mean, n=n)
    t2 = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) ** 2 / n
    covariance = np.cov(a, b)
    # (mean(a) - r mean(b))² = t²/n · var(a - r b), a quadratic in r.
    square = b.mean() ** 2 - t2 * covariance[1, 1]
    linear = a.mean() * b.mean() - t2 * covariance[0, 1]
    constant = a.mean() ** 2 - t2 * covariance[0, 0]
    if square <= 0:
        return Estimate(mean=mean, n=n)
    root = math.sqrt(max(0.0, linear**2 - square * constant))
    return Estimate(mean=mean, low=(linear - root) / square, high=(linear + root) / square, n=n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-corrected p values; those that are not numbers stay so and do not count."""
    p = np.asarray(p_values, float)
    known = ~np.isnan(p)
    corrected = p.copy()
    if known.any():
        # statsmodels collects garbage at every call, which takes long beside a loaded torch.
        gc.freeze()
        corrected[known] = multipletests(p[known], method="holm")[1]
        gc.unfreeze()
    return [float(value) for value in corrected]


def pruned_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of hosts, without dense models and twins."""
    return runs[~runs["pruner"].isin(UNPRUNED)]


def compacting(table: pd.DataFrame) -> pd.DataFrame:
    """A table of cells without the host `weights`, whose models keep their size: what a mitigation
    saves there comes on top, so arms are not of equal cost."""
    return table[[cell for cell in table.columns if cell[0] != WEIGHTS]]


def of_host(table: pd.DataFrame, host: str) -> pd.DataFrame:
    """A table of cells, only those of one host."""
    return table[[cell for cell in table.columns if cell[0] == host]]


def relative_macs(runs: pd.DataFrame, pruner: str, mitigation: str) -> float:
    """MACs of a host's arms with a mitigation over those without, mean over the budgets that have
    both; not a number if none has."""
    own = runs[runs["pruner"] == pruner]
    macs = own.groupby(["target_macs_ratio", "mitigation"])["macs_ratio"].mean().unstack()
    if mitigation not in macs or "none" not in macs:
        return math.nan
    return float((macs[mitigation] / macs["none"]).mean())


def values_by_seed(
    runs: pd.DataFrame, pruner: str, ratio: float, mitigation: str, column: str
) -> pd.Series:
    """A column of one arm, indexed by seed; empty if it was not run."""
    chosen = runs[
        (runs["pruner"] == pruner)
        & (runs["target_macs_ratio"] == ratio)
        & (runs["mitigation"] == mitigation)
    ]
    return chosen.set_index("seed")[column].sort_index()


def gains(
    runs: pd.DataFrame, mitigation: str, reference: str = "none", column: str = "top1"
) -> pd.DataFrame:
    """What a mitigation adds to a reference in every cell that has both.

    Returns:
        One row per seed, one column per cell (host, budget); missing where one of both is.
    """
    of_arm = {
        arm: group.set_index("seed")[column]
        for arm, group in pruned_runs(runs).groupby([*CELL, "mitigation"], sort=False)
    }
    found = {}
    for pruner, ratio in dict.fromkeys((pruner, ratio) for pruner, ratio, _ in of_arm):
        arms = [(pruner, ratio, name) for name in (mitigation, reference)]
        if all(arm in of_arm for arm in arms):
            difference = (of_arm[arms[0]] - of_arm[arms[1]]).dropna()
            if len(difference):
                found[(pruner, ratio)] = difference
    return pd.DataFrame(found).sort_index()


def dense_gain(runs: pd.DataFrame, mitigation: str, reference: str = "none") -> pd.Series:
    """What a mitigation adds to the dense model trained on, by seed.

    Parts that act only on removal change no bit of a dense training, so they are left out; what has
    no other part gains exactly nothing there.
    """
    columns = [
        values_by_seed(runs, DENSE_PLUS, 1.0, acting_without_removal(name), "top1")
        for name in (mitigation, reference)
    ]
    return (columns[0] - columns[1]).dropna()


def pruning_loss(runs: pd.DataFrame, against: str = DENSE_PLUS) -> pd.DataFrame:
    """What pruning without mitigation costs in every cell, by seed: `against` - none, where
    `against` is the dense model trained on, or the one that all arms fork from."""
    dense = values_by_seed(runs, against, 1.0, "none", "top1")
    found = {}
    for (pruner, ratio), group in pruned_runs(runs).groupby(CELL, sort=False):
        lost = (dense - values_by_seed(group, pruner, ratio, "none", "top1")).dropna()
        if len(lost):
            found[(pruner, ratio)] = lost
    return pd.DataFrame(found).sort_index()


def differences_in_differences(runs: pd.DataFrame, mitigation: str) -> pd.DataFrame:
    """(pruned+M - pruned) - (dense+M - dense) in every cell, by seed."""
    return gains(runs, mitigation).sub(dense_gain(runs, mitigation), axis=0).dropna(how="all")


def by_cell(table: pd.DataFrame) -> dict[tuple[str, float], Estimate]:
    """Estimates of every cell, p values corrected over all of them."""
    estimates = {cell: mean_over_seeds(table[cell].dropna()) for cell in table.columns}
    corrected = holm([e.p for e in estimates.values()])
    return {
        cell: replace(e, p=p) for (cell, e), p in zip(estimates.items(), corrected, strict=True)
    }


def by_host(table: pd.DataFrame) -> dict[str, Estimate]:
    """Estimates of every host, mean over its budgets, p values corrected over hosts."""
    hosts = dict.fromkeys(host for host, _ in table.columns)
    estimates = {host: overall(of_host(table, host)) for host in hosts}
    corrected = holm([e.p for e in estimates.values()])
    return {
        host: replace(e, p=p) for (host, e), p in zip(estimates.items(), corrected, strict=True)
    }


def overall(table: pd.DataFrame) -> Estimate:
    """Mean over cells, by seed, then over seeds, of the largest complete part of a table."""
    return mean_over_seeds(complete_part(table).mean(axis=1))


def complete_part(table: pd.DataFrame) -> pd.DataFrame:
    """The largest set of seeds and cells in which nothing is missing, with three seeds if any has;
    of equals that with more seeds.

    Args:
        table: One row per seed, one column per cell.
    """
    best, size = table.iloc[:0, :0], (False, 0, 0)
    present = table.notna()
    shared: set[frozenset] = set()
    for cell in table.columns:
        seeds = frozenset(present.index[present[cell]])
        shared |= {seeds} | {seeds & other for other in shared}
    for chosen in sorted(map(sorted, shared)):
        cells = [cell for cell in table.columns if present.loc[chosen, cell].all()]
        rank = (len(chosen) >= MIN_SEEDS, len(chosen) * len(cells), len(chosen))
        if rank > size:
            best, size = table.loc[chosen, cells], rank
    return best


def recovered(
    runs: pd.DataFrame, mitigation: str, reference: str = "none", against: str = DENSE_PLUS
) -> dict[tuple[str, float], Estimate]:
    """Share of the pruning loss that a mitigation brings back, in every cell."""
    gained, lost = gains(runs, mitigation, reference), pruning_loss(runs, against)
    found = {}
    for cell in gained.columns:
        if cell in lost.columns:
            both = pd.DataFrame({"gain": gained[cell], "loss": lost[cell]}).dropna()
            found[cell] = ratio_of_means(both["gain"], both["loss"])
    return found


def excess_burden(runs: pd.DataFrame) -> pd.DataFrame:
    """log of (B / B0) / (dense_plus ratio) of unmitigated arms: one row per seed, one column per
    cell.

    Zero where survivors carry what cut survivors and mere further training explain.
    """
    plain = pruned_runs(runs)
    plain = plain[plain["mitigation"] == "none"]
    found = {}
    for cell, group in plain.groupby(CELL, sort=False):
        group = group.set_index("seed")
        ratio = group["burden"] / group["burden_null"] / group["burden_dense_plus"]
        found[cell] = np.log(ratio.where(ratio > 0)).dropna()
    return pd.DataFrame(found).sort_index()


def burden_growth(excess: pd.DataFrame) -> pd.Series:
    """How much excess burden grows from each host's largest budget to its smallest, mean over
    hosts, by seed."""
    steps = []
    for host in dict.fromkeys(host for host, _ in excess.columns):
        budgets = sorted(ratio for name, ratio in excess.columns if name == host)
        if len(budgets) > 1:
            steps.append(excess[(host, budgets[0])] - excess[(host, budgets[-1])])
    if not steps:
        return pd.Series(dtype=float)
    return complete_part(pd.concat(steps, axis=1, keys=range(len(steps)))).mean(axis=1)


def partial_rank_correlation(
    x: Sequence[float], y: Sequence[float], control: Sequence[float]
) -> float:
    """Rank correlation of x and y at equal control: correlation of what is left of the ranks of
    both after a linear fit (statsmodels) on the ranks of the control; nan below five points."""
    ranks = [stats.rankdata(values) for values in (x, y, control)]
    if len(ranks[0]) < 5 or any(np.ptp(r) == 0 for r in ranks[:2]):
        return math.nan
    design = add_constant(ranks[2], has_constant="add")
    left = [OLS(values, design).fit().resid for values in ranks[:2]]
    if any(np.allclose(values, 0) for values in left):
        return math.nan
    return float(stats.pearsonr(*left).statistic)


def run_damage(runs: pd.DataFrame) -> pd.DataFrame:
    """Unmitigated arms with excess burden and loss increase over the dense model trained on.

    Without the host `weights`, whose budget is no share of MACs.

    Returns:
        Columns pruner, target_macs_ratio, seed, excess (a factor), damage (nats).
    """
    dense = values_by_seed(runs, DENSE_PLUS, 1.0, "none", "loss")
    plain = pruned_runs(runs)
    plain = plain[(plain["mitigation"] == "none") & (plain["pruner"] != WEIGHTS)]
    table = plain[[*CELL, "seed"]].copy()
    table["excess"] = plain["burden"] / plain["burden_null"] / plain["burden_dense_plus"]
    table["damage"] = plain["loss"] - plain["seed"].map(dense)
    return table[(table["excess"] > 0) & table["damage"].notna()]


def damage_correlation(runs: pd.DataFrame) -> Estimate:
    """Partial rank correlation over hosts and budgets of excess burden and loss increase at equal
    share removed, for each seed; mean over seeds."""
    return _mean_correlation(run_damage(runs), "damage", "target_macs_ratio")


def _mean_correlation(table: pd.DataFrame, damage: str, control: str) -> Estimate:
    """Mean over seeds of partial rank correlations, averaged as Fisher's z."""
    found = [
        partial_rank_correlation(group["excess"], group[damage], group[control])
        for _, group in table.groupby("seed")
    ]
    z = mean_over_seeds(
        [math.atanh(max(-0.999, min(0.999, r))) for r in found if not math.isnan(r)]
    )
    mean, low, high = (math.tanh(value) for value in (z.mean, z.low, z.high))
    if z.low == z.high:
        # The ranks of a few points come out alike with every seed, which is no certainty.
        return replace(z, mean=mean, low=math.nan, high=math.nan, p=math.nan)
    return replace(z, mean=mean, low=low, high=high)


def site_damage(sites: pd.DataFrame) -> pd.DataFrame:
    """Sites of unmitigated arms that lost units, with excess burden, share removed and residual."""
    plain = pruned_runs(sites)
    plain = plain[(plain["mitigation"] == "none") & (plain["kept"] < plain["total"])].copy()
    plain["excess"] = plain["burden"] / plain["burden_null"] / plain["burden_dense_plus"]
    plain["removed"] = 1 - plain["kept"] / plain["total"]
    return plain[(plain["excess"] > 0) & plain["residual"].notna()]


def site_correlation(sites: pd.DataFrame) -> Estimate:
    """Partial rank correlation over sites, hosts and budgets of excess burden and the residual of
    the site's block at equal share removed, for each seed; mean over seeds."""
    return _mean_correlation(site_damage(sites), "residual", "removed")
