"""Accuracy against what it costs: multiply-adds, time here, time as measured elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape

from app import text as page_text
from app import text_models as text
from app.amounts import count, milliseconds, percent
from app.benches import Bench, Setting
from app.latency import Latency
from app.plot import Mark, Scale, key, linear, plot
from app.records import Record
from app.speeds import speeds
from app.styles import Styles, host_words, mitigation_words

SAME_PLACE = 0.01
"""Costs closer than this share of the largest stand on one place."""
LANES_PX = (0, -6, 3, -3, 6)
"""Models of one place take these by turns, from the least accurate up, so that those of nearly the
same accuracy stand apart."""
Cost = tuple[float, tuple[float, float] | None, str]
"""A cost, the interval it may lie in, and its words."""


def against_macs(records: Sequence[Record]) -> str:
    """Accuracy against multiply-adds."""
    costs: dict[str, Cost] = {
        r.id: (r.variant.macs, None, f"{count(r.variant.macs)} MACs") for r in records
    }
    return _panel(records, costs, text.AGAINST_MACS, text.MACS_AXIS, count, apart=True)


def against_time(records: Sequence[Record], found: Mapping[str, Latency]) -> str:
    """Accuracy against time as measured here, and where fewer MACs did not become less time."""
    if not found:
        return f'<p class="nb-note">{escape(text.NOT_MEASURED)}</p>'
    costs = {name: _time(one.ms.median, one.ms.low, one.ms.high) for name, one in found.items()}
    provider = next(iter(found.values())).provider
    measured = text.MEASURED.format(
        runs=len(next(iter(found.values())).times_ms),
        provider=page_text.PROVIDERS.get(provider, provider),
    )
    drawn = _panel(records, costs, text.AGAINST_TIME, text.TIME_AXIS, "{:g}".format)
    return (
        drawn
        + f'<p class="nb-note">{escape(measured)}</p>'
        + speeds([record.info for record in records], found)
    )


def against_time_there(records: Sequence[Record], bench: Bench, setting: Setting) -> str:
    """Accuracy against time as a bench file has it."""
    costs = {
        name: _time(one.ms, one.low_ms, one.high_ms) for name, one in bench.timings[setting].items()
    }
    if not any(record.id in costs for record in records):
        return f'<p class="nb-note">{escape(text.NOT_THERE)}</p>'
    axis = text.TIME_AXIS if setting.batch == 1 else text.BATCH_AXIS.format(batch=setting.batch)
    there = text.THERE.format(device=bench.device, setting=setting_words(bench, setting))
    drawn = _panel(records, costs, text.AGAINST_TIME_THERE, axis, "{:g}".format)
    command = f"<code>{escape(bench.command)}</code>"
    return f'{drawn}<p class="nb-note">{escape(there)} {command}</p>'


def setting_words(bench: Bench, setting: Setting) -> str:
    """How photos were run; the place they lay in where the bench knows more than one."""
    several = len({other.place for other in bench.timings}) > 1
    one = setting.batch == 1
    return text.SETTING_WORDS.format(
        photos=text.ONE_PHOTO if one else text.PHOTOS.format(batch=setting.batch),
        place=text.PLACES.get(setting.place, setting.place) if several else "",
        precision=setting.precision,
        contender=bench.contenders.get(setting.contender, setting.contender),
    )


def _time(ms: float, low: float, high: float) -> Cost:
    words = text.COST_TIME.format(
        ms=milliseconds(ms), low=milliseconds(low), high=milliseconds(high)
    )
    return ms, (low, high), words


def _panel(
    records: Sequence[Record],
    costs: Mapping[str, Cost],
    title: str,
    axis: str,
    words: Callable[[float], str],
    *,
    apart: bool = False,
) -> str:
    styles = Styles(records)
    drawn = [r for r in records if r.id in costs and r.top1 is not None]
    if not drawn:
        return f'<p class="nb-note">{escape(text.NO_ACCURACY)}</p>'
    marks = [_mark(r, costs[r.id], styles) for r in drawn]
    marks = _side_by_side(marks) if apart else marks
    ends = [end for mark in marks for end in (mark.x_range or (mark.x,))]
    tops = [end for mark in marks for end in (mark.y_range or (mark.y,))]
    x: Scale = linear(axis, ends, words, zero=True)
    y: Scale = linear(text.ACCURACY_AXIS, tops, _percent)
    alt = text.TRADE_ALT.format(what=axis, values="; ".join(mark.words for mark in marks))
    body = plot(x, y, alt=alt, marks=marks) + key(_key(drawn, styles))
    if any(mark.shift for mark in marks):
        body += f'<p class="nb-note">{escape(text.SIDE_BY_SIDE.format(px=max(LANES_PX)))}</p>'
    return f"<h3>{escape(title)}</h3>{body}"


def _key(drawn: Sequence[Record], styles: Styles) -> list[tuple[str, str]]:
    """What the shapes and colours that are drawn mean."""
    pruned = [record.variant for record in drawn if record.variant.base is not None]
    told = {host_words(variant.pruner) for variant in pruned}
    told |= {mitigation_words(variant.mitigation) for variant in pruned}
    told |= {text.DENSE} if len(pruned) < len(drawn) else set()
    return [(style, words) for style, words in styles.key() if words in told]


def _side_by_side(marks: Sequence[Mark]) -> list[Mark]:
    """Those of equal cost, as their intervals would hide each other."""
    near = SAME_PLACE * max(mark.x for mark in marks)
    shifted: dict[int, Mark] = {}
    met: list[float] = []
    for k in sorted(range(len(marks)), key=lambda k: marks[k].y):
        lower = sum(abs(marks[k].x - x) < near for x in met)
        met.append(marks[k].x)
        shifted[k] = replace(marks[k], shift=LANES_PX[lower % len(LANES_PX)])
    return [shifted[k] for k in range(len(marks))]


def _percent(share: float) -> str:
    return percent(share, 0 if abs(share * 100 - round(share * 100)) < 1e-6 else 1)


def _mark(record: Record, cost: Cost, styles: Styles) -> Mark:
    x, x_range, words = cost
    assert record.top1 is not None
    low, high = record.top1_range or (record.top1, record.top1)
    return Mark(
        x=x,
        y=record.top1,
        x_range=x_range,
        y_range=record.top1_range,
        style=styles.of(record),
        words=text.TRADE_MARK.format(
            title=record.info.title,
            top1=percent(record.top1),
            low=percent(low),
            high=percent(high),
            cost=words,
        ),
    )
