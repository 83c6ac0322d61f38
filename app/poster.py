"""What a page shows of one photo, drawn as one picture to take along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from app import text
from app.amounts import amount, count, megabytes, percent, points
from app.chart import axis_of
from app.markup import sentence
from app.service import AttributionMap, BurdenMaps, Prediction, VariantInfo
from app.sites import site_words

COLUMN, GAP, MARGIN, SIDE = 448, 32, 40, 300
"""Pixels: a column, between columns, around all, and the labels left of the columns."""
INK, SOFT, LINE, BAR = "#26231f", "#6a655d", "#e3dfd8", "#0f766e"
GLYPHS = str.maketrans({"\u202f": " ", "\u2212": "-", "×": "x"})
"""Signs that the drawing font lacks."""


def poster(
    infos: Sequence[VariantInfo],
    crop: Image.Image,
    predictions: Mapping[str, Prediction],
    attributions: Mapping[str, AttributionMap],
    burdens: Mapping[str, BurdenMaps],
    *,
    site: str | None,
    site_maps: Mapping[str, Image.Image],
    scales: Mapping[str, Image.Image],
    captions: Sequence[str],
) -> Image.Image:
    """A column for each model, as on the page.

    Args:
        infos: The columns.
        crop: What all models saw.
        predictions: By variant, as are all mappings but `scales`; what is missing is left white.
        attributions: With their pictures.
        burdens: Values of every site.
        site: Whose maps are shown.
        site_maps: Pictures of that site.
        scales: Colour bars by the row they belong to: attribution, difference, burden.
        captions: Lines below the title.
    """
    width = 2 * MARGIN + SIDE + len(infos) * (COLUMN + GAP)
    page = _Page(width, infos)
    page.text(MARGIN, text.TITLE, size=40)
    for line in captions:
        page.text(MARGIN, line, size=22, ink=SOFT)
    page.row("", lambda c, x, y, info: c.lines(x, y, info.title, width=COLUMN, size=26))
    page.row(
        text.PREDICTIONS,
        lambda c, x, y, info: _prediction(c, x, y, info, predictions.get(info.id)),
    )
    page.row(text.ATTRIBUTION, _pictures({k: a.picture for k, a in attributions.items()}), crop)
    page.scale(scales.get("attribution"))
    differences = {k: a.difference_picture for k, a in attributions.items()}
    if any(differences.values()):
        page.row(text.DIFFERENCE, _pictures(differences))
        page.scale(scales.get("difference"))
    page.row(text.BURDEN, _chart(burdens))
    if site is not None:
        page.row(site_words(site), _pictures(site_maps))
        page.scale(scales.get("burden"))
    page.row(text.COST, _cost)
    return page.finished()


class _Page:
    """A picture that grows downwards."""

    def __init__(self, width: int, infos: Sequence[VariantInfo]) -> None:
        self.infos = infos
        self.image = Image.new("RGB", (width, 20_000), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN

    def words(self, x: int, y: int, words: str, *, size: int = 22, ink: str = INK) -> int:
        """One line, shortened to its column; returns its height."""
        font, words = ImageFont.load_default(size), words.translate(GLYPHS)
        room = COLUMN if x > MARGIN + SIDE else self.image.width - x - MARGIN
        while words and font.getlength(words) > room:
            words = words[:-2] + "…"
        self.draw.text((x, y), words, fill=ink, font=font)
        return round(size * 1.4)

    def text(self, x: int, words: str, *, size: int, ink: str = INK) -> None:
        self.y += self.words(x, self.y, words, size=size, ink=ink)

    def row(
        self,
        label: str,
        cell: Callable[[_Page, int, int, VariantInfo], int],
        picture: Image.Image | None = None,
    ) -> None:
        """A label, perhaps with a picture below it, and one cell for each model."""
        self.y += GAP
        self.draw.line((MARGIN, self.y - 12, self.image.width - MARGIN, self.y - 12), fill=LINE)
        height = self.lines(MARGIN, self.y, label, width=SIDE)
        if picture is not None:
            small = picture.resize((SIDE - GAP, SIDE - GAP), Image.Resampling.LANCZOS)
            self.image.paste(small, (MARGIN, self.y + height))
            height += SIDE - GAP
        left = MARGIN + SIDE + GAP
        cells = [
            cell(self, left + k * (COLUMN + GAP), self.y, info) for k, info in enumerate(self.infos)
        ]
        self.y += max([height, *cells])

    def lines(self, x: int, y: int, words: str, *, width: int, size: int = 24) -> int:
        """Words over as many lines as they need; returns their height."""
        font, start, line = ImageFont.load_default(size), y, ""
        words = words.translate(GLYPHS)
        for word in [*words.split(), ""]:
            longer = f"{line} {word}".strip()
            if word and font.getlength(longer) <= width:
                line = longer
                continue
            self.draw.text((x, y), line, fill=INK, font=font)
            y, line = y + round(size * 1.3), word
        return y - start

    def scale(self, bar: Image.Image | None) -> None:
        """A colour bar below the columns that it belongs to."""
        if bar is not None:
            half = bar.resize((bar.width * 2 // 3, bar.height * 2 // 3), Image.Resampling.LANCZOS)
            self.image.paste(half, (MARGIN + SIDE + GAP, self.y + 12))
            self.y += 12 + half.height

    def finished(self) -> Image.Image:
        return self.image.crop((0, 0, self.image.width, self.y + MARGIN))


def _prediction(page: _Page, x: int, y: int, info: VariantInfo, found: Prediction | None) -> int:
    if found is None:
        return page.words(x, y, text.NO_ANSWER, ink=SOFT)
    start = y
    for top in found.top:
        page.words(x, y, top.class_name)
        numbers = f"{percent(top.prob)}  {points(top.change) if info.base else ''}"
        shown = numbers.translate(GLYPHS)
        room = ImageFont.load_default(22).getlength(shown)
        page.words(round(x + COLUMN - room), y, shown)
        page.draw.rectangle((x, y + 28, x + COLUMN, y + 32), fill=LINE)
        page.draw.rectangle((x, y + 28, x + round(COLUMN * top.prob), y + 32), fill=BAR)
        y += 44
    y += page.lines(x, y + 4, sentence(info, found), width=COLUMN, size=20) + 4
    if info.base and found.kl_to_base is not None:
        y += page.words(x, y, text.KL.format(kl=found.kl_to_base), size=20, ink=SOFT)
    return y - start


def _pictures(
    pictures: Mapping[str, Image.Image | None],
) -> Callable[[_Page, int, int, VariantInfo], int]:
    def draw(page: _Page, x: int, y: int, info: VariantInfo) -> int:
        shown = pictures.get(info.id)
        if shown is None:
            return 0
        page.image.paste(shown.resize((COLUMN, COLUMN)), (x, y))
        return COLUMN

    return draw


def _chart(cells: Mapping[str, BurdenMaps]) -> Callable[[_Page, int, int, VariantInfo], int]:
    """A line for every site on one axis: hollow before retraining, full now, and its value."""
    axis = axis_of(cells)

    def draw(page: _Page, x: int, y: int, info: VariantInfo) -> int:
        cell, start = cells.get(info.id), y
        left, right = x + 170, x + COLUMN - 70

        def dot(value: float | None, fill: str) -> None:
            if value is not None:
                at = round(left + (right - left) * axis.place(value) / 100)
                page.draw.ellipse((at - 5, y + 6, at + 5, y + 16), fill=fill, outline=BAR, width=2)

        for k, site in enumerate(cell.site_names if cell is not None else ()):
            assert cell is not None
            page.words(x, y, site_words(site), size=18)
            page.draw.line((left, y + 11, right, y + 11), fill=LINE)
            if cell.null_values is not None:
                dot(cell.null_values[k], "white")
            dot(cell.values[k], BAR)
            page.words(right + 10, y, amount(cell.values[k], cell.quantity), size=18)
            y += 24
        return y - start

    return draw


def _cost(page: _Page, x: int, y: int, info: VariantInfo) -> int:
    top1 = info.metrics.get("top1")
    facts = {
        "top1": percent(top1) if top1 is not None else None,
        "num_params": count(info.num_params),
        "macs": count(info.macs),
        "size_bytes": megabytes(info.size_bytes),
    }
    start = y
    for name, value in facts.items():
        if value is not None:
            y += page.words(x, y, f"{text.COST_ROWS[name][0]}: {value}", size=20)
    return y - start
