"""A plot as HTML: words keep their size at every width, and every mark tells its values on hover.

Nothing here knows what is drawn; the style sheet gives `HUES` and `SHAPES` their looks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

SHAPES = ("nb-circle", "nb-square", "nb-triangle", "nb-diamond", "nb-cross")
HUES = tuple(f"nb-c{k}" for k in range(8))
"""The first one is the colour of text."""
WORDS = Callable[[float], str]
FEWEST_TICKS = 3
RIGHT_HALF = 55.0
"""Percent from which a hover text opens to the left, so that it stays on the page."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One axis: its title, its ends and its ticks."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Percent of the axis, clipped to its ends."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, low))
        return 100 * min(max((at - low) / (high - low), 0.0), 1.0)


def linear(title: str, values: Sequence[float], words: WORDS, *, zero: bool = False) -> Scale:
    """A scale that holds all values, with ticks at 1, 2 or 5 times a power of ten.

    Args:
        title: What the values are.
        values: At least one.
        words: A value as a tick writes it.
        zero: Begin at zero.
    """
    low, high = (0.0 if zero else min(values)), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = (0.0 if zero else low - room), high + room
    step = _step((high - low) / 6)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    ticks = tuple((k * step, words(k * step)) for k in range(first, first + count))
    return Scale(title=title, low=low, high=high, ticks=ticks)


def _step(width: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below a width."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def logarithmic(title: str, values: Sequence[float], words: WORDS) -> Scale:
    """A scale for positive values, with ticks at round multiples of powers of ten."""
    low, high = min(values) / 1.15, max(values) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # The coarsest that leave enough of them, as finer ones would run into each other.
    for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        ticks = tuple((value, words(value)) for value in found if low <= value <= high)
        if len(ticks) >= FEWEST_TICKS:
            break
    return Scale(title=title, low=low, high=high, ticks=ticks, log=True)


def rows(title: str, names: Sequence[str]) -> Scale:
    """A vertical scale of names, the first on top: name k stands at -k."""
    ticks = tuple((-float(k), name) for k, name in enumerate(names))
    return Scale(title=title, low=-len(names) + 0.5, high=0.5, ticks=ticks)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point, with the interval it may lie in."""

    x: float
    y: float
    words: str
    """What it is and its values, told on hover."""
    style: str
    """Classes: a shape, a colour, and more if wanted."""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    quiet: bool = False
    """One of many: no stop for the keyboard."""
    shift: int = 0
    """Pixels to the right, where marks would hide each other."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points."""

    points: Sequence[tuple[float, float]]
    style: str = ""
    share: float | None = None
    """0..1 along the ramp from the first to the last of ordered lines."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What is told where the pointer is over one place of the x axis."""

    x: float
    words: Sequence[str]
    """The first one is the heading."""


def plot(
    x: Scale,
    y: Scale,
    *,
    alt: str,
    marks: Sequence[Mark] = (),
    lines: Sequence[Line] = (),
    slices: Sequence[Slice] = (),
    guide: float | None = None,
    kind: str = "",
    style: str = "",
) -> str:
    """Draw.

    Args:
        x: Horizontal axis.
        y: Vertical axis.
        alt: What a person who cannot see it should know.
        marks: Points.
        lines: Below the points.
        slices: Hover texts across the whole height.
        guide: A value of x that is marked by a dashed line.
        kind: More classes of the figure.
        style: More declarations of its style.
    """
    widest = max((len(words) for _, words in y.ticks), default=1)
    across = "".join(
        f'<i class="nb-rule" style="bottom:{y.place(v):.2f}%"></i>' for v, _ in y.ticks
    )
    dashed = "" if guide is None else f'<i class="nb-guide" style="left:{x.place(guide):.2f}%"></i>'
    body = across + dashed + _lines(x, y, lines) + _slices(x, slices)
    body += "".join(_interval(mark, x, y) for mark in marks)
    body += "".join(_point(mark, x, y) for mark in marks)
    left = "".join(
        f'<span style="bottom:{y.place(v):.2f}%">{escape(words)}</span>' for v, words in y.ticks
    )
    below = "".join(
        f'<span style="left:{x.place(v):.2f}%">{escape(words)}</span>' for v, words in x.ticks
    )
    return (
        f'<div class="nb-plot {kind}" role="group" aria-label="{escape(alt)}" '
        f'style="--w:{widest}ch;{style}">'
        f'<p class="nb-axis" aria-hidden="true">{escape(y.title)}</p>'
        f'<div class="nb-left" aria-hidden="true">{left}</div><div class="nb-field">{body}</div>'
        f'<div class="nb-below" aria-hidden="true">{below}</div>'
        f'<p class="nb-axis nb-end" aria-hidden="true">{escape(x.title)}</p></div>'
    )


def _lines(x: Scale, y: Scale, lines: Sequence[Line]) -> str:
    drawn = "".join(
        f'<polyline class="{line.style}" points="{_points(x, y, line)}" '
        f'style="{"" if line.share is None else f"--t:{line.share:.3f}"}"/>'
        for line in lines
    )
    return (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'
        if drawn
        else ""
    )


def _points(x: Scale, y: Scale, line: Line) -> str:
    # A point alone is drawn as a line of no length, whose round ends make it a dot.
    points = [*line.points, *line.points][: max(2, len(line.points))]
    return " ".join(f"{x.place(a):.2f},{100 - y.place(b):.2f}" for a, b in points)


def _slices(x: Scale, slices: Sequence[Slice]) -> str:
    """Bands that meet half-way between neighbours."""
    places = [x.place(one.x) for one in slices]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(places)]
    edges = [0.0, *middles, 100.0]
    drawn = []
    for one, place, low, high in zip(slices, places, edges, edges[1:], strict=False):
        side = " nb-leftwards" if place > RIGHT_HALF else ""
        head, *rest = one.words
        told = f"<b>{escape(head)}</b>" + "".join(f"<span>{escape(line)}</span>" for line in rest)
        at = 100 * (place - low) / (high - low) if high > low else 50
        drawn.append(
            f'<div class="nb-slice{side}" aria-hidden="true" '
            f'style="left:{low:.2f}%;width:{high - low:.2f}%;--at:{at:.1f}%">'
            f'<div class="nb-tip">{told}</div></div>'
        )
    return "".join(drawn)


