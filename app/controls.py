"""The controls of the page: what a visitor can set, and its defaults.

Menus iterate the tables of the service, so a new method or quantity needs no line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import gallery, text
from app.quantities import QUANTITIES
from app.service import Service, VariantInfo
from app.sites import quantity_words

UNPLACED: dict[str, Any] = {"render": False}


def html(value: str, name: str, *, js: str | None = None, render: bool = True) -> gr.HTML:
    """A block of our own markup; `js` runs when it appears."""
    return gr.HTML(
        value, js_on_load=js, apply_default_css=False, elem_id=f"nb-{name}-block", render=render
    )


def question_controls(service: Service, examples: Sequence[gallery.Example]) -> dict[str, Any]:
    """What is asked, of which models: controls by name, not yet placed on the page."""
    infos = service.variants()
    several = len({info.dataset for info in infos}) > 1
    titles = {info.id: f"{info.dataset}: {info.title}" if several else info.title for info in infos}
    return {
        "image": gr.Image(
            str(examples[0].path),
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            label=text.PHOTO,
            placeholder=text.PHOTO_HINT,
            alt_text=text.PHOTO_ALT,
            height=260,
            buttons=[],
            elem_id="nb-photo",
            **UNPLACED,
        ),
        "examples": html(gallery.strip(examples), "examples", js=gallery.ON_CLICK, render=False),
        "variants": gr.CheckboxGroup(
            [(titles[info.id], info.id) for info in infos],
            value=list(service.default_variants()),
            label=text.VARIANTS,
            info=text.VARIANTS_HINT,
            elem_id="nb-variants",
            **UNPLACED,
        ),
        "before": gr.Checkbox(
            False, label=text.BEFORE, info=text.BEFORE_HINT, elem_id="nb-before", **UNPLACED
        ),
        "compare": gr.Button(text.COMPARE, variant="primary", elem_id="nb-compare", **UNPLACED),
    }


def answer_controls(service: Service) -> dict[str, Any]:
    """What is shown of the answers: controls by name, not yet placed on the page."""
    infos, methods = service.variants(), service.attribution_methods()
    layers = max((len(info.site_names) for info in infos), default=4) // 2

    def radio(label: str, name: str, choices: list[tuple[str, str]], **options: Any) -> gr.Radio:
        return gr.Radio(choices, label=label, elem_id=f"nb-{name}", **UNPLACED, **options)

    return {
        "method": radio(
            text.METHOD,
            "method",
            [(f"{m.title} ({m.cost})", m.name) for m in methods],
            value=methods[0].name,
            scale=2,
        ),
        "target": gr.Dropdown(
            target_choices(infos, service.default_variants()),
            value="base",
            label=text.TARGET,
            elem_id="nb-target",
            scale=1,
            min_width=260,
            **UNPLACED,
        ),
        "quantity": radio(
            text.QUANTITY,
            "quantity",
            [(quantity_words(name), name) for name in QUANTITIES],
            value="burden",
        ),
        "layer": gr.Slider(
            1, max(layers, 2), value=1, step=1, label=text.LAYER, elem_id="nb-layer", **UNPLACED
        ),
        "kind": radio(
            text.SITE,
            "kind",
            [(words, key) for key, words in text.SITE_KINDS.items()],
            value="mlp",
            info=text.SITE_HINT,
        ),
    }


def target_choices(infos: Sequence[VariantInfo], chosen: Sequence[str]) -> list[tuple[str, str]]:
    """Words and values of the classes that can be explained: those the chosen models know."""
    classes: Sequence[str] = next((info.classes for info in infos if info.id in chosen), ())
    return [
        (text.TARGET_BASE, "base"),
        (text.TARGET_OWN, "own"),
        *((name, name) for name in classes),
    ]
