"""Loads of every layer over a training, attention and MLP apart, above the MACs that were left."""

from __future__ import annotations

from html import escape

import numpy as np

from app import text_models as text
from app.amounts import percent
from app.plot import Line, Scale, Slice, linear, logarithmic, plot
from app.records import Record
from app.sites import layer_and_kind
from app.timeline import Timeline

LEAST = 1e-4
"""Loads are drawn no lower, as a logarithm has no zero."""


def load_history(record: Record, timeline: Timeline, *, per_unit: bool) -> str:
    """The three plots of one model.

    Args:
        record: The model.
        timeline: Its training.
        per_unit: Loads of one surviving unit, where the record tells how many there were.
    """
    loads = timeline.unit_loads() if per_unit else timeline.loads
    note = ""
    if loads is None:
        loads, note = timeline.loads, f'<p class="nb-note">{escape(text.TIMELINE_NO_UNITS)}</p>'
        per_unit = False
    x = _epochs(timeline)
    parts = [
        _sites(record, timeline, loads, kind, x, per_unit=per_unit) for kind in text.TIMELINE_SITES
    ]
    return f'{note}<div class="nb-histories">{"".join(parts)}</div>'


def _sites(
    record: Record, timeline: Timeline, loads: np.ndarray, kind: str, x: Scale, *, per_unit: bool
) -> str:
    sites = [
        (layer_and_kind(site.name)[0], loads[:, k])
        for k, site in enumerate(record.variant.sites)
        if layer_and_kind(site.name)[1] == kind
    ]
    last = sites[-1][0]
    values = np.maximum(np.concatenate([series for _, series in sites]), LEAST)
    y = logarithmic(text.TIMELINE_AXIS, values.tolist(), "{:g}".format)
    lines = [
        Line(
            points=list(zip(timeline.epochs, np.maximum(series, LEAST).tolist(), strict=True)),
            style="nb-ramp",
            share=(layer - 1) / max(1, last - 1),
        )
        for layer, series in sites
    ]
    slices = [
        Slice(
            x=epoch,
            words=[
                text.TIMELINE_SLICE.format(epoch=f"{epoch:.3g}", ratio=percent(ratio, 0)),
                *(
                    text.TIMELINE_VALUE.format(layer=layer, value=_number(series[k]))
                    for layer, series in sites
                ),
            ],
        )
        for k, (epoch, ratio) in enumerate(zip(timeline.epochs, timeline.macs_ratios, strict=True))
    ]
    changes = ", ".join(
        text.TIMELINE_CHANGE.format(layer=layer, first=_number(series[0]), last=_number(series[-1]))
        for layer, series in sites
    )
    alt = text.TIMELINE_ALT.format(
        what=text.PER_UNIT if per_unit else text.PER_SITE,
        kind=text.TIMELINE_SITES[kind],
        title=record.info.title,
        epochs=f"{timeline.epochs[-1]:g}",
        values=changes,
    )
    ramp = (
        f'<p class="nb-ramp-key"><span>{escape(text.FIRST_LAYER)}</span><i></i>'
        f"<span>{escape(text.LAST_LAYER.format(layer=last))}</span></p>"
    )
    return (
        f"<div><h3>{escape(text.TIMELINE_SITES[kind])}</h3>{ramp}"
        f"{plot(x, y, alt=alt, lines=lines, slices=slices, kind='nb-tall')}"
        f"{_budget(record, timeline, x)}</div>"
    )


def _budget(record: Record, timeline: Timeline, x: Scale) -> str:
    """MACs left, below and on the same epochs."""
    ratios = timeline.macs_ratios
    y = Scale(
        title=text.RATIO_AXIS, low=0.0, high=1.08, ticks=((0.0, "0"), (0.5, "50 %"), (1.0, "100 %"))
    )
    alt = text.RATIO_ALT.format(
        title=record.info.title, first=percent(ratios[0], 0), last=percent(ratios[-1], 0)
    )
    points = list(zip(timeline.epochs, ratios, strict=True))
    slices = [
        Slice(
            x=epoch,
            words=[text.TIMELINE_SLICE.format(epoch=f"{epoch:.3g}", ratio=percent(ratio, 0))],
        )
        for epoch, ratio in points
    ]
    line = Line(points=points, style="nb-c0")
    return plot(x, y, alt=alt, lines=[line], slices=slices, kind="nb-low")


def _epochs(timeline: Timeline) -> Scale:
    found = linear(text.EPOCH_AXIS, timeline.epochs, "{:g}".format)
    room = 0.01 * (timeline.epochs[-1] - timeline.epochs[0]) or 0.5
    return Scale(
        title=found.title,
        low=timeline.epochs[0] - room,
        high=timeline.epochs[-1] + room,
        ticks=tuple(
            (value, words)
            for value, words in found.ticks
            if timeline.epochs[0] <= value <= timeline.epochs[-1] and value == int(value)
        ),
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"
