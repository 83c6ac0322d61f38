"""Arrays -> pictures; the only file with colour maps.

All pictures of one comparison share one `Scale`. Colours lie over a pale grey photo and grow more
opaque with what they show, so that what is drawn strongly is what is large. Red and blue are told
apart by colour-blind people too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

PICTURE_SIDE = 448
TILE_SIDE = 132
SHEET_COLUMNS = 4
CLIPPED_SHARE = 0.01
LOG_RANGE = 100.0
"""Highest over lowest value of logarithmic scales; loads of layers differ by as much."""
INK = "#222222"
OUTLINE = (255, 255, 255, 150)
# ColorBrewer's RdBu and YlOrRd (Brewer, Harrower, Penn State; Apache-2.0), lowest first.
DIVERGING = "#2166ac #4393c3 #92c5de #d1e5f0 #f7f7f7 #fddbc7 #f4a582 #d6604d #b2182b"
SEQUENTIAL = "#ffffcc #ffeda0 #fed976 #feb24c #fd8d3c #fc4e2a #e31a1c #bd0026"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a colour means, the same for all pictures of a comparison."""

    low: float
    high: float
    diverging: bool
    """Colours part at zero, and low = -high."""
    logarithmic: bool = False
    """Equal colour steps are equal ratios; what is below `low` counts as `low`."""
    title: str
    low_words: str
    high_words: str
    ticks: tuple[tuple[float, str], ...]

    def shares(self, values: np.ndarray) -> np.ndarray:
        """Where values lie between low (0) and high (1), clipped."""
        if self.logarithmic:
            ratios = np.maximum(values, self.low) / self.low
            return np.clip(np.log(ratios) / np.log(self.high / self.low), 0.0, 1.0)
        return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)


def burden_scale(maps: Sequence[np.ndarray], quantity: str) -> Scale:
    """Scale of burden, load or residual maps; the largest 1 % of patches are clipped in drawing."""
    if quantity == "burden":
        limit = max(_upper(maps), 0.5)
        return Scale(
            low=-limit,
            high=limit,
            diverging=True,
            title="Burden, 1 = as in dense",
            low_words="carries less",
            high_words="carries more",
            ticks=tuple((k, _power_of_two(k)) for k in _steps(limit)),
        )
    high = max(_upper(maps), 1e-6)
    low = high / LOG_RANGE
    title, words = {
        "load": ("Load", ("writes less", "writes more")),
        "residual": ("Difference from dense", ("nearer", "further away")),
    }[quantity]
    return Scale(
        low=low,
        high=high,
        diverging=False,
        logarithmic=True,
        title=title,
        low_words=words[0],
        high_words=words[1],
        ticks=tuple((value, f"{value:g}") for value in _decades(low, high)),
    )


def attribution_scale(maps: Sequence[np.ndarray], *, signed: bool, title: str) -> Scale:
    """Scale of attribution maps; the largest 1 % of patches are clipped in drawing."""
    limit = max(_upper(maps), 1e-12)
    if signed:
        return Scale(
            low=-limit,
            high=limit,
            diverging=True,
            title=title,
            low_words="speaks against",
            high_words="speaks for",
            ticks=((-limit, f"{-limit:.2g}"), (0.0, "0"), (limit, f"+{limit:.2g}")),
        )
    return Scale(
        low=0.0,
        high=limit,
        diverging=False,
        title=title,
        low_words="none",
        high_words="strong",
        ticks=((0.0, "0"), (limit / 2, f"{limit / 2:.2g}"), (limit, f"{limit:.2g}")),
    )


def difference_scale(maps: Sequence[np.ndarray]) -> Scale:
    """Scale of differences between maps; the largest 1 % of patches are clipped in drawing."""
    limit = max(_upper(maps), 1e-12)
    return Scale(
        low=-limit,
        high=limit,
        diverging=True,
        title="Difference from dense",
        low_words="less than dense",
        high_words="more than dense",
        ticks=((-limit, f"{-limit:.2g}"), (0.0, "0"), (limit, f"+{limit:.2g}")),
    )


