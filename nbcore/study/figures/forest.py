"""Recovered shares and differences in differences: rows of mitigations, dots of hosts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbcore.study.claims import mitigations_of
from nbcore.study.figures.style import (
    BLACK,
    GREY,
    HOSTS,
    host_name,
    host_style,
    shared_legend,
    spoken,
)
from nbcore.study.grid import WEIGHTS, StudyConfig
from nbcore.study.statistics import (
    Estimate,
    complete_part,
    differences_in_differences,
    gains,
    mean_over_seeds,
    overall,
    pruning_loss,
    ratio_of_means,
    recovered,
)

Cell = tuple[str, float]
SHARES, WIDEST = (-75, 175), (-250, 400)
"""Per cent that the axis of recovered shares shows, and how far single dots may widen it: where
pruning costs next to nothing, shares have no bound."""


def draw_recovered(study: StudyConfig, runs: pd.DataFrame) -> Figure | None:
    """Forest of recovered shares, one panel a budget."""
    names = mitigations_of(study, runs)
    lost = pruning_loss(runs)

    def together(name: str, cells: list[Cell]) -> Estimate:
        both = complete_part(gains(runs, name)[cells])
        base = lost.reindex(index=both.index)[list(both.columns)].dropna()
        both = both.loc[base.index]
        return ratio_of_means(both.mean(axis=1), base.mean(axis=1))

    per_cell = {name: recovered(runs, name) for name in names}
    return _forest(
        per_cell,
        together,
        "recovered share\nof the pruning loss (%)",
        marks=(0, 50, 100),
        limits=_share_limits,
    )


def _share_limits(means: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows these shares."""
    within = [0.0, *(mean for mean in means if WIDEST[0] <= mean <= WIDEST[1])]
    # Ten beyond the last dot, or it would be cut in half.
    low, high = (min(within) - 10) / 25, (max(within) + 10) / 25
    return min(SHARES[0], 25 * math.floor(low)), max(SHARES[1], 25 * math.ceil(high))


def draw_relief(study: StudyConfig, runs: pd.DataFrame) -> Figure | None:
    """Forest of differences in differences, one panel a budget."""
    tables = {name: differences_in_differences(runs, name) for name in mitigations_of(study, runs)}
    per_cell = {
        name: {cell: mean_over_seeds(table[cell].dropna()) for cell in table.columns}
        for name, table in tables.items()
    }
    return _forest(
        per_cell,
        lambda name, cells: overall(tables[name][cells]),
        "(pruned + M − pruned)\n− (dense + M − dense), points",
        marks=(0,),
        limits=None,
    )


def _forest(
    per_cell: Mapping[str, Mapping[Cell, Estimate]],
    together: Callable[[str, list[Cell]], Estimate],
    label: str,
    *,
    marks: Sequence[float],
    limits: Callable[[Sequence[float]], tuple[float, float]] | None,
) -> Figure | None:
    """Rows of mitigations, a diamond for all hosts and a dot for each; one panel a budget, and one
    for the host `weights`. `limits` gives the ends of an axis that shows some means, so that
    `weights`, whose shares can be far away, has its own; without, all panels share one axis."""
    cells = list(dict.fromkeys(cell for found in per_cell.values() for cell in found))
    panels: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell[0] == WEIGHTS, -cell[1])):
        title = "host weights" if cell[0] == WEIGHTS else f"{100 * cell[1]:g} % of MACs"
        panels.setdefault(title, []).append(cell)
    if not panels:
        return None
    names = list(per_cell)
    # Inches that the longest name takes: panels keep their width beside it.
    margin = max(2.6, 0.07 * max(len(spoken(name)) for name in names))
    size = (margin + 2.5 * len(panels), 0.6 * len(names) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, sharex=limits is None, squeeze=False)[0]
    order: dict[str, None] = {}
    for axes, (title, own) in zip(all_axes, panels.items(), strict=True):
        styles = _dot_styles(own)
        ends = limits(_means(per_cell, weights=own[0][0] == WEIGHTS)) if limits else None
        if ends:
            axes.set_xlim(*ends)
        for mark in marks:
            axes.axvline(mark, color=GREY, lw=0.9, ls="-" if mark == 0 else ":", zorder=0)
        for row, name in enumerate(names):
            here = [cell for cell in styles if cell in per_cell[name]]
            if row:
                axes.axhline(row - 0.5, color="#E6E6E6", lw=0.8, zorder=0)
            if here:
                _diamond(axes, row - 0.27, together(name, here), ends)
            for position, (cell, (text, style)) in enumerate(styles.items()):
                if cell in here:
                    y = row - 0.1 + position * min(0.15, 0.5 / max(1, len(styles) - 1))
                    mean = 100 * per_cell[name][cell].mean
                    axes.plot(mean, y, ls="none", ms=3.8, label=text, **style)
                    _beyond(axes, mean, y, ends, style["color"])
        order |= dict.fromkeys(text for text, _ in styles.values())
        axes.set_title(title, loc="left")
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    all_axes[0].set_yticks(range(len(names)), [spoken(name) for name in names])
    all_axes[(len(panels) - 1) // 2].set_xlabel(label)
    shared_legend(figure, all_axes, list(order), columns=6)
    return figure


def _means(per_cell: Mapping[str, Mapping[Cell, Estimate]], *, weights: bool) -> list[float]:
    """All dots, in per cent, of the host `weights` or of the others."""
    return [
        100 * estimate.mean
        for found in per_cell.values()
        for cell, estimate in found.items()
        if (cell[0] == WEIGHTS) == weights
    ]


def _dot_styles(cells: Sequence[Cell]) -> dict[Cell, tuple[str, dict[str, Any]]]:
    """Label and style of the dots of one panel, in their order from top to bottom."""
    if cells[0][0] == WEIGHTS:
        return {
            cell: (f"weights, {100 * cell[1]:g} % kept", host_style(WEIGHTS) | {"marker": marker})
            for cell, marker in zip(cells, ("p", "h", "d", "8"), strict=False)
        }
    known = {host: position for position, host in enumerate(HOSTS)}
    ordered = sorted(cells, key=lambda cell: known.get(cell[0], len(known)))
    return {cell: (host_name(cell[0]), host_style(cell[0])) for cell in ordered}


def _diamond(axes: Axes, y: float, estimate: Estimate, limits: tuple[float, float] | None) -> None:
    if not math.isnan(estimate.low):
        axes.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=BLACK, lw=1.6)
    axes.plot(100 * estimate.mean, y, "D", color=BLACK, ms=5.5, mec="white", mew=0.8, zorder=5)
    for value in (estimate.low, estimate.mean, estimate.high):
        _beyond(axes, 100 * value, y, limits, BLACK)


def _beyond(
    axes: Axes, value: float, y: float, limits: tuple[float, float] | None, colour: str
) -> None:
    """A triangle at the edge of the panel for a value that lies beyond it."""
    if limits is None or not (value < limits[0] or value > limits[1]):
        return
    edge, marker = (limits[0], "<") if value < limits[0] else (limits[1], ">")
    axes.plot(edge, y, marker, color=colour, ms=5, mew=0, clip_on=False, zorder=6)
