"""What the page offers before anything is computed: menus, defaults, and what they follow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app import gallery
from app.attribution import ATTRIBUTIONS
from app.controls import (
    answer_controls,
    for_quantity,
    last_layer,
    question_controls,
    target_choices,
    variant_choices,
)
from app.first_view import Beforehand
from app.quantities import QUANTITIES
from app.service import Service
from app.takeaway import Takeaway
from app.ui import build_page, in_turn
from tests.app.folders import ids_by_mitigation
from tests.app.serving import serve


@pytest.fixture(scope="module")
def service(tiny_checkpoints: Path) -> Service:
    return serve(tiny_checkpoints).service


@pytest.fixture(scope="module")
def components(service: Service) -> dict[str, Any]:
    first = Beforehand(service, gallery.read_examples())
    page = build_page(service, Takeaway(service), first, concurrency=1)
    return {block.elem_id: block for block in page.blocks.values() if block.elem_id}


def values(menu: Any) -> list[str]:
    return [value for _, value in menu.choices]


def test_menus_hold_all_that_is_registered(components: dict[str, Any]) -> None:
    assert set(values(components["nb-method"])) == set(ATTRIBUTIONS)
    assert values(components["nb-quantity"]) == list(QUANTITIES)
    assert components["nb-method"].value == "integrated_gradients"
    assert components["nb-quantity"].value == "burden"


def test_default_models_are_dense_none_and_handoff(
    components: dict[str, Any], tiny_checkpoints: Path
) -> None:
    ids = ids_by_mitigation(tiny_checkpoints)
    assert components["nb-variants"].value == [ids["dense"], ids["none"], ids["handoff"]]
    assert set(values(components["nb-variants"])) == set(ids.values())


def test_any_class_can_be_explained_after_the_two_shorthands(
    components: dict[str, Any], service: Service
) -> None:
    classes = list(service.variants()[0].classes)
    assert values(components["nb-target"]) == ["base", "own", *classes]


def test_models_of_another_dataset_are_offered_apart(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = service.variants()
    foreign = replace(first, id="foreign", dataset="cifar10", classes=("0", "1"))
    infos = (first, *others, foreign)
    monkeypatch.setattr(service, "variants", lambda: infos)
    with gr.Blocks():
        controls = question_controls(service, gallery.read_examples())
        targets = answer_controls(service)["target"]
    assert values(controls["dataset"]) == [first.dataset, "cifar10"]
    assert controls["dataset"].visible
    assert "foreign" not in values(controls["variants"])
    assert variant_choices(infos, "cifar10") == [("dense", "foreign")]
    assert values(targets) == ["base", "own", *first.classes]
    assert [value for _, value in target_choices(infos, ["foreign"])] == ["base", "own", "0", "1"]


def test_one_dataset_is_no_choice(components: dict[str, Any]) -> None:
    assert not components["nb-dataset"].visible


def test_examples_are_those_that_the_models_know() -> None:
    examples = gallery.read_examples()
    assert {e.dataset for e in examples} == {"imagenette", "cifar10"}
    assert {e.dataset for e in gallery.of_dataset(examples, "cifar10")} == {"cifar10"}
    assert gallery.of_dataset(examples, "shapes") == examples


def test_layers_of_the_deepest_model_can_be_reached(
    components: dict[str, Any], service: Service
) -> None:
    deepest = max(len(info.site_names) for info in service.variants())
    assert (components["nb-layer"].minimum, components["nb-layer"].maximum) == (1, deepest / 2)


def test_the_layer_slider_ends_with_the_models_of_its_data_set(service: Service) -> None:
    first, *others = service.variants()
    foreign = replace(first, id="f", dataset="cifar10", site_names=("blocks.0.attn", "blocks.3"))
    infos = (first, *others, foreign)
    assert last_layer(infos, "cifar10") == 4
    assert last_layer(infos, first.dataset) == len(first.site_names) // 2
    # A slider cannot begin and end at the same place.
    one = replace(foreign, site_names=("blocks.0.attn",))
    assert last_layer((one,), "cifar10") == 2


def test_the_part_of_a_layer_cannot_be_chosen_where_there_are_none() -> None:
    shown = {name: for_quantity(name)["interactive"] for name in QUANTITIES}
    assert shown == {"burden": True, "load": True, "residual": False}


def test_examples_are_small_described_and_sourced() -> None:
    examples = gallery.read_examples()
    assert len({example.path for example in examples}) == len(examples) >= 10
    assert {path.suffix for path in gallery.FOLDER.iterdir()} == {".JPEG", ".json", ".md"}
    assert {e.path for e in examples} == set(gallery.FOLDER.glob("*.JPEG"))
    assert sum(path.stat().st_size for path in gallery.FOLDER.iterdir()) < 500_000
    said = (gallery.FOLDER / "README.md").read_text()
    assert "Imagenette" in said
    assert "Apache-2.0" in said
    strip = gallery.strip(examples)
    assert all(f'alt="{example.alt}"' in strip for example in examples)
    assert all(f'data-example="{example.name}"' in strip for example in examples)
    assert "CIFAR-10" in said


def test_original_bytes_reach_the_service_not_what_gradio_makes_of_them(
    components: dict[str, Any],
) -> None:
    box = components["nb-photo"]
    assert (box.type, box.image_mode) == ("filepath", None)
    assert box.sources == ["upload", "webcam", "clipboard"]


def test_steps_take_a_place_each_and_hold_none_between() -> None:
    places = threading.BoundedSemaphore(1)

    def steps() -> Iterator[dict[str, Any]]:
        for number in range(2):
            assert not places.acquire(blocking=False)
            yield {"part": number}

    found = []
    for parts in in_turn(steps(), places):
        found.append(parts)
        assert places.acquire(blocking=False)
        places.release()
    assert found == [{"part": 0}, {"part": 1}]