def heatmap(
    crop: Image.Image,
    values: np.ndarray,
    scale: Scale,
    *,
    groups: np.ndarray | None = None,
    side: int = PICTURE_SIDE,
    pale: Image.Image | None = None,
) -> Image.Image:
    """Values of patches over a photo.

    Args:
        crop: What the model saw, RGB, square.
        values: [rows, columns].
        scale: Shared by the comparison.
        groups: Which merged token carries each patch [rows, columns]; patches that share one are
            outlined.
        side: Width and height of the picture.
        pale: `pale_photo(crop, side)`, where several pictures lie over the same photo; unchanged.

    Returns:
        RGB picture, side x side; every patch one block of colour.
    """
    pale = pale or pale_photo(crop, side)
    picture = _blend(pale, scale.shares(values), diverging=scale.diverging)
    if groups is not None:
        _outline(picture, groups)
    return picture


def pale_photo(crop: Image.Image, side: int = PICTURE_SIDE, copies: int = 1) -> Image.Image:
    """A photo in light grey, RGB, or several below each other; takes longer than the colours over
    it.

    Args:
        crop: A photo, RGB, square.
        side: Width, and height of each, in pixels.
        copies: How many.
    """
    grey = crop.convert("L").resize((side, side), Image.Resampling.LANCZOS)
    pale = grey.point([round(255 - 0.75 * (255 - level)) for level in range(256)])
    return Image.fromarray(np.tile(np.asarray(pale), (copies, 1))).convert("RGB")


def sheet(crop: Image.Image, maps: np.ndarray, names: Sequence[str], scale: Scale) -> Image.Image:
    """All maps of one variant, small and labelled, four in each row.

    Args:
        crop: What the model saw.
        maps: [names, rows, columns].
        names: Sites (blocks.0.attn, ...) or blocks (blocks.0, ...).
        scale: Shared by the comparison.
    """
    page, places = _empty_sheet(tuple(names))
    page, side = page.copy(), TILE_SIDE
    # All below each other in one go: for small pictures, asking takes longer than painting.
    column = _blend(
        pale_photo(crop, side, copies=len(names)),
        scale.shares(maps).reshape(-1, maps.shape[-1]),
        diverging=scale.diverging,
    )
    for index, place in enumerate(places):
        page.paste(column.crop((0, index * side, side, (index + 1) * side)), place)
    return page


