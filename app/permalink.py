"""What a page shows <-> the query of an address; only packed photos have a name to put there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlencode

from app import text
from app.errors import UserError
from app.visit import Choices

PLAIN = ("method", "target", "quantity", "kind")
"""Choices that stand in the query as they are."""


def query_of(choices: Choices, example: str | None) -> str:
    """The query that restores a view: variants, photo and all that was chosen.

    Args:
        choices: What is shown.
        example: Name of the packed photo; None for a visitor's own, which no link holds.
    """
    values = {"variants": ",".join(choices.variants)}
    values |= {name: getattr(choices, name) for name in PLAIN}
    values |= {"layer": str(choices.layer)}
    values |= {"before": "1"} if choices.before else {}
    values |= {"example": example} if example else {}
    return "?" + urlencode(values, safe=",")


def choices_of(
    query: Mapping[str, str], defaults: Choices, menus: Mapping[str, Sequence[str]]
) -> tuple[Choices, str | None] | None:
    """What a query asks for, None if it asks for nothing.

    Args:
        query: Of the page's address; parameters of others are left alone.
        defaults: What holds where the query is silent.
        menus: What may be asked for, by parameter: names of packed photos under "example". The
            service itself refuses unknown variants.

    Raises:
        UserError: If something is asked for that is not to be had.
    """
    asked = {name: query[name] for name in PLAIN if query.get(name)}
    known = {"variants", "layer", "before", "example"}
    if not asked and not any(query.get(name) for name in known):
        return None
    example = query.get("example") or None
    for what, value in (asked | ({"example": example} if example else {})).items():
        if value not in menus.get(what, (value,)):
            raise UserError(
                text.ERROR_LINK_VALUE.format(what=what, value=value, known=", ".join(menus[what]))
            )
    layer = query.get("layer") or str(defaults.layer)
    if not layer.isascii() or not layer.isdigit() or int(layer) < 1:
        raise UserError(text.ERROR_LINK_LAYER.format(layer=layer))
    chosen = [name for name in (query.get("variants") or "").split(",") if name]
    return (
        replace(
            defaults,
            variants=chosen or defaults.variants,
            before=query.get("before") == "1",
            layer=int(layer),
            **asked,
        ),
        example,
    )
