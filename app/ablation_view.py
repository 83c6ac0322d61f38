"""What the dense model says and carries with units turned off, as one part of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from app import text
from app.chart import alone
from app.layer_maps import map_cell
from app.markup import classes, grid, legend, section, term
from app.service import Ablated, VariantInfo


def ablation(
    info: VariantInfo, found: Ablated, *, site: str, drawn: Image.Image, scale: Image.Image
) -> str:
    """Answer, chart and one map of the cut dense model.

    Args:
        info: The dense model.
        found: What it says and carries now.
        site: Whose map is shown.
        drawn: That map.
        scale: Its colours.
    """
    # Held against the whole model as a variant is against its base.
    cut = replace(info, base=info.id, title=text.CUT_TITLE)
    counted = text.CUT_SAYS.format(removed=found.removed, total=found.total)
    cells = [
        f"{classes(cut, found.prediction)}<p>{term(counted, text.CUT_UNITS_HINT)}</p>",
        alone(cut, found.burdens),
        map_cell(cut, found.burdens, drawn, site),
    ]
    body = grid("", cells, kind="nb-pictures nb-chart") + legend(scale, text.BURDEN)
    return section(text.CUT, (text.CUT_SHOWS,), body, columns=len(cells), name="ablation")


def orders(infos: Sequence[VariantInfo], dataset: str) -> list[tuple[str, str]]:
    """Words and values of what may go first: by load, or as a pruned variant lost its units."""
    pruned = [info for info in infos if info.dataset == dataset and info.base is not None]
    return [(words, name) for name, words in text.CUT_ORDERS.items()] + [
        (text.CUT_ORDER_VARIANT.format(title=info.title), info.id) for info in pruned
    ]
