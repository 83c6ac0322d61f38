"""Excess burden against damage, for runs and for sites."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from nbcore.study.figures.style import (
    BLACK,
    GREY,
    PALETTE,
    host_name,
    host_style,
    ordered_hosts,
    shared_legend,
)
from nbcore.study.statistics import (
    CELL,
    damage_correlation,
    run_damage,
    site_correlation,
    site_damage,
)
from nbcore.study.verdicts import number


def draw_burden(runs: pd.DataFrame, sites: pd.DataFrame) -> Figure | None:
    """Excess burden against damage: runs on the left, sites on the right."""
    of_runs, of_sites = run_damage(runs), site_damage(sites)
    if of_runs.empty or of_sites.empty:
        return None
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    smallest, largest = of_runs["target_macs_ratio"].min(), of_runs["target_macs_ratio"].max()
    hosts = [host for host in ordered_hosts(runs) if host in set(of_runs["pruner"])]
    for (host, ratio), group in of_runs.groupby(CELL):
        style, filled = host_style(host), ratio == smallest
        style["mfc"] = style["color"] if filled else "white"
        text = host_name(host) if filled else None
        left.plot(group["excess"], group["damage"], ls="none", ms=5, label=text, **style)
    for kind, colour, marker in (("heads", BLACK, "^"), ("neurons", PALETTE[7], "o")):
        group = of_sites[of_sites["kind"] == kind]
        style = {"color": colour, "ms": 3.2, "alpha": 0.55, "mew": 0, "label": f"site of {kind}"}
        right.plot(group["excess"], group["residual"], marker, **style)
    note = "" if smallest == largest else f"\nfilled: {smallest:g} of the MACs, open: more"
    left.set_title("runs", loc="left")
    left.set_ylabel("loss increase over the dense model\ntrained on (nats)")
    _say(left, f"partial rank correlation {number(damage_correlation(runs))}{note}")
    right.set_title("sites", loc="left")
    right.set_ylabel("residual of the site's block")
    right.set_yscale("log")
    _plain_ticks(right.yaxis, of_sites["residual"], "{:g}")
    _say(right, f"partial rank correlation {number(site_correlation(sites))}")
    for axes, table in ((left, of_runs), (right, of_sites)):
        axes.axvline(1, color=GREY, lw=0.9, zorder=0)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, [1.0, *table["excess"]], "×{:g}")
        axes.set_xlabel("excess burden of survivors")
        axes.grid()
    order = [*map(host_name, hosts), "site of heads", "site of neurons"]
    shared_legend(figure, (left, right), order, columns=6)
    return figure


def _plain_ticks(axis: Axis, values: Iterable[float], text: str) -> None:
    """A handful of round numbers on a logarithmic axis."""
    values = list(values)
    low, high = min(values), max(values)
    # Narrow: a logarithm is nearly straight there, and evenly spaced numbers keep apart.
    ticks = [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    for steps in ((1, 2, 5), (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        round_ones = [
            s * 10.0**e for e in range(-6, 7) for s in steps if low <= s * 10.0**e <= high
        ]
        if len(round_ones) >= 4:
            ticks = round_ones[:: 1 + len(round_ones) // 8]
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text.format(value)))


def _say(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="right", fontsize=8, fontweight="normal", color="#333333")
