"""Models and Study in a real Chromium: opened, sorted, hovered, on a phone and in the dark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.amounts import percent
from tests.app.folders import copy_of, edit_manifest
from tests.app.serving import Served, serve
from tests.app.study_folder import write_study
from tests.app.test_browser_access import grave

pytestmark = pytest.mark.browser

WAIT_MS = 60_000
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The tiny models, a dense one of another data set, two studies and a bench."""
    folder = copy_of(tiny_checkpoints, tmp_path_factory.mktemp("tabs"))

    def add(data: dict[str, Any]) -> None:
        other = json.loads(json.dumps(data["variants"][0]))
        data["variants"].append(other | {"id": "other-dense", "dataset": "other"})

    edit_manifest(folder, add)
    write_study(folder, "by-hand")
    write_study(folder, "a-tuning", tuning=True)
    ids = [entry["id"] for entry in json.loads((folder / "manifest.json").read_text())["variants"]]
    cells = [
        {"contender": "served", "precision": "fp32", "place": "host", "batch": batch}
        | {"variant": name, "ms": batch + k, "ms_iqr": [batch, batch + k + 1]}
        for batch in (1, 8)
        for k, name in enumerate(ids[:3])
    ]
    (folder / "bench").mkdir()
    report = {"device": "a card", "command": "bench", "commit": "abc", "cells": cells}
    (folder / "bench" / "serve-card.json").write_text(json.dumps(report))
    return serve(folder)