@functools.lru_cache(maxsize=16)
def _empty_sheet(names: tuple[str, ...]) -> tuple[Image.Image, list[tuple[int, int]]]:
    """A sheet's labels, whose letters take as long to draw as its maps, and where its maps go."""
    font, gap, label = ImageFont.load_default(16), 10, 22
    columns = min(SHEET_COLUMNS, len(names))
    height = -(-len(names) // columns) * (TILE_SIDE + label + gap)
    page = Image.new("RGB", (columns * (TILE_SIDE + gap) - gap, height), "white")
    draw, places = ImageDraw.Draw(page), []
    for index, name in enumerate(names):
        left = (index % columns) * (TILE_SIDE + gap)
        top = (index // columns) * (TILE_SIDE + label + gap)
        draw.text((left, top), site_words(name), fill=INK, font=font)
        places.append((left, top + label))
    return page, places


def legend(scale: Scale, note: str = "") -> Image.Image:
    """Colour bar with its words and a note below, twice as large as it is meant to be shown."""
    width, height, margin, bar = 2 * PICTURE_SIDE, 186 if note else 148, 60, (56, 92)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    font, inner = ImageFont.load_default(26), width - 2 * margin
    white = Image.new("RGB", (inner, bar[1] - bar[0]), "white")
    strip = _blend(white, np.linspace(0, 1, inner)[None], diverging=scale.diverging)
    page.paste(strip, (margin, bar[0]))
    draw.rectangle((margin - 1, bar[0] - 1, width - margin, bar[1]), outline="#999999")
    draw.text((margin, 12), scale.low_words, fill=INK, font=font)
    draw.text((width / 2, 12), scale.title, fill=INK, font=font, anchor="ma")
    draw.text((width - margin, 12), scale.high_words, fill=INK, font=font, anchor="ra")
    for value, words in scale.ticks:
        x = margin + float(scale.shares(np.array(value))) * (inner - 1)
        draw.line((x, bar[1], x, bar[1] + 8), fill=INK, width=2)
        draw.text((x, bar[1] + 12), words, fill=INK, font=font, anchor="ma")
    draw.text((width / 2, 148), note, fill=INK, font=font, anchor="ma")
    return page


def site_words(name: str) -> str:
    """ "blocks.3.attn" -> "4 attention"; "blocks.3" -> "layer 4"."""
    _, block, *part = name.split(".")
    words = {"attn": "attention", "mlp": "MLP"}
    return f"{int(block) + 1} {words.get(part[0], part[0])}" if part else f"layer {int(block) + 1}"


def _blend(pale: Image.Image, shares: np.ndarray, *, diverging: bool) -> Image.Image:
    """Places on a scale [rows, columns] as blocks of colour over a picture."""
    colours, opacity = _paint(shares, diverging=diverging)
    paint, mask = (
        Image.fromarray(np.rint(a).astype(np.uint8)).resize(pale.size, Image.Resampling.NEAREST)
        for a in (colours, 255 * opacity)
    )
    return Image.composite(paint, pale, mask)


def _paint(shares: np.ndarray, *, diverging: bool) -> tuple[np.ndarray, np.ndarray]:
    """Colours [..., 3] in 0..255 and opacity [...] of places on a scale."""
    anchors = [ImageColor.getrgb(c) for c in (DIVERGING if diverging else SEQUENTIAL).split()]
    channels = np.array(anchors, dtype=np.float64).T
    stops = np.linspace(0, 1, len(anchors))
    colours = np.stack([np.interp(shares, stops, channel) for channel in channels], -1)
    strength = np.abs(2 * shares - 1) if diverging else shares
    return colours, 0.15 + 0.7 * np.sqrt(strength)


def _outline(picture: Image.Image, groups: np.ndarray) -> None:
    """Thin lines between patches of which one is merged and the other belongs to another token."""
    rows, columns = groups.shape
    merged = (np.bincount(groups.ravel()) > 1)[groups]
    xs = [round(k * picture.width / columns) for k in range(columns + 1)]
    ys = [round(k * picture.height / rows) for k in range(rows + 1)]
    draw = ImageDraw.Draw(picture, "RGBA")
    across = (groups[:, :-1] != groups[:, 1:]) & (merged[:, :-1] | merged[:, 1:])
    down = (groups[:-1] != groups[1:]) & (merged[:-1] | merged[1:])
    for row, column in np.argwhere(across):
        draw.line((xs[column + 1], ys[row], xs[column + 1], ys[row + 1]), fill=OUTLINE)
    for row, column in np.argwhere(down):
        draw.line((xs[column], ys[row + 1], xs[column + 1], ys[row + 1]), fill=OUTLINE)


def _upper(maps: Sequence[np.ndarray]) -> float:
    """Size that 99 % of all patches stay below; 0 without patches."""
    if not maps:
        return 0.0
    return float(np.quantile(np.abs(np.concatenate([m.ravel() for m in maps])), 1 - CLIPPED_SHARE))


def _steps(limit: float) -> list[float]:
    """Exponents of two to mark on a scale from -limit to limit, at most seven."""
    if limit < 1:
        return [-0.5, 0.0, 0.5]
    step = -(-int(limit) // 3)
    reach = int(limit) // step * step
    return [float(k) for k in range(-reach, reach + 1, step)]


def _decades(low: float, high: float) -> list[float]:
    """1, 3, 10, 30, ... between two values."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{k}") for k in exponents for digit in (1, 3)]
    return [value for value in values if low <= value <= high]


def _power_of_two(k: float) -> str:
    if k != int(k):
        return f"{2**k:.2g}"
    return f"{2 ** int(k)}" if k >= 0 else f"1/{2 ** int(-k)}"
