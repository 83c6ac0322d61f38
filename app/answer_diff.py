"""Two answers of the API -> whether they say the same, but for rounding and what must differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VOLATILE = {"latency_ms"}
"""Measured anew in every answer."""
TOLERANCE = 1e-3
"""Photos that ran in one batch are summed in another order; a map's ranks follow its last bits."""


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far an answer is from another."""

    largest: float
    """Largest difference of two numbers, absolute or relative, whichever is less."""
    where: str | None
    """First place that is not the same; None where the answers agree."""


def deviation(found: Any, wanted: Any) -> Deviation:
    """Hold an answer against what it should be.

    Args:
        found: JSON.
        wanted: JSON; files are not compared, since each answer has its own.
    """
    largest, where = 0.0, None
    pending: list[tuple[str, Any, Any]] = [("", found, wanted)]
    while pending:
        path, one, other = pending.pop()
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if one.keys() != other.keys():
                return Deviation(largest=largest, where=f"{path}: keys")
            if "path" not in one:
                pending += [(f"{path}.{k}", one[k], other[k]) for k in one if k not in VOLATILE]
        elif _is_list(one) and _is_list(other):
            if len(one) != len(other):
                return Deviation(largest=largest, where=f"{path}: length")
            pending += [
                (f"{path}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))
            ]
        elif _is_number(one) and _is_number(other):
            apart = abs(one - other) / max(1.0, abs(other))
            largest = max(largest, apart)
            if not apart <= TOLERANCE:
                where = where or f"{path}: {one} instead of {other}"
        elif one != other:
            where = where or f"{path}: {one!r} instead of {other!r}"
    return Deviation(largest=largest, where=where)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
