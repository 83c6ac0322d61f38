"""Numbers as the page writes them."""

from __future__ import annotations

MISSING = "–"


def percent(share: float, digits: int = 1) -> str:
    """0.9342 -> 93.4 %"""
    return f"{100 * share:.{digits}f}\u202f%"


def points(change: float | None) -> str:
    """-0.0312 -> −3.1, percentage points; nothing where there is no base."""
    if change is None:
        return ""
    rounded = round(100 * change, 1)
    return f"{rounded:+.1f}".replace("-", "\u2212") if rounded else "±0.0"


def count(number: float) -> str:
    """5_600_000 -> 5.6 M"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}\u202f{letter}"
    return f"{number:.0f}"


def megabytes(size: float) -> str:
    """11_300_000 -> 11.3 MB"""
    return f"{size / 1e6:.1f}\u202fMB"


def milliseconds(duration: float) -> str:
    """3.42 -> 3.4 ms, 34.2 -> 34 ms"""
    return f"{duration:.{1 if duration < 10 else 0}f}\u202fms"


def ratio(value: float | None) -> str:
    """A ratio to the dense model: 1.324 gives "1.32×"."""
    return MISSING if value is None else f"{value:.2f}×"


def amount(value: float | None, quantity: str) -> str:
    """A value of a quantity: burdens are ratios, others are written plainly."""
    if quantity == "burden":
        return ratio(value)
    return MISSING if value is None else f"{value:.3f}"


def small(value: float) -> str:
    """7.7e-07 as it is: tiny numbers are read by their exponent."""
    return f"{value:.0e}" if value else "0"


def signed(value: float | None) -> str:
    """0.695 -> 0.70, -0.2 -> −0.20, from -1 to 1."""
    return MISSING if value is None else f"{value:.2f}".replace("-", "\u2212")


def fine(value: float) -> str:
    """A patch's part of a score, to three digits: 0.01234 -> +0.0123, -0.2 -> −0.2."""
    return f"{value:+.3g}".replace("-", "\u2212") if value else "0"
