"""Burden and attribution maps of a comparison -> pictures on one scale."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from app import render
from app.attribution import ATTRIBUTIONS, AttributionMap
from app.burden import BurdenMaps, Which
from app.errors import UserError
from app.task import Cells

NULL_NOTE = "Before retraining: dense, its pruned units turned off live."
DRAWERS = ThreadPoolExecutor(4, thread_name_prefix="draw")
"""Draw variants side by side."""
MERGED_NOTE = "Fine white lines: edges of patches merged into one token."


def of_site(
    crop: Image.Image, burdens: Mapping[str, BurdenMaps], site: str, which: Which
) -> dict[str, Image.Image]:
    """One site's heatmap by variant; variants without maps are left out.

    Args:
        crop: What the models saw.
        burdens: Of one quantity.
        site: One of their `site_names`.
        which: "null" shows the dense base cut live, before retraining.

    Raises:
        UserError: If there is no such site.
    """
    pictures, scale, pale = {}, burden_scale(burdens), render.pale_photo(crop)
    for key, cell in burdens.items():
        if site not in cell.site_names:
            raise UserError(f"unknown site {site!r}; available: {', '.join(cell.site_names)}")
        index, maps = cell.site_names.index(site), cell.shown(which)
        if maps is not None:
            groups = cell.outlines(which)[index]
            pictures[key] = render.heatmap(crop, maps[index], scale, groups=groups, pale=pale)
    return pictures


def sheets(
    crop: Image.Image, burdens: Mapping[str, BurdenMaps], which: Which
) -> dict[str, Image.Image]:
    """All sites of each variant in one picture, on the scale of `of_site`.

    Args:
        crop: What the models saw.
        burdens: Of one quantity.
        which: As in `of_site`.
    """
    scale = burden_scale(burdens)
    return {
        key: render.sheet(crop, maps, cell.site_names, scale)
        for key, cell in burdens.items()
        if (maps := cell.shown(which)) is not None
    }


def burden_legend(burdens: Mapping[str, BurdenMaps], which: Which) -> Image.Image:
    """Colour bar of these pictures."""
    merged = any(g is not None for cell in burdens.values() for g in cell.outlines(which))
    note = NULL_NOTE if which == "null" else MERGED_NOTE if merged else ""
    return render.legend(burden_scale(burdens), note)


def with_pictures(crop: Image.Image, cells: Cells[AttributionMap]) -> Cells[AttributionMap]:
    """Maps with their pictures: attributions on one scale, differences on another."""
    scale, differences = attribution_scale(cells), difference_scale(cells)
    pale = render.pale_photo(crop)

    def draw(cell: AttributionMap) -> AttributionMap:
        return replace(
            cell,
            picture=render.heatmap(crop, cell.values, scale, groups=cell.groups, pale=pale),
            difference_picture=None
            if cell.difference is None
            else render.heatmap(crop, cell.difference, differences, groups=cell.groups, pale=pale),
        )

    drawn: Cells[AttributionMap] = Cells(cells.failures)
    drawn.update(zip(cells, DRAWERS.map(draw, cells.values()), strict=True))
    return drawn


def attribution_legend(attributions: Mapping[str, AttributionMap]) -> Image.Image:
    """Colour bar of attribution pictures."""
    return render.legend(attribution_scale(attributions))


def difference_legend(attributions: Mapping[str, AttributionMap]) -> Image.Image:
    """Colour bar of difference pictures."""
    return render.legend(difference_scale(attributions))


def burden_scale(burdens: Mapping[str, BurdenMaps]) -> render.Scale:
    """One scale for all sites of all variants, before and after retraining."""
    maps = [m for cell in burdens.values() for m in (cell.maps, cell.null_maps) if m is not None]
    quantity = next((cell.quantity for cell in burdens.values()), "burden")
    return render.burden_scale(maps, quantity)


def attribution_scale(attributions: Mapping[str, AttributionMap]) -> render.Scale:
    """Scale of all variants."""
    cells = list(attributions.values())
    title = ATTRIBUTIONS[cells[0].method].unit if cells else ""
    signed = all(cell.signed for cell in cells)
    return render.attribution_scale([c.values for c in cells], signed=signed, title=title)


def difference_scale(attributions: Mapping[str, AttributionMap]) -> render.Scale:
    """Scale of all differences from dense."""
    maps = [c.difference for c in attributions.values() if c.difference is not None]
    return render.difference_scale(maps)