def _interval(mark: Mark, x: Scale, y: Scale) -> str:
    hue = next((name for name in mark.style.split() if name in HUES), "")
    drawn = ""
    if mark.y_range:
        low, high = (y.place(value) for value in mark.y_range)
        drawn += (
            f'<i class="nb-upright {hue}" style="left:{_left(mark, x)};'
            f'bottom:{low:.2f}%;height:{high - low:.2f}%"></i>'
        )
    if mark.x_range:
        low, high = (x.place(value) for value in mark.x_range)
        drawn += (
            f'<i class="nb-level {hue}" style="bottom:{y.place(mark.y):.2f}%;'
            f'left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        )
    return drawn


def _left(mark: Mark, x: Scale) -> str:
    at = f"{x.place(mark.x):.2f}%"
    return f"calc({at} + {mark.shift}px)" if mark.shift else at


def _point(mark: Mark, x: Scale, y: Scale) -> str:
    at = x.place(mark.x)
    side = " nb-leftwards" if at > RIGHT_HALF else ""
    told = escape(mark.words)
    place = f'style="left:{_left(mark, x)};bottom:{y.place(mark.y):.2f}%"'
    if mark.quiet:
        return f'<i class="nb-point nb-quiet {mark.style}" title="{told}" {place}></i>'
    return (
        f'<span class="nb-point{side}" tabindex="0" role="img" aria-label="{told}" {place}>'
        f'<i class="{mark.style}"></i><span class="nb-tip" aria-hidden="true">{told}</span></span>'
    )


def key(entries: Sequence[tuple[str, str]]) -> str:
    """What shapes and colours mean: classes and words of each."""
    items = "".join(
        f'<span><i class="nb-swatch {style}"></i>{escape(words)}</span>' for style, words in entries
    )
    return f'<p class="nb-legend-line">{items}</p>'
