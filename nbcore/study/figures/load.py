"""How loads rise as units go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbcore.study.figures.style import (
    GREY,
    host_name,
    host_style,
    main_mitigations,
    ordered_hosts,
    spoken,
)
from nbcore.study.grid import DENSE_PLUS, WEIGHTS, StudyConfig


def draw_load(
    study: StudyConfig, runs: pd.DataFrame, history: pd.DataFrame, best: str | None
) -> Figure | None:
    """Loads of heads and neurons over training: by host above, by mitigation below."""
    hosts = [h for h in ordered_hosts(runs) if h != WEIGHTS]
    if not hosts or history.empty:
        return None
    smallest = runs.loc[runs["pruner"].isin(hosts), "target_macs_ratio"].min()
    host = hosts[0]
    main = main_mitigations(study, runs, best)
    series: list[list[tuple[str, str, float, str, dict[str, Any]]]] = [
        [(host_name(h), h, smallest, "none", {"color": host_style(h)["color"]}) for h in hosts],
        [(spoken(m), host, smallest, m, {"color": s["color"]}) for m, s in main.items()],
    ]
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, squeeze=False)
    dense = ("dense, trained on", DENSE_PLUS, 1.0, "none", {"color": GREY, "ls": "--"})
    for row, (lines, title) in enumerate(
        zip(series, ("without mitigation", f"host {host_name(host)}"), strict=True)
    ):
        for column, kind in enumerate(("heads", "neurons")):
            axes = panels[row][column]
            for label, pruner, ratio, mitigation, style in (dense, *lines):
                _load_line(axes, history, (pruner, ratio, mitigation), f"load_{kind}", style, label)
            axes.set_title(f"{kind}, {title}", loc="left")
            axes.grid(axis="y")
            axes.set_ylim(bottom=0)
            if column == 0:
                axes.set_ylabel("load (contribution / stream)")
            if row:
                axes.set_xlabel("optimiser step")
        panels[row][1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def _load_line(
    axes: Axes,
    history: pd.DataFrame,
    arm: tuple[str, float, str],
    column: str,
    style: Mapping[str, Any],
    label: str,
) -> None:
    pruner, ratio, mitigation = arm
    own = history[
        (history["pruner"] == pruner)
        & (history["target_macs_ratio"] == ratio)
        & (history["mitigation"] == mitigation)
    ]
    if own.empty:
        return
    by_step = own.groupby("step")[column].agg(["mean", "min", "max"])
    axes.plot(by_step.index, by_step["mean"], label=label, **style)
    axes.fill_between(
        by_step.index, by_step["min"], by_step["max"], color=style["color"], alpha=0.12, lw=0
    )
