"""What every layer carries as marks on one axis, the same for all columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

from app import text
from app.amounts import amount
from app.layer_maps import numbers, shown_values
from app.markup import failure, grid, section, term
from app.service import BurdenMaps, VariantInfo
from app.sites import layer_and_kind, quantity_words, site_words

FRACTIONS = {1: "½", 2: "¼", 3: "⅛"}
BLOCK = "block-output"
"""Style of a mark that belongs to a whole layer."""
STILL = 2.1
"""Powers of two on either side that such an axis always shows."""
LEAST = 1 / 64
"""Ratios are drawn no lower than this, as a logarithm has no zero."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Where values stand on the common axis, in percent of its width."""

    low: float
    high: float
    ratio: bool
    """Logarithmic, for ratios to dense; otherwise linear from zero."""

    def place(self, value: float) -> float:
        position = math.log2(max(value, LEAST)) if self.ratio else value
        share = (position - self.low) / (self.high - self.low)
        return 100 * min(max(share, 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Position and words of each tick."""
        if not self.ratio:
            return [(0.0, "0"), (100.0, f"{self.high:.2g}")]
        whole = range(math.ceil(self.low), math.floor(self.high) + 1)
        step = max(1, math.ceil(len(whole) / 5))
        return [(self.place(2.0**k), _power(k)) for k in whole if k % step == 0]


def _power(k: int) -> str:
    return f"{2**k}×" if k >= 0 else f"{FRACTIONS.get(-k, f'1/{2**-k}')}×"


def axis_of(cells: Mapping[str, BurdenMaps]) -> Axis:
    """The axis that holds every value of every column, null values included."""
    values = [
        value
        for cell in cells.values()
        for value in (*cell.values, *(cell.null_values or ()))
        if value is not None
    ]
    if any(cell.quantity != "burden" for cell in cells.values()):
        return Axis(low=0.0, high=max([*values, 1e-9]) * 1.05, ratio=False)
    logs = [math.log2(max(value, LEAST)) for value in values]
    return Axis(low=min([*logs, -0.9]) - 0.1, high=max([*logs, 0.9]) + 0.1, ratio=True)


def chart(
    infos: Sequence[VariantInfo],
    cells: Mapping[str, BurdenMaps],
    failures: Mapping[str, str],
    *,
    quantity: str,
    before: bool,
) -> str:
    """Layers down, value across: every site of every variant on one axis, above the numbers.

    Args:
        infos: The columns.
        cells: Burden by variant id, all of `quantity`.
        failures: Why a column is empty.
        quantity: What the cells hold.
        before: Show the dense model cut live instead of the trained variant.
    """
    axis = axis_of(cells)
    layers = sorted({layer_and_kind(s)[0] for cell in cells.values() for s in cell.site_names})
    labels = "".join(
        f'<button type="button" class="nb-layer" data-layer="{layer}" '
        f'title="{escape(text.PICK_LAYER.format(layer=layer))}">'
        f"<span>{text.LAYER} </span>{layer}</button>"
        for layer in layers
    )
    columns = []
    for info in infos:
        cell = cells.get(info.id)
        if cell is None or all(value is None for value in cell.values):
            columns.append(
                failure((cell.reason if cell else failures.get(info.id)) or text.NO_VALUES)
            )
        else:
            columns.append(_column(info, cell, axis, layers, before=before))
    sites = {site for cell in cells.values() for site in cell.site_names}
    hollow = not before and any(cell.null_values for cell in cells.values())
    body = key(sites, hollow=hollow) + grid(labels, columns, kind="nb-chart")
    return section(
        text.BURDEN,
        (text.QUANTITY_SHOWS.get(quantity, ""),),
        body + numbers(infos, cells),
        columns=len(infos),
        name="chart",
    )


def alone(info: VariantInfo, cell: BurdenMaps) -> str:
    """One model's chart with its own labels, on an axis that stays while values move."""
    found = axis_of({info.id: cell})
    axis = replace(found, low=min(found.low, -STILL), high=max(found.high, STILL))
    layers = sorted({layer_and_kind(site)[0] for site in cell.site_names})
    labels = "".join(f'<div class="nb-layer">{layer}</div>' for layer in layers)
    drawn = _column(info, cell, axis, layers, before=False)
    return f'<div class="nb-solo"><div>{labels}</div>{drawn}</div>'


def _column(
    info: VariantInfo, cell: BurdenMaps, axis: Axis, layers: Sequence[int], *, before: bool
) -> str:
    shown = shown_values(cell, before=before)
    rows: dict[int, str] = dict.fromkeys(layers, "")
    for position, site in enumerate(cell.site_names):
        layer, kind = layer_and_kind(site)
        null = None if before or cell.null_values is None else cell.null_values[position]
        rows[layer] += _marks(site, kind or BLOCK, shown[position], null, axis, cell.quantity)
    one = f'<i class="nb-one" style="left:{axis.place(1.0):.1f}%"></i>' if axis.ratio else ""
    tracks = "".join(
        f'<div class="nb-track" data-layer="{layer}">{one}{marks}</div>'
        for layer, marks in rows.items()
    )
    ticks = "".join(_tick(at, label) for at, label in axis.ticks())
    said = ", ".join(
        f"{site_words(s)} {amount(v, cell.quantity)}"
        for s, v in zip(cell.site_names, shown, strict=True)
    )
    alt = text.CHART_ALT.format(
        quantity=quantity_words(cell.quantity), title=info.title, values=said
    )
    below = f'<div class="nb-ticks">{ticks}</div>'
    return f'<div role="img" aria-label="{escape(alt)}">{tracks}{below}</div>'


def _tick(at: float, label: str) -> str:
    # Words at the ends would run into the next column.
    side = "nb-first" if at < 15 else "nb-last" if at > 85 else ""
    side += " nb-unity" if label == "1×" else ""
    return f'<span class="{side.strip()}" style="left:{at:.1f}%">{label}</span>'


def _marks(
    site: str, kind: str, value: float | None, null: float | None, axis: Axis, quantity: str
) -> str:
    if value is None:
        return ""
    words = f"{site_words(site)}: {amount(value, quantity)}"
    at = axis.place(value)
    hollow = ""
    if null is not None:
        words += f" ({text.BEFORE.lower()} {amount(null, quantity)})"
        start = axis.place(null)
        hollow = (
            f'<i class="nb-link {kind}" '
            f'style="left:{min(at, start):.1f}%;width:{abs(at - start):.1f}%"></i>'
            f'<i class="nb-mark nb-null {kind}" style="left:{start:.1f}%"></i>'
        )
    return (
        f'{hollow}<i class="nb-mark {kind}" style="left:{at:.1f}%" data-kind="{kind}" '
        f'title="{escape(words)}"></i>'
    )


def key(sites: Collection[str], *, hollow: bool) -> str:
    """What the marks of a chart mean.

    Args:
        sites: Names of all that is drawn.
        hollow: Whether values before retraining are drawn too.
    """
    kinds = {layer_and_kind(site)[1] for site in sites}
    styles = {kind: words for kind, words in text.SITE_KINDS.items() if kind in kinds} or {
        BLOCK: text.WHOLE_LAYER
    }
    entries = []
    for style, words in styles.items():
        said = term(words, text.SITE_MEANS[style]) if style in text.SITE_MEANS else escape(words)
        entries.append(f'<span><i class="nb-mark {style}"></i> {said}</span>')
    if hollow:
        style = list(styles)[-1]
        entries.append(
            f'<span><i class="nb-mark nb-null {style}"></i> '
            f"{term(text.NULL_MARK, text.NULL_MARK_HINT)}</span>"
        )
    return f'<div class="nb-key">{"".join(entries)}<span>{escape(text.CHART_HINT)}</span></div>'
