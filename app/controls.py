"""The controls of the page: what a visitor can set, and its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import gallery, text
from app.quantities import QUANTITIES
from app.service import Service
from app.sites import quantity_words


def html(value: str, name: str, *, js: str | None = None, render: bool = True) -> gr.HTML:
    """A block of our own markup; `js` runs when it appears."""
    return gr.HTML(
        value, js_on_load=js, apply_default_css=False, elem_id=f"nb-{name}-block", render=render
    )


def controls(service: Service, examples: Sequence[gallery.Example]) -> dict[str, Any]:
    """All controls by name, not yet placed on the page; menus iterate the tables of the service."""
    infos, chosen = service.variants(), list(service.default_variants())
    several = len({info.dataset for info in infos}) > 1
    titles = {info.id: f"{info.dataset}: {info.title}" if several else info.title for info in infos}
    classes = next((info.classes for info in infos if info.id in chosen), ())
    methods = service.attribution_methods()
    layers = max((len(info.site_names) for info in infos), default=4) // 2
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
            render=False,
        ),
        "examples": html(gallery.strip(examples), "examples", js=gallery.ON_CLICK, render=False),
        "variants": gr.CheckboxGroup(
            [(titles[info.id], info.id) for info in infos],
            value=chosen,
            label=text.VARIANTS,
            info=text.VARIANTS_HINT,
            elem_id="nb-variants",
            render=False,
        ),
        "before": gr.Checkbox(
            False, label=text.BEFORE, info=text.BEFORE_HINT, elem_id="nb-before", render=False
        ),
        "compare": gr.Button(text.COMPARE, variant="primary", elem_id="nb-compare", render=False),
        "method": gr.Radio(
            [(method.title, method.name) for method in methods],
            value=methods[0].name,
            label=text.METHOD,
            elem_id="nb-method",
            render=False,
        ),
        "target": gr.Dropdown(
            [(text.TARGET_BASE, "base"), (text.TARGET_OWN, "own"), *((c, c) for c in classes)],
            value="base",
            label=text.TARGET,
            elem_id="nb-target",
            render=False,
        ),
        "quantity": gr.Radio(
            [(quantity_words(name), name) for name in QUANTITIES],
            value="burden",
            label=text.QUANTITY,
            elem_id="nb-quantity",
            render=False,
        ),
        "layer": gr.Slider(
            1,
            max(layers, 2),
            value=1,
            step=1,
            label=text.LAYER,
            elem_id="nb-layer",
            render=False,
        ),
        "kind": gr.Radio(
            [(words, key) for key, words in text.SITE_KINDS.items()],
            value="mlp",
            label=text.SITE,
            info=text.SITE_HINT,
            elem_id="nb-kind",
            render=False,
        ),
    }
