"""The page without a mouse, without eyes on it, and on a small screen; axe-core finds the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from app.amounts import percent
from app.gallery import read_examples
from tests.app.serving import Served, serve
from tests.app.visitor import DESKTOP, PHONE, Visitor

pytestmark = pytest.mark.browser

SETTLED = """() => Promise.allSettled(document.getAnimations()
  .filter((a) => a.effect.getComputedTiming().iterations !== Infinity).map((a) => a.finished))"""
GRAVE = {"serious", "critical"}


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


def grave(page: Any) -> list[str]:
    """Violations that lock people out, by rule and place."""
    # What is still fading in is pale for a moment.
    page.evaluate(SETTLED)
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:160]}"
        for rule in found
        if rule["impact"] in GRAVE
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_grave(
    browser: Any, served: Served, scheme: str, window: dict[str, int]
) -> None:
    visitor = Visitor(browser, served, viewport=window, color_scheme=scheme)
    page = visitor.page
    assert page.evaluate("document.documentElement.lang") == "en"
    for summary in page.query_selector_all("#nb-page details summary"):
        if summary.is_visible():
            summary.click()
    page.click("#nb-sheets button")
    page.wait_for_selector("#nb-sheets img")
    assert grave(page) == []
    # A failure is read out as well as a result.
    page.click("#nb-variants label:has(input:checked) >> nth=0")
    page.click("#nb-variants label:has(input:checked) >> nth=0")
    visitor.mark()
    page.click("#nb-compare")
    visitor.wait("problem")
    assert grave(page) == []
    visitor.context.close()


def test_axe_would_find_a_picture_without_words(browser: Any, served: Served) -> None:
    visitor = Visitor(browser, served)
    visitor.page.eval_on_selector("#nb-maps img", "image => image.removeAttribute('alt')")
    assert any(said.startswith("image-alt") for said in grave(visitor.page))
    visitor.context.close()


class Keyboard:
    """Somebody who only has keys."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def reach(self, selector: str, *, most: int = 80) -> None:
        """Press Tab until the focus is there."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate(
                "selector => !!document.activeElement?.closest(selector)", selector
            ):
                return
        raise AssertionError(f"{selector} is not reached by Tab")

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)


@pytest.fixture
def visitor(browser: Any, served: Served) -> Iterator[Visitor]:
    window = Visitor(browser, served)
    yield window
    window.context.close()


def test_everything_is_done_with_keys_alone(visitor: Visitor, served: Served) -> None:
    page, keys = visitor.page, Keyboard(visitor.page)
    keys.reach("[data-example='n03028079_5942']")
    visitor.mark()
    keys.press("Enter")
    visitor.wait()
    keys.reach("#nb-variants input")
    keys.reach("#nb-before input")
    visitor.mark()
    keys.press("Space")
    visitor.wait()
    image = served.service.load_image(
        next(e.path for e in read_examples() if e.name == "n03028079_5942")
    )
    cut = served.service.predict(image, before_retraining=True)
    assert visitor.texts("#nb-predictions .nb-prob") == [
        percent(top.prob) for cell in cut.values() for top in cell.top
    ]
    keys.reach("#nb-compare")
    keys.reach(".nb-take a[download='numbers.json']")
    with page.expect_download():
        keys.press("Enter")
    keys.reach("#nb-method input")
    before = page.get_attribute("#nb-attribution .nb-cell img", "src")
    keys.press("ArrowRight")
    page.wait_for_function(
        "old => document.querySelector('#nb-attribution .nb-cell img')?.src !== old", arg=before
    )
    keys.reach("#nb-attribution .nb-map")
    keys.press("ArrowRight")
    assert "row 1, column 1" in page.inner_text("#nb-patch")
    keys.reach("#nb-chart [data-layer]")
    keys.press("Enter")
    page.wait_for_selector("#nb-maps >> text=layer 1")
    keys.press("Tab")
    keys.press("Enter")
    page.wait_for_selector("#nb-maps >> text=layer 2")
    keys.reach("#nb-layer input")
    keys.reach("#nb-maps .nb-map")
    keys.press("Enter")
    assert page.locator("#nb-maps .nb-map:visible").count() == 1
    keys.reach("#nb-cut-share input")


def test_focus_can_be_seen(visitor: Visitor) -> None:
    keys = Keyboard(visitor.page)
    for selector in ("[data-example]", ".nb-take a", "#nb-attribution .nb-map", ".nb-term"):
        keys.reach(selector)
        outline = visitor.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", selector


def test_words_of_the_trade_explain_themselves(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#nb-chart summary")
    explained: dict[str, str] = {}
    for element in page.query_selector_all(".nb-term"):
        tip = element.query_selector(".nb-tip").text_content()
        explained[element.text_content().removesuffix(tip).strip()] = tip
        assert element.get_attribute("tabindex") == "0"
    assert min(len(tip) for tip in explained.values()) > 20
    said = " | ".join(explained)
    for word in ("dense", "handoff", "KL divergence", "Insertion", "attention", "MLP", "hollow"):
        assert word in said, (word, sorted(explained))
    for word in ("selection", "signal", "units", "ONNX", "Sum misses by"):
        assert word in said, (word, sorted(explained))
    # What the controls ask and what the table of costs names is explained in full beside it.
    for label in page.query_selector_all("#nb-costs th[scope=row]"):
        assert label.query_selector("small").inner_text()
    assert "multiply-adds" in page.inner_text("#nb-variants")
    assert "Burden: how hard" in page.inner_text("#nb-chart")
