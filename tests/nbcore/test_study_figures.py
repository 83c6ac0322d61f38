"""Figures of a study: nothing is cut off or left out in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nbcore.study.figures import draw_figures
from nbcore.study.figures.forest import draw_recovered, draw_relief
from nbcore.study.figures.style import STYLE
from nbcore.study.grid import DENSE_PLUS, TWIN, WEIGHTS, Block, StudyConfig, Wave
from nbcore.study.tables import read_frames
from tests.nbcore.study_tables import World, write_tables
from tests.nbcore.tiny_study import tiny_study

MITIGATIONS = ("none", "handoff", "distillation")
LONG = "persistent_dynamic+handoff+burden_quota"


def study(mitigations: tuple[str, ...] = MITIGATIONS, *, twin: bool = False) -> StudyConfig:
    """One budget, so one panel."""
    blocks = (
        Block(hosts=("taylor", "random"), mitigations=mitigations, ratios=(0.3,)),
        Block(hosts=(DENSE_PLUS,), mitigations=mitigations, ratios=(1.0,)),
        *([Block(hosts=(TWIN,), mitigations=("none",), ratios=(0.3,))] if twin else []),
    )
    return tiny_study(waves=(Wave(seeds=(0, 1, 2), blocks=blocks),))


def runs_with(handoff: tuple[float, float, float]) -> pd.DataFrame:
    """Pruning costs 0.1 with every seed; `handoff` brings back these shares on `taylor`, a tenth
    more than half on `random`."""
    rows = []
    for seed, share in enumerate(handoff):
        for pruner, mitigation, ratio, top1 in (
            (DENSE_PLUS, "none", 1.0, 0.9),
            ("taylor", "none", 0.3, 0.8),
            ("taylor", "handoff", 0.3, 0.8 + 0.1 * share),
            ("random", "none", 0.3, 0.8),
            ("random", "handoff", 0.3, 0.86),
        ):
            rows.append((pruner, mitigation, ratio, seed, top1))
    columns = ["pruner", "mitigation", "target_macs_ratio", "seed", "top1"]
    return pd.DataFrame(rows, columns=columns)


def triangles(figure: Figure | None) -> list[tuple[str, float]]:
    """Marker and place of what is drawn at an edge."""
    assert figure is not None
    return [
        (line.get_marker(), float(np.ravel(line.get_xdata())[0]))
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() in ("<", ">")
    ]


def test_a_dot_beyond_the_limits_is_a_triangle_at_the_edge() -> None:
    # taylor -260 %, both hosts -100 % with an interval of no width, random 60 %.
    figure = draw_recovered(study(), runs_with((-2.6, -2.6, -2.6)))
    assert triangles(figure) == [("<", -75)] * 4


def test_dots_not_too_far_away_widen_the_axis() -> None:
    # ten beyond it, and up to a multiple of 25
    for share, limits in (
        (-2.0, (-225, 175)), (-2.18, (-250, 175)), (-0.7, (-100, 175)),
        (2.3, (-75, 250)), (2.43, (-75, 275)), (1.7, (-75, 200)),
    ):  # fmt: skip
        figure = draw_recovered(study(), runs_with((share, share, share)))
        assert triangles(figure) == []
        assert figure is not None
        assert figure.axes[0].get_xlim() == limits


def test_weights_widen_no_axis_but_their_own() -> None:
    single = runs_with((-2.0, -2.0, -2.0)).replace({"pruner": {"taylor": WEIGHTS}})
    other = runs_with((2.3, 2.3, 2.3)).replace({"target_macs_ratio": {0.3: 0.1}})
    runs = pd.concat([single, other[other["pruner"] == "taylor"]])
    figure = draw_recovered(study(), runs)
    assert figure is not None
    titled = {axes.get_title(loc="left"): axes.get_xlim() for axes in figure.axes}
    shared = (-75, 250)
    assert titled == {
        "30 % of MACs": shared, "10 % of MACs": shared, "host weights": (-225, 175)
    }  # fmt: skip
    assert triangles(figure) == []
    figure = draw_relief(study(), runs)
    assert figure is not None
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_an_interval_that_leaves_the_axis_ends_in_a_triangle() -> None:
    # taylor 100 % and 83 % together, but from seed to seed -50 to 250.
    figure = draw_recovered(study(), runs_with((-0.5, 1.0, 2.5)))
    assert triangles(figure) == [("<", -75), (">", 175)]


def test_nothing_within_the_limits_is_a_triangle() -> None:
    assert triangles(draw_recovered(study(), runs_with((0.4, 0.5, 0.6)))) == []


def test_the_label_of_a_single_panel_is_not_cut_off() -> None:
    # The longer the names of mitigations, the narrower the panel.
    runs = runs_with((0.4, 0.5, 0.6)).replace({"mitigation": {"handoff": LONG}})
    with rc_context(STYLE):
        for draw in (draw_recovered, draw_relief):
            figure = draw(study(("none", LONG)), runs)
            assert figure is not None
            assert len(figure.axes) == 1
            FigureCanvasAgg(figure).draw()
            label = figure.axes[0].xaxis.label.get_window_extent()
            (legend,) = figure.legends
            assert figure.bbox.x0 <= label.x0
            assert label.x1 <= figure.bbox.x1
            assert legend.get_window_extent().y1 <= label.y0


@pytest.mark.parametrize("twin", [True, False])
def test_captions_speak_of_what_is_drawn(twin: bool, tmp_path: Path) -> None:
    config = study(twin=twin)
    write_tables(config, World(), tmp_path)
    captions = draw_figures(config, read_frames(tmp_path), tmp_path / "figures")
    assert ("the small twin" in captions["accuracy.png"]) == twin
    assert "A triangle at the edge" in captions["recovered.png"]
    assert "`weights`" not in captions["recovered.png"]
