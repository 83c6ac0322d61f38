"""What a person takes along from the page: its files, and a link that brings the view back."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.amounts import percent
from app.gallery import read_examples
from tests.app.folders import ids_by_mitigation
from tests.app.serving import Served, serve
from tests.app.visitor import Visitor

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.fixture
def visitor(browser: Any, served: Served) -> Iterator[Visitor]:
    window = Visitor(browser, served)
    yield window
    window.context.close()


def download(visitor: Visitor, name: str) -> bytes:
    with visitor.page.expect_download() as waiting:
        visitor.page.click(f".nb-take a[download='{name}']")
    assert waiting.value.suggested_filename == name
    return Path(waiting.value.path()).read_bytes()


def test_downloads_hold_what_the_page_shows(visitor: Visitor) -> None:
    found = json.loads(download(visitor, "numbers.json"))
    probs = [percent(top["prob"]) for p in found["predictions"].values() for top in p["top"]]
    assert visitor.texts("#nb-predictions .nb-prob") == probs
    before = visitor.page.get_attribute("#nb-attribution .nb-cell img", "src")
    visitor.page.click("#nb-method input[value='saliency']")
    visitor.page.wait_for_function(
        "old => document.querySelector('#nb-attribution .nb-cell img')?.src !== old", arg=before
    )
    visitor.page.wait_for_selector("#nb-link[href*='method=saliency']")
    again = json.loads(download(visitor, "numbers.json"))
    assert again["choices"]["method"] == "saliency"
    with np.load(io.BytesIO(download(visitor, "maps.npz"))) as maps:
        for key, cell in again["attributions"].items():
            assert maps[f"attribution/{key}"].tolist() == cell["values"]
    picture = Image.open(io.BytesIO(download(visitor, "comparison.png")))
    assert picture.width > picture.height / 4 > 100


def test_a_link_brings_the_view_back(
    browser: Any, served: Served, visitor: Visitor, tiny_checkpoints: Path
) -> None:
    ids = ids_by_mitigation(tiny_checkpoints)
    target = served.service.variants()[0].classes[-1]
    query = (
        f"?variants={ids['dense']},{ids['token_merging']}&method=input_x_gradient"
        f"&target={target}&quantity=load&kind=attn&layer=2&example=n03028079_5942"
    )
    first = Visitor(browser, served, query)
    made = first.page.get_attribute("#nb-link", "href")
    second = Visitor(browser, served, f"/{made}")
    for window in (first, second):
        page = window.page
        assert page.eval_on_selector_all(
            "#nb-variants input:checked", "all => all.map(i => i.value ?? i.name)"
        )
        assert len(window.texts("#nb-predictions .nb-cell")) == 2
        assert page.is_checked("#nb-method input[value='input_x_gradient']")
        assert page.is_checked("#nb-quantity input[value='load']")
        assert page.is_checked("#nb-kind input[value='attn']")
        assert page.input_value("#nb-layer input[type=number]") == "2"
        assert page.input_value("#nb-target input") == target
        assert f"for “{target}”" in page.inner_text("#nb-attribution")
        assert "layer 2, attention" in page.inner_text("#nb-maps")
        image = served.service.load_image(
            next(e.path for e in read_examples() if e.name == "n03028079_5942")
        )
        answer = served.service.predict(image, [ids["dense"], ids["token_merging"]])
        assert window.texts("#nb-predictions .nb-prob") == [
            percent(top.prob) for cell in answer.values() for top in cell.top
        ]
        assert window.page.get_attribute("#nb-link", "href") == made
    first.context.close()
    second.context.close()


def test_a_link_to_what_is_not_there_says_so(browser: Any, served: Served) -> None:
    window = Visitor(browser, served, "?example=nothing")
    assert "available: n02102040_810" in window.wait("problem")
    window.mark()
    window.page.click("#nb-compare")
    window.wait()
    assert len(window.texts("#nb-predictions .nb-cell")) == 3
    window.context.close()


def test_a_visitors_own_photo_is_in_no_link(visitor: Visitor, tmp_path: Path) -> None:
    path = tmp_path / "own.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    visitor.upload(path)
    visitor.wait()
    visitor.page.wait_for_selector(".nb-take p >> text=Your own photo stays with you")
    assert "example" not in visitor.page.get_attribute("#nb-link", "href")
