"""The Flips tab in a real Chromium: what it lists, what it narrows, and that a click opens it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.amounts import percent
from app.flips import Chapter, Item, Query, Trio, find
from nbcore.answers import answers_path, base_of, read_answers, stamp_of, write_answers
from nbcore.checkpoint import read_manifest
from tests.app.folders import ids_by_mitigation, with_second_dataset
from tests.app.serving import Served, serve
from tests.app.test_browser_access import grave
from tests.app.test_browser_calm import COUNT, GOOD, shifts
from tests.app.visitor import DESKTOP, PHONE, Visitor

pytestmark = pytest.mark.browser

TAB = "button[role=tab]:has-text('Flips')"
TILES = "#nb-flips-tiles-block .nb-tile"


@pytest.fixture(scope="module")
def served(asked_checkpoints: Path) -> Served:
    return serve(asked_checkpoints)


@pytest.fixture(scope="module")
def chapter(served: Served) -> Chapter:
    return served.service.flips.chapter()


@pytest.fixture(scope="module")
def trio(chapter: Chapter, asked_checkpoints: Path) -> Trio:
    ids = ids_by_mitigation(asked_checkpoints)
    return chapter.trio(ids["none"], ids["handoff"])


def opened(browser: Any, served: Served, **options: Any) -> Visitor:
    """A visitor who looks at Flips."""
    visitor = Visitor(browser, served, **options)
    visitor.page.click(TAB)
    visitor.page.wait_for_selector("#nb-flips-tiles-block li, #nb-flips-found-block .nb-problem")
    return visitor


@pytest.fixture
def visitor(browser: Any, served: Served) -> Iterator[Visitor]:
    window = opened(browser, served)
    yield window
    assert window.errors == []
    window.context.close()


def shown(visitor: Visitor) -> list[str]:
    """Truth and answers of every tile, as it reads."""
    return [" ".join(words.split()) for words in visitor.texts(TILES)]


def expected(trio: Trio, items: tuple[Item, ...]) -> list[list[str]]:
    """What each tile must hold."""
    found = []
    for item in items:
        cells = [item.answers[voice.info.id] for voice in trio.voices.values()]
        said = [f"{cell.class_name} {percent(cell.prob, 0)}" for cell in cells]
        found.append([f"really: {item.truth}", *said])
    return found


def wait_until_shown(
    visitor: Visitor, trio: Trio, chapter: Chapter, query: Query, *, offset: int = 0
) -> None:
    """The tiles are those that answer a query."""
    items = find(chapter, trio, query, limit=24, offset=offset).items
    names = [item.name for item in items]
    visitor.page.wait_for_function(
        """(names) => {
          const tiles = [...document.querySelectorAll('#nb-flips-tiles-block .nb-tile')];
          return JSON.stringify(tiles.map(t => t.title.match(/test\\/\\d+/)[0]))
            === JSON.stringify(names);
        }""",
        arg=names,
    )
    for tile, parts in zip(shown(visitor), expected(trio, items), strict=True):
        for part in parts:
            assert " ".join(part.split()) in tile


def unfold_ranges(visitor: Visitor) -> None:
    """Opens the sliders and lets them come to rest.

    Gradio writes a slider's first value once more, a frame after it has appeared; what is typed
    before that, which nobody but a test can, is lost.
    """
    visitor.page.click("#nb-flips-narrow button")
    visitor.page.wait_for_selector("#nb-flips-max_confidence input[type=number]")
    for _ in range(2):
        visitor.page.evaluate("() => new Promise(done => requestAnimationFrame(done))")


def test_first_look_lists_repaired_photos_and_counts_all(
    visitor: Visitor, trio: Trio, chapter: Chapter
) -> None:
    query = Query(pattern="repaired", packed=True)
    wait_until_shown(visitor, trio, chapter, query)
    found = find(chapter, trio, query, limit=24)
    line = visitor.page.inner_text("#nb-flips-found-block")
    assert line.startswith(f"{found.matching} of 1,024 test photos. {found.packed} of them")
    for picture in visitor.page.query_selector_all(f"{TILES} img"):
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
        assert picture.get_attribute("alt")
    rows = visitor.texts("#nb-flips-summary-block [data-pattern] td:first-of-type")
    assert len(rows) == 9
    assert rows[0] == str(found.matching)
    assert "expected calibration error" in visitor.page.inner_text("#nb-flips-summary-block")
    assert "Drawn by nbcore" in visitor.page.inner_text("#nb-flips-credit-block")


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_jumps_when_the_tab_is_opened(
    browser: Any, served: Served, window: dict[str, int]
) -> None:
    visitor = Visitor(browser, served, viewport=window)
    page = visitor.page
    page.evaluate(COUNT)
    shifts(page)
    # Not by the mouse, after which Chromium takes half a second of shifts for wanted.
    page.eval_on_selector(TAB, "tab => tab.click()")
    # Seen before its photos are there.
    page.wait_for_selector("#nb-flips-pattern label")
    page.wait_for_selector(TILES)
    page.wait_for_selector("#nb-flips-summary-block [data-pattern]")
    seen = shifts(page)
    assert sum(value for value, _ in seen) < GOOD, seen
    visitor.context.close()


def test_pattern_class_order_and_ranges_narrow_the_list(
    visitor: Visitor, trio: Trio, chapter: Chapter
) -> None:
    page = visitor.page
    page.click("#nb-flips-pattern input[value=any]")
    wait_until_shown(visitor, trio, chapter, Query(pattern="any", packed=True))
    page.click("#nb-flips-packed input")
    wait_until_shown(visitor, trio, chapter, Query(pattern="any"))
    assert page.locator(f"div{TILES.split()[-1]}").count() > 0
    page.click("#nb-flips-class input")
    page.click("#nb-flips-class [role=option][aria-label=star]")
    wait_until_shown(visitor, trio, chapter, Query(pattern="any", class_name="star"))
    page.click("#nb-flips-sort input")
    page.click("#nb-flips-sort [role=option]:has-text('most burdened')")
    query = Query(pattern="any", class_name="star", sort="burden")
    wait_until_shown(visitor, trio, chapter, query)
    unfold_ranges(visitor)
    page.fill("#nb-flips-max_confidence input[type=number]", "0.8")
    page.press("#nb-flips-max_confidence input[type=number]", "Enter")
    query = Query(pattern="any", class_name="star", sort="burden", max_confidence=0.8)
    wait_until_shown(visitor, trio, chapter, query)


def test_pages_are_turned(visitor: Visitor, trio: Trio, chapter: Chapter) -> None:
    page = visitor.page
    page.click("#nb-flips-packed input")
    page.click("#nb-flips-pattern input[value=all_right]")
    query = Query(pattern="all_right")
    wait_until_shown(visitor, trio, chapter, query)
    assert page.is_disabled("#nb-flips-previous")
    page.click("#nb-flips-next")
    wait_until_shown(visitor, trio, chapter, query, offset=24)
    assert "Shown: 25 to 48 of" in page.inner_text("#nb-flips-found-block")
    page.click("#nb-flips-previous")
    wait_until_shown(visitor, trio, chapter, query)


def test_other_models_change_photos_and_counts(
    visitor: Visitor, chapter: Chapter, asked_checkpoints: Path
) -> None:
    page, ids = visitor.page, ids_by_mitigation(asked_checkpoints)
    other = chapter.trio(ids["none"], ids["token_merging"])
    title = chapter.voices[ids["token_merging"]].info.title
    page.click("#nb-flips-mitigated input")
    page.click(f"#nb-flips-mitigated [role=option][aria-label='{title}']")
    page.wait_for_selector(f"#nb-flips-names-block >> text={title}")
    wait_until_shown(visitor, other, chapter, Query(pattern="repaired", packed=True))
    page.click("#nb-flips-mitigated input")
    page.click("#nb-flips-mitigated [role=option][aria-label='none']")
    page.wait_for_selector("#nb-flips-pattern input[value=repaired]", state="detached")
    assert page.locator("#nb-flips-pattern input").count() == 6


def test_a_click_opens_the_photo_in_compare_with_its_models(
    visitor: Visitor, trio: Trio, chapter: Chapter
) -> None:
    page = visitor.page
    page.click("#nb-flips-pattern input[value=any]")
    query = Query(pattern="any", packed=True)
    wait_until_shown(visitor, trio, chapter, query)
    item = find(chapter, trio, query, limit=3).items[2]
    visitor.mark()
    page.evaluate("window.scrollTo(0, 300)")
    page.click(f"{TILES} >> nth=2")
    visitor.wait()
    assert page.get_attribute("button[role=tab]:has-text('Compare')", "aria-selected") == "true"
    heads = visitor.texts("#nb-names-block strong")
    assert heads == [voice.info.title for voice in trio.voices.values()]
    said = visitor.texts("#nb-predictions .nb-classes li:first-child")
    for words, cell in zip(said, item.answers.values(), strict=True):
        assert cell.class_name in words
    probs = visitor.texts("#nb-predictions .nb-classes li:first-child .nb-prob")
    for words, cell in zip(probs, item.answers.values(), strict=True):
        assert float(words.split("\u202f")[0]) == pytest.approx(100 * cell.prob, abs=0.5)
    assert page.evaluate("window.scrollY") == 0
    crop = visitor.picture("#nb-attribution .nb-side img")
    photo = served_photo(visitor, chapter, item)
    assert crop.tobytes() == photo
    # The photo is no visitor's own: a link brings it back, with the models that it was opened by.
    page.wait_for_selector("#nb-link[href*='flip=shapes/']")
    assert page.locator(".nb-take p >> text=Your own photo").count() == 0
    again = Visitor(visitor.context.browser, visitor.served, page.get_attribute("#nb-link", "href"))
    assert again.texts("#nb-names-block strong") == heads
    assert again.picture("#nb-attribution .nb-side img").tobytes() == photo
    assert again.texts("#nb-predictions .nb-prob") == visitor.texts("#nb-predictions .nb-prob")
    again.context.close()


def test_a_link_to_a_photo_that_is_not_packed_says_so(browser: Any, served: Served) -> None:
    for flip in ("shapes/none.png", "shapes/../../etc/passwd"):
        window = Visitor(browser, served, f"?flip={flip}")
        assert f"the photo '{flip}' of Flips, which is not packed" in window.wait("problem")
        window.context.close()


def served_photo(visitor: Visitor, chapter: Chapter, item: Item) -> bytes:
    """Pixels of a packed photo."""
    return visitor.served.service.load_image(chapter.photo(item.position)).tobytes()


@pytest.fixture(scope="module")
def two_datasets(asked_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same answers on a second data set."""
    folder = with_second_dataset(asked_checkpoints, tmp_path_factory.mktemp("two"), "digits")
    first, manifest = read_answers(answers_path(folder, "shapes")), read_manifest(folder)
    twins = {key: manifest[f"digits-{key}"] for key in first.answers}
    second = replace(
        first,
        dataset="digits",
        classes=tuple(f"other {name}" for name in first.classes),
        answers={
            twin.id: replace(first.answers[key], stamp=stamp_of(twin, base_of(manifest, twin)))
            for key, twin in twins.items()
        },
    )
    write_answers(answers_path(folder, "digits"), second)
    return folder


