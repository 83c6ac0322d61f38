"""Accuracy against cost, one panel for each host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nbcore.study.claims import mitigations_of
from nbcore.study.figures.style import (
    FAINT,
    GREY,
    host_name,
    main_mitigations,
    ordered_hosts,
    shared_legend,
    spoken,
)
from nbcore.study.grid import DENSE, DENSE_PLUS, TWIN, WEIGHTS, StudyConfig
from nbcore.study.statistics import (
    Estimate,
    mean_over_seeds,
    values_by_seed,
)


def draw_accuracy(study: StudyConfig, runs: pd.DataFrame, best: str | None) -> Figure | None:
    """Small multiples, one panel a host: the mitigations that matter in colour, the others
    faint."""
    hosts = ordered_hosts(runs)
    if not hosts:
        return None
    shown = main_mitigations(study, runs, best)
    columns = min(4, len(hosts))
    rows = math.ceil(len(hosts) / columns)
    figure = Figure(figsize=(2.45 * columns + 0.6, 2.35 * rows + 0.95), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    dense = {
        label: (mean_over_seeds(values_by_seed(runs, name, 1.0, "none", "top1")), style)
        for label, name, style in (
            ("dense, as forked", DENSE, ":"),
            ("dense, trained on", DENSE_PLUS, "--"),
        )
    }
    for axes, host in zip(panels, hosts, strict=False):
        _accuracy_panel(axes, study, runs, host, shown, dense)
    for axes in panels[len(hosts) :]:
        axes.set_visible(False)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(max(0.0, low), min(100.0, high))
    for row in range(rows):
        panels[row * columns].set_ylabel("test top-1 (%)")
    order = [*map(spoken, shown), "other mitigations", *dense, "small twin"]
    shared_legend(figure, list(panels[: len(hosts)]), order, columns=4)
    return figure


def _accuracy_panel(
    axes: Axes,
    study: StudyConfig,
    runs: pd.DataFrame,
    host: str,
    shown: Mapping[str, dict[str, Any]],
    dense: Mapping[str, tuple[Estimate, str]],
) -> None:
    own = runs[runs["pruner"] == host]
    budgets = sorted(set(own["target_macs_ratio"]))
    for label, (estimate, style) in dense.items():
        if estimate.n:
            axes.axhline(100 * estimate.mean, color=GREY, ls=style, lw=1, label=label)
    others = [m for m in mitigations_of(study, runs) if m not in shown]
    for name in [*others, *shown]:
        points = {
            budget: mean_over_seeds(values_by_seed(own, host, budget, name, "top1"))
            for budget in budgets
        }
        points = {budget: e for budget, e in points.items() if e.n}
        if not points:
            continue
        if name in others:
            axes.plot(
                list(points),
                [100 * e.mean for e in points.values()],
                color=FAINT,
                lw=1,
                label="other mitigations",
                zorder=1,
            )
            continue
        place = list(shown).index(name) - (len(shown) - 1) / 2
        x = [budget * 1.035**place for budget in points]
        _with_bars(axes, x, list(points.values()), shown[name], spoken(name))
    if host != WEIGHTS:
        twins = {b: mean_over_seeds(values_by_seed(runs, TWIN, b, "none", "top1")) for b in budgets}
        twins = {b: e for b, e in twins.items() if e.n}
        squares = {"color": GREY, "marker": "s", "mfc": "white", "ls": "none"}
        if twins:
            _with_bars(axes, list(twins), list(twins.values()), squares, "small twin")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(budgets))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(budgets[0] / 1.35, budgets[-1] * 1.35)
    axes.grid(axis="y")
    axes.set_title(host_name(host), loc="left")
    axes.set_xlabel("share of weights kept" if host == WEIGHTS else "MACs / dense MACs")


def _with_bars(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    style: Mapping[str, Any],
    label: str,
) -> None:
    y = [100 * e.mean for e in estimates]
    bars = [
        [0.0 if math.isnan(e.low) else 100 * (e.mean - e.low) for e in estimates],
        [0.0 if math.isnan(e.high) else 100 * (e.high - e.mean) for e in estimates],
    ]
    axes.errorbar(x, y, yerr=bars, capsize=0, elinewidth=1, label=label, **style)
