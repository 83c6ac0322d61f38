"""How all figures look: colours, markers, names, legends.

Colours are Okabe and Ito's, which people with any colour vision tell apart; every series also has
a marker of its own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nbcore.study.claims import mitigations_of
from nbcore.study.grid import WEIGHTS, StudyConfig
from nbcore.study.statistics import (
    pruned_runs,
)

BLACK, GREY, FAINT = "#222222", "#777777", "#C8C8C8"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#7A5195")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HOSTS = ("taylor", "s2vite", "magnitude", "movement", "wdpruning", "vit_slim", WEIGHTS, "random")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.dpi": 200,
}


def spoken(name: str) -> str:
    """A name of the tables as people write it."""
    return name.replace("_", " ").replace("+", " + ")


def host_name(host: str) -> str:
    """A host as its authors write it."""
    return {"s2vite": "S²ViTE", "wdpruning": "WDPruning", "vit_slim": "ViT-Slim"}.get(host, host)


def host_style(host: str) -> dict[str, Any]:
    position = HOSTS.index(host) if host in HOSTS else len(HOSTS) - 1
    colour = GREY if host == "random" else PALETTE[position]
    return {"color": colour, "marker": MARKERS[position]}


def ordered_hosts(runs: pd.DataFrame) -> list[str]:
    """Hosts that were run: those known first, in their fixed order."""
    present = list(dict.fromkeys(pruned_runs(runs)["pruner"]))
    return [h for h in HOSTS if h in present] + [h for h in present if h not in HOSTS]


def main_mitigations(
    study: StudyConfig, runs: pd.DataFrame, best: str | None
) -> dict[str, dict[str, Any]]:
    """What the eye is led to: none, the published pair, the best and distillation."""
    present = ["none", *mitigations_of(study, runs)]
    wanted = ["none", "token_merging", "published", "handoff", "distillation", best]
    if len(present) <= len(wanted):
        wanted = [*wanted, *present]
    names = [name for name in dict.fromkeys(wanted) if name in present]
    styles = {"none": {"color": BLACK, "marker": "o"}}
    colours = {
        "token_merging": PALETTE[5],
        "published": PALETTE[1],
        "handoff": PALETTE[4],
        "distillation": PALETTE[2],
    }
    spare = iter((PALETTE[0], PALETTE[3], PALETTE[6], PALETTE[7], *PALETTE))
    for position, name in enumerate(names[1:], start=1):
        colour = colours.get(name) or next(spare)
        styles[name] = {"color": colour, "marker": MARKERS[position % len(MARKERS)]}
    return {name: styles[name] for name in names}


def shared_legend(
    figure: Figure, panels: Sequence[Axes], order: Sequence[str], *, columns: int
) -> None:
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    labels = [text for text in order if text in handles]
    figure.legend(
        [handles[text] for text in labels],
        labels,
        loc="outside lower center",
        ncols=min(columns, len(labels)),
        handletextpad=0.5,
        columnspacing=1.4,
    )


def save_png(figure: Figure, path: Path, dpi: int) -> None:
    """Write a figure in 256 colours, which a drawing does not miss and which make a third of the
    bytes; without the library's version, on which the bytes would depend.

    Args:
        figure: What to write.
        path: File to write.
        dpi: Pixels per inch.
    """
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(drawn, dpi=dpi, format="png")
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(path, format="PNG", optimize=True)