def test_photos_of_another_data_set_open_with_its_models(browser: Any, two_datasets: Path) -> None:
    visitor = opened(browser, serve(two_datasets))
    page = visitor.page
    assert "other" not in page.inner_text("#nb-flips-tiles-block")
    page.click("#nb-flips-dataset input[value=digits]")
    page.wait_for_selector("#nb-flips-tiles-block >> text=really: other")
    page.click("#nb-flips-class input")
    page.click("#nb-flips-class [role=option][aria-label='other star']")
    page.click("#nb-flips-pattern input[value=any]")
    page.wait_for_function(
        """[...document.querySelectorAll('#nb-flips-tiles-block strong')]
          .every(e => e.innerText == 'really: other star')"""
    )
    visitor.mark()
    page.click(f"{TILES} >> nth=0")
    visitor.wait()
    assert page.is_checked("#nb-dataset input[value=digits]")
    assert page.locator("#nb-variants input:checked").count() == 3
    said = visitor.texts("#nb-predictions .nb-classes li:first-child .nb-name")
    assert [words.split()[0] for words in said] == ["other"] * 3
    assert visitor.errors == []
    visitor.context.close()


def test_without_answers_the_tab_says_which_command_makes_them(
    browser: Any, tiny_checkpoints: Path
) -> None:
    visitor = opened(browser, serve(tiny_checkpoints))
    said = visitor.page.inner_text("#nb-flips-found-block")
    assert "python -m nbcore flips --dataset shapes --data DIR" in said
    assert visitor.page.locator(TILES).count() == 0
    visitor.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_grave(browser: Any, served: Served, scheme: str) -> None:
    visitor = opened(browser, served, color_scheme=scheme)
    page = visitor.page
    unfold_ranges(visitor)
    page.click("#nb-flips-packed input")
    page.click("#nb-flips-pattern input[value=any]")
    page.wait_for_selector(f"div{TILES.split()[-1]}")
    for summary in page.query_selector_all("#nb-flips-summary-block summary"):
        summary.click()
    assert grave(page) == []
    visitor.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_needs_no_sideways_scrolling(browser: Any, served: Served, scheme: str) -> None:
    visitor = opened(browser, served, viewport=PHONE, color_scheme=scheme, has_touch=True)
    unfold_ranges(visitor)
    visitor.page.click("#nb-flips-summary-block summary")
    assert visitor.overflow() <= 0
    widths = visitor.page.eval_on_selector_all(
        "#nb-flips-tiles-block, #nb-flips-tiles-block .nb-tile, #nb-flips-summary-block .nb-part",
        "all => all.map(e => e.scrollWidth - e.clientWidth)",
    )
    assert max(widths) <= 1
    assert grave(visitor.page) == []
    visitor.context.close()
