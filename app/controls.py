"""The controls of the page: what a visitor can set, and its defaults.

Menus iterate the tables of the service, so a new method or quantity needs no line here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import gallery, text
from app.ablation_view import orders
from app.quantities import QUANTITIES
from app.service import Ablation, Service, VariantInfo
from app.sites import layer_and_kind, quantity_words

UNPLACED: dict[str, Any] = {"render": False}


def html(value: str, name: str, *, js: str | None = None, render: bool = True) -> gr.HTML:
    """A block of our own markup; `js` runs when it appears."""
    return gr.HTML(
        value, js_on_load=js, apply_default_css=False, elem_id=f"nb-{name}-block", render=render
    )


def question_controls(service: Service, examples: Sequence[gallery.Example]) -> dict[str, Any]:
    """What is asked, of which models: controls by name, not yet placed on the page."""
    infos, chosen = service.variants(), service.default_variants()
    datasets = list(dict.fromkeys(info.dataset for info in infos))
    dataset = dataset_of(infos, chosen)
    offered = gallery.of_dataset(examples, dataset)
    return {
        "image": gr.Image(
            str(offered[0].path),
            type="filepath",
            image_mode=None,
            sources=["upload", "webcam", "clipboard"],
            label=text.PHOTO,
            placeholder=text.PHOTO_HINT,
            alt_text=text.PHOTO_ALT,
            height=260,
            buttons=[],
            elem_id="nb-photo",
            **UNPLACED,
        ),
        "examples": html(gallery.strip(offered), "examples", js=gallery.ON_CLICK, render=False),
        "dataset": gr.Radio(
            datasets,
            value=dataset,
            label=text.DATASET,
            info=text.DATASET_HINT,
            visible=len(datasets) > 1,
            elem_id="nb-dataset",
            **UNPLACED,
        ),
        "variants": gr.CheckboxGroup(
            variant_choices(infos, dataset),
            value=list(chosen),
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
    last = last_layer(infos, dataset_of(infos, service.default_variants()))

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
            1, last, value=1, step=1, label=text.LAYER, elem_id="nb-layer", **UNPLACED
        ),
        "kind": radio(
            text.SITE,
            "kind",
            [(words, key) for key, words in text.SITE_KINDS.items()],
            value="mlp",
            info=text.SITE_HINT,
        ),
    } | _cut_controls(service)


def _cut_controls(service: Service) -> dict[str, Any]:
    """What is turned off of the dense model."""
    infos, default = service.variants(), Ablation()
    dataset = dataset_of(infos, service.default_variants())
    return {
        "cut_layers": gr.CheckboxGroup(
            layer_choices(infos, dataset),
            label=text.CUT_LAYERS,
            info=text.CUT_LAYERS_HINT,
            elem_id="nb-cut-layers",
            **UNPLACED,
        ),
        "cut_kinds": gr.CheckboxGroup(
            [(words, key) for key, words in text.SITE_KINDS.items()],
            value=list(default.kinds),
            label=text.CUT_KINDS,
            elem_id="nb-cut-kinds",
            **UNPLACED,
        ),
        "cut_share": gr.Slider(
            0,
            100,
            value=round(100 * default.share),
            step=5,
            label=text.CUT_SHARE,
            info=text.CUT_SHARE_HINT,
            elem_id="nb-cut-share",
            **UNPLACED,
        ),
        "cut_order": gr.Dropdown(
            orders(infos, dataset),
            value=default.order,
            label=text.CUT_ORDER,
            elem_id="nb-cut-order",
            **UNPLACED,
        ),
    }


def layer_choices(infos: Sequence[VariantInfo], dataset: str) -> list[tuple[str, int]]:
    """Layers of the dense model of a data set, counted from one."""
    sites = next((i.site_names for i in infos if i.dataset == dataset and i.base is None), ())
    layers = sorted({layer_and_kind(site)[0] for site in sites})
    return [(str(layer), layer) for layer in layers]


def last_layer(infos: Sequence[VariantInfo], dataset: str) -> int:
    """Last layer of the deepest model of a data set; at least 2, as a slider has two ends."""
    sites = [site for info in infos if info.dataset == dataset for site in info.site_names]
    return max([2, *(layer_and_kind(site)[0] for site in sites)])


def for_quantity(quantity: str) -> dict[str, Any]:
    """How the choice of a layer's part stands while a quantity is shown: without use for one that
    layers have only as a whole."""
    parted = not QUANTITIES[quantity].of_blocks
    return gr.update(interactive=parted, info=text.SITE_HINT if parted else text.SITE_NONE)


def dataset_of(infos: Sequence[VariantInfo], chosen: Sequence[str]) -> str:
    """Data set of the chosen models, or of the first one served."""
    known = [info.dataset for info in infos if info.id in chosen] or [i.dataset for i in infos]
    return known[0] if known else ""


def variant_choices(infos: Sequence[VariantInfo], dataset: str) -> list[tuple[str, str]]:
    """Words and ids of the models that can be compared with each other."""
    return [(info.title, info.id) for info in infos if info.dataset == dataset]


def target_choices(infos: Sequence[VariantInfo], chosen: Sequence[str]) -> list[tuple[str, str]]:
    """Words and values of the classes that can be explained: those the chosen models know."""
    classes: Sequence[str] = next((info.classes for info in infos if info.id in chosen), ())
    return [
        (text.TARGET_BASE, "base"),
        (text.TARGET_OWN, "own"),
        *((name, name) for name in classes),
    ]
