"""How loads rise as units go."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

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
    """Load of a surviving unit over training, against that of a unit of the dense model trained on
    at the same step: by host above, by mitigation below."""
    hosts = [h for h in ordered_hosts(runs) if h != WEIGHTS]
    dense = _of_arm(history, (DENSE_PLUS, 1.0, "none"))
    if not hosts or dense["unit_load_heads"].isna().all():
        return None
    smallest = runs.loc[runs["pruner"].isin(hosts), "target_macs_ratio"].min()
    host = hosts[0]
    main = main_mitigations(study, runs, best)
    rows: dict[str, list[tuple[str, tuple[str, float, str], str]]] = {
        "without mitigation": [
            (host_name(h), (h, smallest, "none"), host_style(h)["color"]) for h in hosts
        ],
        f"host {host_name(host)}": [
            (spoken(m), (host, smallest, m), style["color"]) for m, style in main.items()
        ],
    }
    figure = Figure(figsize=(8.6, 5.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, squeeze=False)
    for row, (title, lines) in enumerate(rows.items()):
        for column, kind in enumerate(("heads", "neurons")):
            axes = panels[row][column]
            axes.axhline(1, color=GREY, ls="--", lw=1, label="dense, trained on")
            for label, arm, colour in lines:
                own = _of_arm(history, arm)
                _load_line(axes, own, dense, f"unit_load_{kind}", colour, label)
            axes.set_title(f"{kind}, {title}", loc="left")
            axes.grid(axis="y")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
            if column == 0:
                axes.set_ylabel("load per surviving unit")
            if row:
                axes.set_xlabel("optimiser step")
        panels[row][1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def _of_arm(history: pd.DataFrame, arm: tuple[str, float, str]) -> pd.DataFrame:
    pruner, ratio, mitigation = arm
    return history[
        (history["pruner"] == pruner)
        & (history["target_macs_ratio"] == ratio)
        & (history["mitigation"] == mitigation)
    ]


def _load_line(
    axes: Axes, own: pd.DataFrame, dense: pd.DataFrame, column: str, colour: str, label: str
) -> None:
    """Mean over seeds of the ratio at every step, and the range of seeds."""
    both = own.merge(dense, on=["seed", "step"], suffixes=("", "_dense"))
    if both.empty:
        return
    ratio = both[column] / both[f"{column}_dense"]
    by_step = ratio.groupby(both["step"]).agg(["mean", "min", "max"])
    axes.plot(by_step.index, by_step["mean"], label=label, color=colour)
    axes.fill_between(by_step.index, by_step["min"], by_step["max"], color=colour, alpha=0.12, lw=0)
