"""Which colour and shape a model has in every plot: colour tells the mitigation, shape the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app import text_models as text
from app.plot import HUES, SHAPES
from app.records import Record

PLAIN = "none"
"""The mitigation that adds nothing; it has the colour of text."""
DENSE_SHAPE = "nb-diamond"


def mitigation_words(name: str | None) -> str:
    """A mitigation as plots and tables call it."""
    return (
        text.NO_MITIGATION
        if name in (None, PLAIN)
        else str(name).replace("_", " ").replace("+", " + ")
    )


def host_words(name: str | None) -> str:
    """A host as plots and tables call it."""
    return text.DENSE if name is None else name.replace("_", " ")


def hues_of(mitigations: Iterable[str]) -> dict[str, str]:
    """Colour class by mitigation, in the order in which they are met."""
    others = [name for name in dict.fromkeys(mitigations) if name != PLAIN]
    return {PLAIN: HUES[0]} | {name: HUES[1 + k % (len(HUES) - 1)] for k, name in enumerate(others)}


class Styles:
    """Classes of marks, the same in every plot of one set of models."""

    def __init__(self, records: Sequence[Record]) -> None:
        pruned = [r.variant for r in records if r.variant.base is not None]
        hosts = dict.fromkeys(variant.pruner for variant in pruned)
        shapes = [shape for shape in SHAPES if shape != DENSE_SHAPE]
        self._shapes = {host: shapes[k % len(shapes)] for k, host in enumerate(hosts)}
        self._hues = hues_of(variant.mitigation or PLAIN for variant in pruned)

    @property
    def mitigations(self) -> tuple[str, ...]:
        """In the order of their colours."""
        return tuple(self._hues)

    def of(self, record: Record) -> str:
        """Classes of a model's marks."""
        variant = record.variant
        if variant.base is None:
            return f"{DENSE_SHAPE} {HUES[0]}"
        return f"{self._shapes[variant.pruner]} {self._hues[variant.mitigation or PLAIN]}"

    def key(self) -> list[tuple[str, str]]:
        """What each shape and each colour means."""
        shapes = [(f"{shape} {HUES[0]}", host_words(host)) for host, shape in self._shapes.items()]
        hues = [(f"nb-patch {hue}", mitigation_words(name)) for name, hue in self._hues.items()]
        return [(f"{DENSE_SHAPE} {HUES[0]}", text.DENSE), *shapes, *hues]
