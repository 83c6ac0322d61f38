"""Latencies -> what fewer MACs became in time, in a sentence for each pruned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from app import text_models as text
from app.amounts import percent
from app.latency import Latency
from app.service import VariantInfo


def speeds(infos: Sequence[VariantInfo], found: Mapping[str, Latency]) -> str:
    """A sentence for every pruned model whose dense base was timed too, the disappointing ones
    first."""
    slow: list[str] = []
    fast: list[str] = []
    short = False
    for info in infos:
        if info.base is None or info.id not in found or info.base not in found:
            continue
        time = found[info.id].relative_to(found[info.base])
        short |= time.median > info.macs_ratio
        faster = time.high < 1
        words = (text.FASTER if faster else text.NOT_FASTER).format(
            title=info.title,
            macs=percent(info.macs_ratio, 0),
            time=percent(time.median, 0),
            low=percent(time.low, 0),
            high=percent(time.high, 0),
        )
        mark = "" if faster else ' class="nb-alarm"'
        (fast if faster else slow).append(f"<li{mark}>{escape(words)}</li>")
    why = f'<p class="nb-note">{escape(text.LESS_THAN_PROMISED)}</p>' if short else ""
    return f'<ul class="nb-speeds">{"".join(slow + fast)}</ul>{why}'


def waiting(infos: Sequence[VariantInfo]) -> str:
    """As high as `speeds`, while the models are being timed."""
    unknown = percent(0.5, 0)
    lines = "".join(
        "<li>"
        + escape(
            text.FASTER.format(title=info.title, macs=unknown, time=unknown, low=unknown, high="")
        )
        + "</li>"
        for info in infos
        if info.base in [other.id for other in infos]
    )
    why = f'<p class="nb-note">{escape(text.LESS_THAN_PROMISED)}</p>' if lines else ""
    body = f'<ul class="nb-speeds">{lines}</ul>{why}'
    return f'<div class="nb-unseen" aria-hidden="true">{body}</div>'
