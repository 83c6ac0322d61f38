"""A serving report as a picture: images per second, and what pruning gains over batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from nbcore.study.figures.style import GREY, MARKERS, PALETTE, STYLE, save_png, shared_legend

LINES = {"host": "-", "device": (0, (4, 2))}


def draw_serve(report: Mapping[str, Any], path: Path) -> None:
    """Write the figure of a report as PNG: a column for each variant and precision.

    Args:
        report: From `bench_serve`.
        path: File to write.
    """
    with rc_context(STYLE):
        figure = _figure(report)
        save_png(figure, path, dpi=160)


def _figure(report: Mapping[str, Any]) -> Figure:
    measured = [cell for cell in report["cells"] if "ms" in cell]
    precisions = list(dict.fromkeys(cell["precision"] for cell in measured))
    variants = [key for key in report["variants"] if any(c["variant"] == key for c in measured)]
    pruned = [
        key for key in variants if any("speedup" in c for c in measured if c["variant"] == key)
    ]
    columns = len(variants) + len(pruned)
    figure = Figure(
        figsize=(2.5 * columns + 0.6, 2.5 * len(precisions) + 0.9), layout="constrained"
    )
    panels = figure.subplots(len(precisions), columns, squeeze=False)
    for row, precision in enumerate(precisions):
        for column, variant in enumerate(variants + pruned):
            axes = panels[row, column]
            cells = [c for c in measured if (c["variant"], c["precision"]) == (variant, precision)]
            gains = column >= len(variants)
            _panel(axes, report, cells, gains=gains)
            of = _name(report["variants"], variant)
            axes.set_title(f"{of}:\ntimes dense" if gains else f"{of},\n{precision}", fontsize=9)
            if column == 0:
                axes.set_ylabel("images per second")
            if not gains:
                speeds = [
                    v for c in measured if c["precision"] == precision for v in c["img_s_iqr"]
                ]
                axes.set_ylim(min(speeds) / 1.3, max(speeds) * 1.3)
            if row == len(precisions) - 1:
                axes.set_xlabel("batch")
    titles = [_title(report, c) for c in measured]
    words = "median and quartiles of runs; times dense: median and range of rounds"
    figure.suptitle(f"{report['device']}: {words}", fontsize=9, color=GREY)
    shared_legend(figure, list(panels.ravel()), list(dict.fromkeys(titles)), columns=3)
    return figure


def _name(variants: Mapping[str, Any], variant: str) -> str:
    """What tells a variant from the others: its budget, or the end of its id where budgets tie."""
    if variants[variant]["base"] is None:
        return "dense"
    ratio = f"{variants[variant]['macs_ratio']:.2f} of MACs"
    alike = [
        v for v in variants.values() if v["base"] and f"{v['macs_ratio']:.2f} of MACs" == ratio
    ]
    if len(alike) == 1:
        return ratio
    own = variant.removeprefix(str(variants[variant]["base"]).removesuffix("dense"))
    return own.replace("_", " ").replace("+", "\n+ ")


def _panel(
    axes: Axes, report: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], *, gains: bool
) -> None:
    order = list(report["contenders"])
    batches = sorted({cell["batch"] for cell in cells})
    for name in order:
        for place, style in LINES.items():
            mine = [c for c in cells if (c["contender"], c["place"]) == (name, place)]
            mine = [c for c in mine if not gains or "speedup" in c]
            if not mine:
                continue
            y = [c["speedup"]["ratio"] if gains else c["img_s"] for c in mine]
            spread = [c["speedup"]["range"] if gains else c["img_s_iqr"] for c in mine]
            errors = [
                [value - low for value, (low, _) in zip(y, spread, strict=True)],
                [high - value for value, (_, high) in zip(y, spread, strict=True)],
            ]
            position = order.index(name) % len(PALETTE)
            axes.errorbar(
                [c["batch"] for c in mine], y, errors, label=_title(report, mine[0]),
                color=PALETTE[position], marker=MARKERS[position], linestyle=style,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
    if gains:
        ideal = next((c["inverse_macs_ratio"] for c in cells if "speedup" in c), 1.0)
        axes.axhline(ideal, color=GREY, linestyle=":", linewidth=1.0)
        axes.annotate(
            " dense MACs / MACs", (0, ideal), xycoords=("axes fraction", "data"), ha="left",
            va="bottom", fontsize=7.5, color=GREY,
        )  # fmt: skip
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.grid(axis="y")


def _title(report: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    title = str(report["contenders"][cell["contender"]])
    return f"{title}, on the device" if cell["place"] == "device" else title
