"""The answer in a few lines beside the photo: what each model says, and where it carries most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from app import text
from app.amounts import amount, percent
from app.burden import BurdenMaps
from app.layer_maps import shown_values
from app.service import Prediction, VariantInfo
from app.sites import quantity_words, site_words


def in_short(
    infos: Sequence[VariantInfo],
    predictions: Mapping[str, Prediction] | None,
    burdens: Mapping[str, BurdenMaps] | None,
    *,
    before: bool,
) -> str:
    """Lines for every model, as many while they are being computed as after.

    Args:
        infos: The models.
        predictions: By variant; None while they are computed.
        burdens: By variant; None while they are measured.
        before: The dense model is run, cut live.
    """
    items = []
    for info in infos:
        lines = [_says(info, (predictions or {}).get(info.id))]
        if info.base is not None:
            lines.append(_carries((burdens or {}).get(info.id), before=before))
        told = "".join(f'<span title="{line}">{line or "&nbsp;"}</span>' for line in lines)
        title = escape(info.title)
        items.append(f'<li><b title="{title}">{title}</b>{told}</li>')
    return (
        f'<section class="nb-short" aria-label="{escape(text.SHORT)}"><p>{escape(text.SHORT)}</p>'
        f"<ul>{''.join(items)}</ul></section>"
    )


def _says(info: VariantInfo, cell: Prediction | None) -> str:
    if cell is None:
        return ""
    own, base = cell.top[0].class_name, cell.base_class
    other = info.base is not None and base is not None and base != own
    words = text.SHORT_OTHER if other else text.SHORT_SAYS
    return escape(words.format(own=own, prob=percent(cell.top[0].prob, 0), base=base))


def _carries(cell: BurdenMaps | None, *, before: bool) -> str:
    if cell is None:
        return ""
    values = [
        (value, site)
        for value, site in zip(shown_values(cell, before=before), cell.site_names, strict=True)
        if value is not None
    ]
    if not values:
        return ""
    most, site = max(values)
    return escape(
        text.SHORT_MOST.format(
            quantity=quantity_words(cell.quantity),
            site=site_words(site),
            value=amount(most, cell.quantity),
        )
    )