class Window:
    """A browser window at one tab."""

    def __init__(self, browser: Any, served: Served, tab: str, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": DESKTOP} | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(served.url)
        # The first tab answers as if there were no others.
        self.page.wait_for_selector(".nb-done")
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def texts(self, selector: str) -> list[str]:
        return [element.inner_text() for element in self.page.query_selector_all(selector)]

    def choose(self, menu: str, words: str) -> None:
        self.page.click(f"#{menu} input")
        self.page.click(f"[role=option]:has-text('{words}')")

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@pytest.fixture
def open_at(browser: Any, served: Served) -> Iterator[Callable[..., Window]]:
    windows: list[Window] = []

    def opened(tab: str, **options: Any) -> Window:
        windows.append(Window(browser, served, tab, **options))
        return windows[-1]

    yield opened
    for window in windows:
        window.context.close()


def test_models_are_shown_with_the_numbers_of_the_manifest(
    open_at: Callable[..., Window], served: Served
) -> None:
    window = open_at("Models")
    page = window.page
    page.wait_for_selector("#nb-time-block .nb-speeds li")
    records = [r for r in served.service.records() if r.variant.dataset != "other"]
    assert [row.split()[0] for row in window.texts("td[data-column=top1]")] == [
        percent(r.variant.metrics["top1"]).split()[0] for r in records
    ]
    assert page.locator(".nb-tree [data-variant]").count() == len(records)
    assert page.locator(".nb-kept figure").count() == len(records)
    assert page.locator("#nb-macs-block .nb-point").count() == len(records)
    assert page.locator("#nb-time-block .nb-point").count() == len(records)
    assert page.locator("#nb-time-block .nb-speeds li").count() == len(records) - 1
    assert page.locator("#nb-there-block .nb-point").count() == 3
    page.wait_for_selector("#nb-history-block .nb-ramp", state="attached")
    assert window.errors == []


def test_the_table_sorts_by_every_heading_both_ways(open_at: Callable[..., Window]) -> None:
    window = open_at("Models")
    page = window.page
    page.wait_for_selector(".nb-ledger > tbody")

    def values(name: str) -> list[float]:
        cells = page.eval_on_selector_all(
            f"td[data-column={name}]", "all => all.map(cell => cell.dataset.value)"
        )
        return [float(cell) for cell in cells if cell]

    for name, label in (("num_params", "Parameters"), ("burden", "Burden"), ("top1", "Right")):
        button = page.locator(f".nb-sort:has-text('{label}') >> nth=0")
        button.click()
        assert values(name) == sorted(values(name), reverse=True)
        assert page.locator("[aria-sort=descending]").count() == 1
        button.press("Enter")
        assert values(name) == sorted(values(name))
        assert page.locator("[aria-sort=ascending]").count() == 1
    # The dense model has no burden, so it stands last in both orders.
    page.click(".nb-sort:has-text('Burden') >> nth=0")
    last = page.locator(".nb-ledger > tbody >> nth=-1")
    assert last.locator("td[data-column=burden]").get_attribute("data-value") == ""


def test_a_name_opens_where_its_model_comes_from(open_at: Callable[..., Window]) -> None:
    window = open_at("Models")
    page = window.page
    first = page.locator(".nb-open >> nth=0")
    first.click()
    assert first.get_attribute("aria-expanded") == "true"
    told = page.inner_text(".nb-more:not([hidden])")
    for words in ("Trained by", "tests", "SHA", "top1"):
        assert words.lower() in told.lower() or words == "SHA"
    assert page.locator(".nb-more:visible").count() == 1
    first.press("Enter")
    assert page.locator(".nb-more:visible").count() == 0


def test_marks_and_lines_tell_their_values(open_at: Callable[..., Window]) -> None:
    window = open_at("Models")
    page = window.page
    point = page.locator("#nb-macs-block .nb-point >> nth=0")
    point.hover()
    tip = point.locator(".nb-tip")
    assert tip.is_visible()
    assert tip.inner_text() == point.get_attribute("aria-label")
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    point.focus()
    assert tip.is_visible()
    band = page.locator("#nb-history-block .nb-slice >> nth=0")
    band.scroll_into_view_if_needed()
    band.hover()
    words = band.locator(".nb-tip").inner_text()
    assert words.startswith("Epoch 1")
    assert "layer 2" in words


def test_another_data_set_has_its_own_models(open_at: Callable[..., Window]) -> None:
    window = open_at("Models")
    page = window.page
    page.wait_for_selector(".nb-tree")
    page.click("#nb-models-dataset label >> text=other")
    page.wait_for_selector(".nb-tree [data-variant=other-dense]")
    assert page.locator(".nb-tree [data-variant]").count() == 1
    page.wait_for_function("document.querySelectorAll('#nb-time-block .nb-point').length === 1")
    assert window.errors == []


def test_another_training_and_another_setting_are_drawn(open_at: Callable[..., Window]) -> None:
    window = open_at("Models")
    page = window.page
    page.wait_for_selector("#nb-history-block .nb-ramp", state="attached")
    before = page.inner_html("#nb-history-block")
    page.click("#nb-history-per label >> nth=1")
    page.wait_for_function(
        "old => document.querySelector('#nb-history-block').innerHTML !== old", arg=before
    )
    window.choose("nb-history-model", "dense")
    page.wait_for_selector("#nb-history-block [aria-label*='of dense over']")
    window.choose("nb-setting", "8 photos")
    page.wait_for_selector("#nb-there-block >> text=Milliseconds for 8 photos")


def test_a_study_is_shown_with_verdicts_runs_and_figures(open_at: Callable[..., Window]) -> None:
    window = open_at("Study")
    page = window.page
    page.wait_for_selector(".nb-verdicts")
    assert window.texts(".nb-chips li") == ["✓ 1 supported", "✗ 1 not supported", "? 1 undecided"]
    for word in ("Holm", "host", "difference in differences", "B / B₀"):
        explained = page.locator(f"#nb-verdicts-block .nb-term:has-text('{word}') >> nth=0")
        explained.focus()
        assert len(explained.locator(".nb-tip").inner_text()) > 30
    assert page.locator(".nb-figures img").evaluate("image => image.naturalWidth") == 8
    with window.context.expect_page() as opened:
        page.click(".nb-figures a")
    alone = opened.value
    alone.wait_for_load_state()
    assert alone.evaluate("document.images[0].naturalWidth") == 8
    alone.close()
    # taylor at its smallest budget, without mitigation: one mean and three runs.
    page.wait_for_selector("#nb-arms-block .nb-point")
    assert page.locator("#nb-arms-block .nb-quiet").count() == 3
    window.choose("nb-arm-budget", "50")
    page.wait_for_function("document.querySelectorAll('#nb-arms-block .nb-quiet').length === 6")
    window.choose("nb-arm-measure", "gain over")
    page.wait_for_selector("#nb-arms-block [aria-label^='handoff: +3.00 (+0.50 to +5.50)']")
    page.click("#nb-runs > button")
    page.wait_for_selector("#nb-runs-table >> text=0.86")
    page.click("#nb-report > button")
    page.wait_for_selector("#nb-report-text >> text=All told.")
    # However narrow a column is, its words stay whole.
    page.eval_on_selector("#nb-report-text table", "table => { table.style.width = '20px'; }")
    verdict = page.locator("#nb-report-text td:has-text('undecided')")
    assert verdict.bounding_box()["height"] < 40
    assert window.errors == []


def test_a_study_that_chooses_shows_its_trials(open_at: Callable[..., Window]) -> None:
    window = open_at("Study")
    page = window.page
    page.wait_for_selector(".nb-verdicts")
    page.click("#nb-study label >> text=a-tuning")
    page.wait_for_selector(".nb-chosen")
    assert page.locator(".nb-figures").count() == 0
    page.wait_for_selector("#nb-arms-block >> text=Right on validation photos")


@pytest.mark.parametrize("width", [PHONE["width"], 950])
def test_what_is_told_of_a_far_column_and_below_a_row_is_in_view(
    open_at: Callable[..., Window], width: int
) -> None:
    window = open_at("Models", viewport={"width": width, "height": 844})
    page = window.page
    page.wait_for_selector(".nb-ledger > tbody")

    def in_view(selector: str) -> bool:
        box = page.locator(selector).bounding_box()
        return bool(box["x"] >= 0 and box["x"] + box["width"] <= width)

    page.focus("#nb-macs-block .nb-point:not(.nb-leftwards) >> nth=0")
    assert in_view("#nb-macs-block .nb-tip:visible")
    for name in ("Right", "Burden", "Zeros"):
        heading = page.locator(f".nb-sort:has-text('{name}') >> nth=0")
        # Just beside the column of names, which stays where it is.
        heading.evaluate("""heading => {
          const frame = heading.closest('.nb-scroll');
          const names = frame.querySelector('th').getBoundingClientRect().right;
          frame.scrollLeft += heading.getBoundingClientRect().left - names - 10;
        }""")
        heading.hover()
        assert in_view(".nb-sort > .nb-tip:visible"), name
    frame = page.locator("#nb-ledger-block .nb-scroll")
    assert frame.evaluate("frame => frame.scrollLeft") > 0
    page.click(".nb-open >> nth=1")
    assert in_view(".nb-more:visible dl")
    assert window.overflow() <= 0


def test_words_of_a_menu_end_before_its_arrow(open_at: Callable[..., Window]) -> None:
    window = open_at("Models", viewport=PHONE)
    page = window.page
    page.wait_for_selector("#nb-history-block .nb-ramp", state="attached")
    for name in ("setting", "bench", "history-model"):
        field = page.query_selector(f"#nb-{name} input")
        room, ends = field.evaluate(
            "e => [parseFloat(getComputedStyle(e).paddingRight), getComputedStyle(e).textOverflow]"
        )
        arrow = page.query_selector(f"#nb-{name} .dropdown-arrow").bounding_box()
        box = field.bounding_box()
        assert box["x"] + box["width"] - room <= arrow["x"]
        assert ends == "ellipsis"


@pytest.mark.parametrize("tab", ["Models", "Study"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_need_no_sideways_scrolling(
    open_at: Callable[..., Window], tab: str, scheme: str
) -> None:
    window = open_at(tab, viewport=PHONE, color_scheme=scheme, has_touch=True)
    page = window.page
    page.wait_for_selector(
        "#nb-time-block .nb-speeds li" if tab == "Models" else "#nb-arms-block .nb-point"
    )
    if tab == "Models":
        page.locator(".nb-open >> nth=0").tap()
        page.wait_for_selector(".nb-more:not([hidden])")
        page.wait_for_selector("#nb-history-block .nb-ramp", state="attached")
    assert window.overflow() <= 0
    wide = page.eval_on_selector_all(
        "#nb-page .nb-plot, #nb-page .nb-kept figure, #nb-page .nb-tree",
        "all => all.map(e => e.scrollWidth - e.clientWidth)",
    )
    # The last label of an axis may reach into the page's margin of 12 px.
    assert max(wide) <= 12
    assert grave(page) == []
    assert window.errors == []


@pytest.mark.parametrize("tab", ["Models", "Study"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_grave(open_at: Callable[..., Window], tab: str, scheme: str) -> None:
    window = open_at(tab, color_scheme=scheme)
    page = window.page
    if tab == "Models":
        page.wait_for_selector("#nb-time-block .nb-speeds li")
        page.wait_for_selector("#nb-history-block .nb-ramp", state="attached")
        page.click(".nb-open >> nth=1")
        page.wait_for_selector(".nb-more:not([hidden])")
    else:
        page.wait_for_selector("#nb-arms-block .nb-point")
        for fold in ("runs", "report"):
            page.click(f"#nb-{fold} > button")
        page.wait_for_selector("#nb-report-text >> text=All told.")
        page.wait_for_selector("#nb-runs-table >> text=0.86")
    assert grave(page) == []
