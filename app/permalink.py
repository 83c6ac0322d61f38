"""What a page shows <-> the query of an address; only packed photos have a name to put there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from app import text
from app.ablation import Ablation
from app.errors import UserError
from app.visit import Choices

PLAIN = ("method", "target", "quantity", "kind")
"""Choices that stand in the query as they are."""
PHOTOS = ("example", "flip")
CUT = ("cut_layers", "cut_kinds", "cut_share", "cut_order")
MOST_NAMED = 8
"""Of what a refused link might have asked for."""
NONE = "none"
"""Stands for an empty list, which a query cannot hold."""


@dataclass(frozen=True, kw_only=True)
class View:
    """All that an address can bring back."""

    choices: Choices
    example: str | None = None
    """Name of a packed example photo."""
    flip: str | None = None
    """Data set and name of a packed photo of Flips, as in imagenette/n03417042_5752.JPEG."""
    cut: Ablation = field(default_factory=Ablation)
    """What is turned off of the dense model."""


def query_of(view: View) -> str:
    """The query that restores a view: variants, photo and all that was chosen; no photo where it is
    a visitor's own, which has no name."""
    choices, cut = view.choices, view.cut
    values = {"variants": ",".join(choices.variants)}
    values |= {name: getattr(choices, name) for name in PLAIN}
    values |= {"layer": str(choices.layer)}
    values |= {"before": "1"} if choices.before else {}
    values |= {name: photo for name in PHOTOS if (photo := getattr(view, name))}
    shown = {
        "cut_layers": ",".join(map(str, cut.layers or ())),
        "cut_kinds": ",".join(cut.kinds) or NONE,
        "cut_share": f"{100 * cut.share:g}",
        "cut_order": cut.order,
    }
    values |= {} if cut == Ablation() else {name: value for name, value in shown.items() if value}
    return "?" + urlencode(values, safe=",/")


def view_of(
    query: Mapping[str, str], defaults: Choices, menus: Mapping[str, Sequence[str]]
) -> View | None:
    """What a query asks for, None if it asks for nothing.

    Args:
        query: Of the page's address; parameters of others are left alone.
        defaults: What holds where the query is silent.
        menus: What may be asked for, by parameter: names of packed photos under "example", ids of
            models under "variants". The service itself refuses unknown photos of Flips.

    Raises:
        UserError: If something is asked for that is not to be had.
    """
    known = (*PLAIN, *PHOTOS, *CUT, "variants", "layer", "before")
    asked = {name: query[name] for name in known if query.get(name)}
    if not asked:
        return None
    chosen = [name for name in asked.get("variants", "").split(",") if name]
    if strange := [name for name in chosen if name not in menus.get("variants", chosen)]:
        raise UserError(text.ERROR_LINK_MODEL.format(model=strange[0]))
    for what in set(menus) & set(asked) - {"variants"}:
        if asked[what] not in menus[what]:
            named = [*menus[what][:MOST_NAMED], *["…"] * (len(menus[what]) > MOST_NAMED)]
            raise UserError(
                text.ERROR_LINK_VALUE.format(what=what, value=asked[what], known=", ".join(named))
            )
    return View(
        choices=replace(
            defaults,
            variants=chosen or defaults.variants,
            before=query.get("before") == "1",
            layer=_layer(asked.get("layer", str(defaults.layer))),
            **{name: asked[name] for name in PLAIN if name in asked},
        ),
        example=asked.get("example"),
        flip=asked.get("flip"),
        cut=_cut(asked),
    )


def _layer(words: str) -> int:
    if not words.isascii() or not words.isdigit() or int(words) < 1:
        raise UserError(text.ERROR_LINK_LAYER.format(layer=words))
    return int(words)


def _cut(asked: Mapping[str, str]) -> Ablation:
    default = Ablation()
    layers = tuple(_layer(words) for words in asked.get("cut_layers", "").split(",") if words)
    kinds = tuple(asked.get("cut_kinds", ",".join(default.kinds)).split(","))
    for kind in kinds:
        if kind not in (*text.SITE_KINDS, NONE):
            raise UserError(text.ERROR_CUT_KIND.format(kind=kind))
    return Ablation(
        layers=layers or None,
        kinds=tuple(kind for kind in kinds if kind != NONE),
        share=_percent(asked.get("cut_share", f"{100 * default.share:g}")) / 100,
        order=asked.get("cut_order", default.order),
    )


def _percent(words: str) -> int:
    if not words.isascii() or not words.isdigit() or int(words) > 100:
        raise UserError(text.ERROR_LINK_SHARE.format(share=words))
    return int(words)
