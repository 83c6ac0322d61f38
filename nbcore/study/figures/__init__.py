"""Figures of a study, drawn from its tables alone; the same tables give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from nbcore.study.claims import best_mitigation, mitigations_of
from nbcore.study.figures.accuracy import draw_accuracy
from nbcore.study.figures.burden import draw_burden
from nbcore.study.figures.forest import draw_recovered, draw_relief
from nbcore.study.figures.load import draw_load
from nbcore.study.figures.style import STYLE, save_png
from nbcore.study.grid import TWIN, WEIGHTS, StudyConfig
from nbcore.study.statistics import gains

Frames = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def draw_figures(study: StudyConfig, frames: Frames, folder: Path) -> dict[str, str]:
    """Draw what the tables allow.

    Returns:
        Captions by file name, in the order of the report.
    """
    runs, sites, history = frames
    best = best_mitigation(study, runs)
    dots = _dots(study, runs)
    twin = ", the small twin the open squares" if (runs["pruner"] == TWIN).any() else ""
    on_top = (
        " Merging makes models of `weights` cheaper, not those of other hosts."
        if (runs["pruner"] == WEIGHTS).any()
        else ""
    )
    own_axis = " The axis of `weights` is its own." if on_top else ""
    drawings: dict[str, tuple[Callable[[], Figure | None], str]] = {
        "accuracy.png": (
            lambda: draw_accuracy(study, runs, best),
            "Test accuracy against cost for each host; the dense model that arms fork from is the "
            f"dotted line, trained on as long as they the dashed one{twin}. Means and 95 % "
            "intervals over seeds.",
        ),
        "recovered.png": (
            lambda: draw_recovered(study, runs),
            "Share of the pruning loss that each mitigation brings back: 0 nothing, 100 % the "
            f"accuracy of the dense model trained on. {dots}, with Fieller's 95 % "
            "interval where one exists. A triangle at the edge stands for a dot, or "
            f"for the end of an interval, that lies beyond it.{on_top}{own_axis}",
        ),
        "difference_in_differences.png": (
            lambda: draw_relief(study, runs),
            "What a mitigation M adds to pruned models beyond what it adds to the dense one, in "
            "points of top-1. Right of zero it relieves pruning; at zero it helps or harms every "
            f"model alike. {dots}, with 95 % intervals.{on_top}",
        ),
        "burden.png": (
            lambda: draw_burden(runs, sites),
            "Excess burden (B / B₀ over the ratio of the dense model trained on) of unmitigated "
            "arms against damage: loss increase of a run, and residual of a site's block.",
        ),
        "load.png": (
            lambda: draw_load(study, runs, history, best),
            "Load of a surviving unit during training to the smallest budget, against that of a "
            "unit of the dense model trained on at the same step: mean over sites and seeds, with "
            "the range of seeds. Survivors are selected, so this alone shows no compensation; "
            "burden does.",
        ),
    }
    captions = {}
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        for name, (draw, caption) in drawings.items():
            figure = draw()
            if figure is None:
                (folder / name).unlink(missing_ok=True)
                continue
            save_png(figure, folder / name, dpi=200)
            captions[name] = caption
    return captions


def _dots(study: StudyConfig, runs: pd.DataFrame) -> str:
    """What the marks of a forest stand for."""
    lacking = any(gains(runs, m).isna().to_numpy().any() for m in mitigations_of(study, runs))
    return (
        "Small: hosts; black: all hosts together"
        + (" but those that lack seeds" if lacking else "")
        + (
            "; under `weights`, its budgets and their mean"
            if WEIGHTS in set(runs["pruner"])
            else ""
        )
    )
