"""Which heads and how many neurons each layer kept, as one small picture a model."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app import text_models as text
from app.records import Record
from app.sites import layer_and_kind
from nbcore.checkpoint import SiteEntry


def kept_units(records: Sequence[Record]) -> str:
    """One panel for each model, layers from top to bottom."""
    panels = "".join(_panel(record) for record in records)
    return f'<div class="nb-kept">{panels}</div>'


def _panel(record: Record) -> str:
    layers: dict[int, dict[str, SiteEntry]] = {}
    for site in record.variant.sites:
        layers.setdefault(layer_and_kind(site.name)[0], {})[site.kind] = site
    merge = record.variant.merge
    rows = "".join(
        _row(layer, sites, merged=merge is not None and merge.block + 1 == layer)
        for layer, sites in layers.items()
    )
    said = text.KEPT_ALT.format(
        title=record.info.title,
        layers="; ".join(_words(layer, sites) for layer, sites in layers.items()),
    )
    return (
        f'<figure data-variant="{escape(record.id)}"><figcaption>{escape(record.info.title)}'
        f'</figcaption><div role="img" aria-label="{escape(said)}">{rows}</div></figure>'
    )


def _row(layer: int, sites: dict[str, SiteEntry], *, merged: bool) -> str:
    heads, neurons = sites["heads"], sites["neurons"]
    squares = "".join(
        f'<i class="{"nb-full" if k in heads.kept else "nb-gone"}"></i>' for k in range(heads.total)
    )
    share = len(neurons.kept) / neurons.total
    return (
        f'<div class="nb-kept-row{" nb-merged" if merged else ""}" '
        f'title="{escape(_words(layer, sites))}"><span>{layer}</span>'
        f'<span class="nb-heads">{squares}</span>'
        f'<span class="nb-bar" style="--p:{share:.4f}"></span><small>{len(neurons.kept)}</small>'
        "</div>"
    )


def _words(layer: int, sites: dict[str, SiteEntry]) -> str:
    heads, neurons = sites["heads"], sites["neurons"]
    return text.KEPT_LAYER.format(
        layer=layer,
        heads=len(heads.kept),
        num_heads=heads.total,
        neurons=len(neurons.kept),
        num_neurons=neurons.total,
    )
