"""Heatmaps of what a layer carries, over the photo, and the numbers behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from app import text
from app.amounts import amount, ratio
from app.markup import failure, grid, legend, picture, table, term
from app.readable import readable
from app.service import BurdenMaps, VariantInfo, Which
from app.sites import quantity_words, site_words


def shown_values(cell: BurdenMaps, *, before: bool) -> tuple[float | None, ...]:
    """The values a column shows: the variant's, or those of dense cut live if there are any."""
    return cell.null_values if before and cell.null_values is not None else cell.values


def maps(
    infos: Sequence[VariantInfo],
    cells: Mapping[str, BurdenMaps],
    pictures: Mapping[str, Image.Image],
    nulls: Mapping[str, Image.Image],
    *,
    site: str,
    before: bool,
    scale: Image.Image | None,
) -> str:
    """Heatmap of one site over the crop, one column a variant, all on one colour scale.

    Args:
        infos: The columns.
        cells: Burden by variant id.
        pictures: The variants' maps, or with `before` those of dense cut live.
        nulls: Those of dense cut live, for a row of their own.
        site: Whose maps these are.
        before: Show the dense model cut live instead of the trained variants.
        scale: The colours of all.
    """
    which: Which = "null" if before else "trained"
    columns, below = [], []
    for info in infos:
        cell = cells.get(info.id)
        if cell is None or info.id not in pictures:
            columns.append(failure((cell.reason if cell else None) or text.NO_MAP))
            below.append("")
            continue
        columns.append(map_cell(info, cell, pictures[info.id], site, which))
        shown = not before and not cell.is_dense and info.id in nulls
        below.append(map_cell(info, cell, nulls[info.id], site, "null") if shown else "")
    shows = text.MAP_SHOWS.get(next((c.quantity for c in cells.values()), ""), "")
    note = f'<p class="nb-note">{escape(shows)} {escape(text.MAP_KEYS_LARGE)}</p>'
    body = grid("", columns, kind="nb-pictures")
    if any(below):
        body += grid(null_heading(), below, kind="nb-pictures")
    body += legend(scale, site_words(site))
    return f'<div class="nb-section" id="nb-maps" style="--n:{len(infos)}">{note}{body}</div>'


def null_heading() -> str:
    """What the second row of maps shows."""
    return f"<h3>{escape(text.NULL_ROW)}</h3><p>{escape(text.NULL_ROW_HINT)}</p>"


def map_cell(
    info: VariantInfo, cell: BurdenMaps, drawn: Image.Image, site: str, which: Which = "trained"
) -> str:
    """One map that can be read patch by patch, above the value of the whole site."""
    index, quantity = cell.site_names.index(site), quantity_words(cell.quantity)
    words = text.NULL_MAP_ALT if which == "null" and not cell.is_dense else text.MAP_ALT
    alt = words.format(title=info.title, quantity=quantity, site=site_words(site))
    shown, values = picture(drawn, alt), cell.shown(which)
    if values is not None:
        shown = readable(
            shown,
            values[index],
            # Maps of ratios hold their logarithms.
            lambda value: amount(2**value if cell.quantity == "burden" else value, cell.quantity),
            name=site_words(site),
            groups=cell.outlines(which)[index],
        )
    total = shown_values(cell, before=which == "null")[index]
    where = "" if values is None else _most(values[index])
    # Shown where the map stands alone, below no heading of its own.
    whose = f'<span class="nb-whose">{escape(info.title)}: </span>'
    return (
        f"{shown}<p>{whose}{escape(site_words(site))}: <b>{amount(total, cell.quantity)}</b>"
        f"<small>{escape(where)}</small></p>"
    )


def _most(values: np.ndarray) -> str:
    """Where on the photo the largest value is; nothing of a map that is the same everywhere."""
    if np.ptp(values) == 0:
        return ""
    row, column = np.unravel_index(np.argmax(values), values.shape)
    return text.MAP_MOST.format(row=row + 1, column=column + 1)


def sheets(
    infos: Sequence[VariantInfo], pictures: Mapping[str, Image.Image], *, quantity: str
) -> str:
    """Every site of every variant as small maps, each variant as wide as its labels need."""
    figures = "".join(
        f"<figure><figcaption>{escape(info.title)}</figcaption>"
        + picture(
            pictures[info.id],
            text.SHEET_ALT.format(title=info.title, quantity=quantity_words(quantity)),
        )
        + "</figure>"
        for info in infos
        if info.id in pictures
    )
    note = f'<p class="nb-note">{escape(text.ALL_LAYERS_HINT)}</p>'
    return f'{note}<div class="nb-sheets">{figures}</div>'


def numbers(infos: Sequence[VariantInfo], cells: Mapping[str, BurdenMaps]) -> str:
    """What the chart shows and what it is held against, as tables that fold out."""
    tables = "".join(_table(info, cells[info.id]) for info in infos if info.id in cells)
    note = f'<p class="nb-note">{escape(text.NUMBERS_HINT)}</p>'
    return (
        f'<details class="nb-details"><summary>{escape(text.NUMBERS)}</summary>'
        f'{note}<div class="nb-tables">{tables}</div></details>'
    )


def _table(info: VariantInfo, cell: BurdenMaps) -> str:
    columns = {
        "value": cell.values,
        "null": cell.null_values,
        "selection": cell.selection,
        "stream": cell.stream,
    }
    # Selection and stream belong to sites, so they are left out where the values belong to blocks.
    given = {
        key: values
        for key, values in columns.items()
        if values is not None and len(values) == len(cell.site_names)
    }
    heads = "".join(
        f'<th scope="col">{term(text.NUMBER_COLUMNS[key], text.NUMBER_MEANS[key])}</th>'
        for key in given
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(site_words(site))}</th>'
        + "".join(
            f"<td>{_number(key, values[k], cell.quantity)}</td>" for key, values in given.items()
        )
        + "</tr>"
        for k, site in enumerate(cell.site_names)
    )
    return table(info.title, heads, rows)


def _number(column: str, value: float | None, quantity: str) -> str:
    return amount(value, quantity) if column in ("value", "null") else ratio(value)
