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

from app.amounts import (
    MISSING,
    count,
    fine,
    megabytes,
    milliseconds,
    percent,
    points,
    ratio,
    signed,
    small,
)
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


HOVERED = """(maps) => maps.map((map) => {
  const box = map.getBoundingClientRect();
  map.dispatchEvent(new PointerEvent('pointermove', {bubbles: true,
    clientX: box.left + box.width / 2 + 1, clientY: box.top + box.height / 2 + 1}));
  return document.querySelector('#nb-patch').innerText;
})"""


def test_every_number_and_map_of_the_page_is_in_the_files(visitor: Visitor) -> None:
    """Read from the page as it is shown, part by part, and held against the downloads."""
    page, ids = visitor.page, list(visitor.served.service.default_variants())
    page.wait_for_selector("#nb-costs [data-cost=time] >> text=to")
    page.click("#nb-chart summary")
    told = json.loads(download(visitor, "numbers.json"))
    with np.load(io.BytesIO(download(visitor, "maps.npz"))) as archive:
        held = dict(archive)

    # What each model says.
    tops = [top for key in ids for top in told["predictions"][key]["top"]]
    assert visitor.texts("#nb-predictions .nb-name") == [top["class"] for top in tops]
    assert visitor.texts("#nb-predictions .nb-prob") == [percent(top["prob"]) for top in tops]
    changes = [points(t["change"]) for key in ids[1:] for t in told["predictions"][key]["top"]]
    assert visitor.texts("#nb-predictions .nb-change")[-len(changes) :] == changes
    for key, words in zip(ids[1:], page.locator("#nb-predictions .nb-tag").all(), strict=True):
        assert f"{told['predictions'][key]['kl_to_base']:.3f}" in words.inner_text()

    # How far to trust it, in the numbers and as an array.
    names = list(held["trust_names"])
    for row in page.query_selector_all("#nb-attribution tr[data-fact]"):
        fact = row.get_attribute("data-fact")
        for key, cell in zip(ids, row.query_selector_all("td"), strict=True):
            entry = told["attributions"][key]
            value = {
                "parity": entry["served"]["difference"],
                "provider": entry["served"]["provider"],
                "sha256": entry["served"]["sha256"],
            }.get(fact, entry.get(fact))
            shown = {
                "rank_correlation": signed,
                "deletion": signed,
                "insertion": signed,
                "top_overlap": percent,
                "completeness_error": percent,
                "parity": small,
                "steps": str,
                "provider": lambda words: words.removesuffix("ExecutionProvider"),
                "sha256": lambda words: words[:8],
            }[fact]
            assert cell.inner_text() == (MISSING if value is None else shown(value)), (fact, key)
            if fact in names:
                score = held[f"trust/{key}"][names.index(fact)]
                assert np.isnan(score) if value is None else score == value

    # What each layer carries: the numbers, for every quantity, with the maps.
    burdens = {key: told["layers"]["burden"][key] for key in ids}
    for key, table in zip(ids, page.query_selector_all("#nb-chart .nb-tables table"), strict=True):
        cell = burdens[key]
        columns = [[site["value"] for site in cell["sites"]]]
        columns += [cell[name] for name in ("before_retraining", "selection", "stream")]
        columns = [column for column in columns if column is not None]
        assert [td.inner_text() for td in table.query_selector_all("tbody td")] == [
            ratio(value) for row in zip(*columns, strict=True) for value in row
        ]
    assert set(told["layers"]) == {"burden", "load", "residual"}

    # The maps that are drawn, patch by patch.
    site = told["choices"]["layer"], told["choices"]["kind"]
    index = list(held[f"burden_names/{ids[0]}"]).index(f"blocks.{site[0] - 1}.{site[1]}")
    drawn = {
        "#nb-attribution .nb-map": [
            *((held[f"attribution/{key}"], fine) for key in ids),
            *((held[f"difference/{key}"], fine) for key in ids[1:]),
        ],
        "#nb-maps .nb-map": [
            *((2 ** held[f"burden/{key}"][index], ratio) for key in ids),
            *((2 ** held[f"burden_before_retraining/{key}"][index], ratio) for key in ids[1:]),
        ],
    }
    for selector, wanted in drawn.items():
        for (values, words), said in zip(
            wanted, page.eval_on_selector_all(selector, HOVERED), strict=True
        ):
            row, column = (side // 2 for side in values.shape)
            assert f"row {row + 1}, column {column + 1}" in said
            assert words(values[row, column]) in said, said

    # The ablation as it is shown.
    cut = told["ablation"]
    assert visitor.texts("#nb-ablation .nb-prob") == [
        percent(top["prob"]) for top in cut["prediction"]["top"]
    ]
    assert f"{cut['removed']} of {cut['total']} units" in page.inner_text("#nb-ablation")
    values = [site["value"] for site in cut["burdens"]["sites"]]
    most = int(np.nanargmax([np.nan if value is None else value for value in values]))
    assert ratio(values[most]) in page.inner_text("#nb-ablation .nb-cell >> nth=2")
    middle = held[f"ablation/{ids[0]}"][most]
    said = page.eval_on_selector_all("#nb-ablation .nb-map", HOVERED)[0]
    assert ratio(2 ** middle[tuple(side // 2 for side in middle.shape)]) in said

    # What each model costs.
    for key, column in zip(ids, range(len(ids)), strict=True):
        cells = {
            row.get_attribute("data-cost"): row.query_selector_all("td")[column].inner_text()
            for row in page.query_selector_all("#nb-costs tr[data-cost]")
        }
        variant, cost = told["variants"][key], told["costs"][key]
        assert cells["top1"] == percent(variant["metrics"]["top1"])
        assert cells["num_params"].split("\n")[0] == count(variant["num_params"])
        assert cells["macs"].split("\n")[0] == count(variant["macs"])
        assert cells["size_bytes"].split("\n")[0] == megabytes(variant["size_bytes"])
        assert cells["zeros"] == percent(cost["zeros"], 2)
        time = [milliseconds(cost["latency"][name]) for name in ("median", "low", "high")]
        assert cells["time"].replace("\n", " ") == f"{time[0]} {time[1]} to {time[2]}"
        assert cells["kl"] == f"{told['predictions'][key]['kl_to_base']:.3f}"
    for key, said in zip(ids[1:], sorted_by(visitor, ids), strict=True):
        against = told["costs"][key]["latency"]["of_dense"]
        for name in ("median", "low", "high"):
            assert percent(against[name], 0) in said


def sorted_by(visitor: Visitor, ids: list[str]) -> list[str]:
    """Sentences about time in the order of the pruned models, not of how disappointing they are."""
    infos = {info.id: info for info in visitor.served.service.variants()}
    said = visitor.texts("#nb-costs .nb-speeds li")
    return [next(s for s in said if f"“{infos[key].title}”" in s) for key in ids[1:]]


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
    window.context.close()
    window = Visitor(browser, served, f"?variants=nothing,{served.service.default_variants()[0]}")
    assert "names the model 'nothing'" in window.wait("problem")
    # It opens as it does for everybody, and the one sentence is enough.
    assert len(window.texts("#nb-predictions .nb-cell")) == 3
    assert window.page.locator("#nb-variants input:checked").count() == 3
    assert window.texts(".toast-body") == []
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
