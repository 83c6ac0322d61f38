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
from app.styles import Styles

SAME_PLACE = 0.01
"""Costs closer than this share of the largest stand on one place."""
APART_PX = 8
Cost = tuple[float, tuple[float, float] | None, str]
"""A cost, the interval it may lie in, and its words."""


def against_macs(records: Sequence[Record]) -> str:
    """Accuracy against multiply-adds."""
    costs: dict[str, Cost] = {
        r.id: (r.variant.macs, None, f"{count(r.variant.macs)} MACs") for r in records
    }
    return _panel(records, costs, text.AGAINST_MACS, text.MACS_AXIS, count)


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
    axis = text.TIME_AXIS if setting.batch == 1 else text.BATCH_AXIS.format(batch=setting.batch)
    there = text.THERE.format(
        device=bench.device,
        contender=bench.contenders.get(setting.contender, setting.contender),
        precision=setting.precision,
        command=bench.command,
    )
    drawn = _panel(records, costs, text.AGAINST_TIME_THERE, axis, "{:g}".format)
    return drawn + f'<p class="nb-note">{escape(there)}</p>'


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
) -> str:
    styles = Styles(records)
    marks = _apart(
        [_mark(r, costs[r.id], styles) for r in records if r.id in costs and r.top1 is not None]
    )
    if not marks:
        return f'<p class="nb-note">{escape(text.NOT_MEASURED)}</p>'
    ends = [end for mark in marks for end in (mark.x_range or (mark.x,))]
    tops = [end for mark in marks for end in (mark.y_range or (mark.y,))]
    x: Scale = linear(axis, ends, words, zero=True)
    y: Scale = linear(text.ACCURACY_AXIS, tops, _percent)
    alt = text.TRADE_ALT.format(what=axis, values="; ".join(mark.words for mark in marks))
    return f"<h3>{escape(title)}</h3>" + plot(x, y, alt=alt, marks=marks) + key(styles.key())


def _apart(marks: Sequence[Mark]) -> list[Mark]:
    """Those of equal cost side by side, as their intervals would hide each other."""
    widest = max((mark.x for mark in marks), default=0.0)
    met: list[float] = []
    shifted = []
    for mark in marks:
        equal = sum(abs(mark.x - x) < SAME_PLACE * widest for x in met)
        met.append(mark.x)
        # 0, then to the left and to the right by turns.
        steps = (equal + 1) // 2 * (-1 if equal % 2 else 1)
        shifted.append(replace(mark, shift=steps * APART_PX))
    return shifted


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
