"""The page as a person gets it, in a real Chromium: only this sees what the browser makes of it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app.ablation import Ablation
from app.amounts import percent, ratio, signed, small
from app.sites import site_words
from tests.app.folders import ids_by_mitigation, with_second_dataset
from tests.app.serving import Served, broken_files, example_path, serve
from tests.app.visitor import CLEAR, DESKTOP, PHONE, WAIT_MS, Visitor

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


@pytest.fixture(scope="module")
def ids(tiny_checkpoints: Path) -> list[str]:
    """Those compared by default."""
    found = ids_by_mitigation(tiny_checkpoints)
    return [found["dense"], found["none"], found["handoff"]]


@pytest.fixture
def visitor(browser: Any, served: Served) -> Iterator[Visitor]:
    window = Visitor(browser, served)
    yield window
    window.context.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo wider than high, so that the crop differs from it."""
    path = tmp_path_factory.mktemp("photos") / "own.png"
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST).save(path)
    return path


def test_first_view_compares_the_default_models_on_an_example(
    visitor: Visitor, ids: list[str]
) -> None:
    page = visitor.page
    assert page.eval_on_selector_all("#nb-variants input", "all => all.map(i => i.checked)") == [
        True,
        True,
        False,
        True,
    ]
    columns = page.query_selector_all("#nb-predictions .nb-cell")
    assert [len(column.query_selector_all("li")) for column in columns] == [5, 5, 5]
    pictures = page.query_selector_all("#nb-attribution img, #nb-maps img")
    # The crop, three maps and two differences with a scale each; burden maps, two of them before
    # retraining too, with theirs.
    assert len(pictures) == (1 + 3 + 1) + (2 + 1) + (3 + 2 + 1)
    for picture in pictures:
        assert picture.get_attribute("alt")
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.locator("#nb-chart .nb-track .nb-mark:not(.nb-null)").count() == 3 * 6
    assert page.locator("#nb-chart .nb-track .nb-null").count() == 2 * 6
    assert "Predictions run on the CPU" in page.inner_text("#nb-standing-block")
    accuracies = {i.id: percent(i.metrics["top1"]) for i in visitor.served.service.variants()}
    assert visitor.texts("#nb-costs tbody tr:first-child td") == [accuracies[key] for key in ids]


def test_page_is_silent_and_stays_at_home(visitor: Visitor) -> None:
    visitor.mark()
    visitor.page.click("#nb-compare")
    visitor.wait()
    assert visitor.errors == []
    assert visitor.hosts <= {"127.0.0.1", None, ""}


def test_an_upload_is_answered_with_the_numbers_of_the_service(
    visitor: Visitor, served: Served, ids: list[str], photo: Path
) -> None:
    visitor.upload(photo)
    visitor.wait()
    image = served.service.load_image(photo)
    shown = visitor.picture("#nb-attribution .nb-side img")
    assert np.array_equal(np.asarray(shown), np.asarray(served.service.crop(image)))
    expected = served.service.predict(image, ids)
    probs = visitor.texts("#nb-predictions .nb-prob")
    assert probs == [percent(top.prob) for key in ids for top in expected[key].top]
    burdens = served.service.burden(image, ids)
    visitor.page.click("#nb-chart summary")
    numbers = visitor.texts("#nb-chart .nb-table tbody td:nth-child(2)")
    assert numbers == [ratio(value) for key in ids for value in burdens[key].values]


def test_pasted_photo_is_compared(visitor: Visitor, photo: Path) -> None:
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = base64.b64encode(photo.read_bytes()).decode()
    visitor.page.evaluate(
        """async (code) => {
          const bytes = Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0));
          const blob = new Blob([bytes], {type: 'image/png'});
          await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);
        }""",
        code,
    )
    before = visitor.texts("#nb-predictions .nb-prob")
    visitor.page.click(CLEAR)
    visitor.mark()
    visitor.page.click("#nb-photo button[aria-label='Paste from clipboard']")
    visitor.wait()
    assert visitor.texts("#nb-predictions .nb-prob") != before


def test_webcam_photo_is_compared(visitor: Visitor) -> None:
    before = visitor.texts("#nb-predictions .nb-prob")
    page = visitor.page
    page.click(CLEAR)
    page.click("#nb-photo button[aria-label='Capture from camera']")
    page.click("#nb-photo [title='grant webcam access'], #nb-photo .access-wrap button")
    page.wait_for_function("document.querySelector('#nb-photo video')?.videoWidth > 0")
    visitor.mark()
    page.click("#nb-photo button[aria-label='capture photo']")
    visitor.wait()
    assert visitor.texts("#nb-predictions .nb-prob") != before


def test_another_dataset_brings_its_models_classes_and_photos(
    browser: Any, tiny_checkpoints: Path, tmp_path: Path
) -> None:
    folder = with_second_dataset(tiny_checkpoints, tmp_path, "cifar10")
    visitor = Visitor(browser, serve(folder))
    page = visitor.page
    assert page.locator("#nb-variants input").count() == 4
    visitor.mark()
    page.click("#nb-dataset input[value='cifar10']")
    visitor.wait()
    page.wait_for_selector("#nb-link[href*='cifar10-test']")
    assert page.locator("#nb-variants input").count() == 4
    assert all(n.startswith("other ") for n in visitor.texts("#nb-predictions .nb-name"))
    assert page.locator("[data-example^='cifar10-test-']").count() == 12
    link = page.get_attribute("#nb-link", "href")
    again = Visitor(browser, visitor.served, f"/{link}")
    assert again.page.is_checked("#nb-dataset input[value='cifar10']")
    assert again.texts("#nb-predictions .nb-prob") == visitor.texts("#nb-predictions .nb-prob")
    visitor.context.close()
    again.context.close()


def test_broken_files_get_a_sentence_and_the_page_goes_on(visitor: Visitor, tmp_path: Path) -> None:
    for path, words in broken_files(tmp_path).items():
        visitor.upload(path)
        assert words in visitor.wait("problem")
        assert visitor.page.inner_text("#nb-predictions-block").strip() == ""
        # No link to files that are gone, nor the browser's own sign of a broken picture.
        visitor.page.wait_for_selector(".nb-take", state="detached")
        visitor.page.wait_for_selector("#nb-photo img", state="detached")
    assert "169.0 megapixels" in " ".join(visitor.texts(".toast-body"))
    visitor.mark()
    visitor.page.click("[data-example='n03028079_5942']")
    visitor.wait()
    assert len(visitor.texts("#nb-predictions .nb-cell")) == 3


def test_layers_are_reached_by_slider_part_and_chart(visitor: Visitor) -> None:
    page = visitor.page
    page.fill("#nb-layer input[type=number]", "2")
    page.press("#nb-layer input[type=number]", "Enter")
    page.wait_for_selector("#nb-maps >> text=layer 2,")
    page.click("#nb-kind label >> nth=0")
    page.wait_for_selector("#nb-maps >> text=layer 2, attention")
    page.click("#nb-kind label >> nth=1")
    page.wait_for_selector("#nb-maps >> text=layer 2, MLP")
    page.click(".nb-cell [data-layer='1'] >> nth=0")
    page.wait_for_selector("#nb-maps >> text=layer 1, MLP")
    assert page.input_value("#nb-layer input[type=number]") == "1"
    # A mark is of a part as well as of a layer.
    page.click(".nb-track[data-layer='2'] .nb-mark[data-kind='attn'] >> nth=1")
    page.wait_for_selector("#nb-maps >> text=layer 2, attention")
    assert page.is_checked("#nb-kind input[value='attn']")
    page.click("#nb-sheets button")
    page.wait_for_selector("#nb-sheets img")
    assert page.locator("#nb-sheets img").count() == 3
    page.wait_for_function(
        "[...document.querySelectorAll('#nb-sheets img')].every(i => i.naturalWidth > 0)"
    )


def test_before_retraining_runs_the_cut_model(
    visitor: Visitor, served: Served, ids: list[str], photo: Path
) -> None:
    visitor.upload(photo)
    visitor.wait()
    visitor.mark()
    visitor.page.click("#nb-before input")
    visitor.wait()
    cut = served.service.predict(served.service.load_image(photo), ids, before_retraining=True)
    assert visitor.texts("#nb-predictions .nb-prob") == [
        percent(top.prob) for key in ids for top in cut[key].top
    ]
    assert visitor.page.locator("#nb-chart .nb-null").count() == 0


MAP = "#nb-attribution .nb-cell img"
CHANGED = f"""old => {{
  const now = document.querySelector('{MAP}');
  return now && now.src !== old && !document.querySelector('.nb-busy');
}}"""


def facts(visitor: Visitor, name: str) -> list[str]:
    """One line of the trust stamp, a value a column."""
    return visitor.texts(f"#nb-attribution [data-fact='{name}'] td")


def test_another_method_and_class_redraw_the_maps_only(visitor: Visitor) -> None:
    page = visitor.page
    before = page.get_attribute(MAP, "src")
    asked = page.inner_text("#nb-predictions-block")
    methods = visitor.served.service.attribution_methods()
    assert page.locator("#nb-method label").count() == len(methods) == 8
    page.click("#nb-method label >> nth=1")
    page.wait_for_function(CHANGED, arg=before)
    assert methods[1].shows in page.inner_text("#nb-attribution")
    target = visitor.served.service.variants()[0].classes[-1]
    page.click("#nb-target input")
    page.click(f"#nb-target [role=option][aria-label='{target}'], li[aria-label='{target}']")
    page.wait_for_selector(f"#nb-attribution >> text=for “{target}”")
    assert page.inner_text("#nb-predictions-block") == asked


def test_every_method_of_the_menu_draws_a_map_of_its_own(visitor: Visitor) -> None:
    page = visitor.page
    methods = visitor.served.service.attribution_methods()
    seen = [page.get_attribute(MAP, "src")]
    for method in methods[1:]:
        page.click(f"#nb-method input[value='{method.name}']")
        page.wait_for_function(CHANGED, arg=seen[-1])
        assert method.sign in page.inner_text("#nb-attribution")
        seen.append(page.get_attribute(MAP, "src"))
    assert len(set(seen)) == len(methods)
    assert visitor.errors == []


def test_page_and_api_give_the_same_numbers(
    visitor: Visitor, served: Served, ids: list[str], photo: Path
) -> None:
    visitor.upload(photo)
    visitor.wait()
    client = Client(served.url, verbose=False, download_files=False)
    answer = client.predict(handle_file(str(photo)), ids, api_name="/compare")
    cells = [answer["attributions"][key] for key in ids]
    assert facts(visitor, "rank_correlation") == [signed(c["rank_correlation"]) for c in cells]
    assert facts(visitor, "deletion") == [signed(c["deletion"]) for c in cells]
    assert facts(visitor, "insertion") == [signed(c["insertion"]) for c in cells]
    assert facts(visitor, "completeness_error") == [percent(c["completeness_error"]) for c in cells]
    assert facts(visitor, "top_overlap")[1:] == [percent(c["top_overlap"]) for c in cells[1:]]
    assert facts(visitor, "parity") == [small(c["served"]["difference"]) for c in cells]
    assert facts(visitor, "sha256") == [c["served"]["sha256"][:8] for c in cells]
    said = visitor.texts("#nb-predictions .nb-term")
    for words, key in zip(said, ids[1:], strict=True):
        assert f"{answer['predictions'][key]['kl_to_base']:.3f}" in words


def test_meanings_are_a_hover_or_a_tab_away(visitor: Visitor) -> None:
    page = visitor.page
    name = page.locator("#nb-attribution [data-fact=insertion] .nb-term >> nth=0")
    tip = name.locator(".nb-tip")
    assert not tip.is_visible()
    name.hover()
    assert tip.is_visible()
    page.mouse.move(0, 0)
    name.focus()
    assert tip.is_visible()
    assert "probability of the class" in tip.inner_text()
    box = tip.bounding_box()
    assert box is not None
    assert 0 <= box["x"] <= DESKTOP["width"] - box["width"]


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_jumps_while_the_maps_fill_in(
    browser: Any, served: Served, monkeypatch: pytest.MonkeyPatch, window: dict[str, int]
) -> None:
    seen, answer = threading.Event(), served.service.attribute

    def held(*args: Any, **kwargs: Any) -> Any:
        seen.wait(WAIT_MS / 1000)
        return answer(*args, **kwargs)

    monkeypatch.setattr(served.service, "attribute", held)
    context = browser.new_context(viewport=window)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(served.url)
    page.wait_for_selector(".nb-done")
    page.click("#nb-compare")
    below = """['burden', 'chart', 'costs'].map((name) =>
      document.querySelector(`#nb-${name}-block, #nb-${name}-title-block`)
        .getBoundingClientRect().top + scrollY)"""
    page.wait_for_selector("#nb-costs tbody td")
    page.wait_for_selector("#nb-chart .nb-track")
    page.wait_for_selector(".nb-status >> text=Tracing")
    waiting = page.evaluate(below)
    assert page.locator("#nb-attribution .nb-skeleton").count() == 6
    seen.set()
    page.wait_for_selector(".nb-done")
    assert page.locator("#nb-attribution .nb-skeleton").count() == 0
    assert page.evaluate(below) == pytest.approx(waiting, abs=2)
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_needs_no_sideways_scrolling(browser: Any, served: Served, scheme: str) -> None:
    visitor = Visitor(browser, served, viewport=PHONE, color_scheme=scheme, has_touch=True)
    assert visitor.overflow() <= 0
    # Four columns are the most there can be.
    visitor.page.click("#nb-variants label:has(input:not(:checked)) >> nth=0")
    visitor.mark()
    visitor.page.click("#nb-compare")
    visitor.wait()
    visitor.page.click("#nb-chart summary")
    visitor.page.click("#nb-sheets button")
    assert len(visitor.texts("#nb-predictions .nb-cell")) == 4
    assert visitor.overflow() <= 0
    widths = visitor.page.eval_on_selector_all(
        "#nb-page .nb-cell, #nb-page .nb-table",
        "all => all.map(e => e.scrollWidth - e.clientWidth)",
    )
    assert max(widths) <= 1
    visitor.context.close()


def test_names_of_the_columns_stay_in_view(visitor: Visitor) -> None:
    visitor.page.evaluate("window.scrollTo(0, 1200)")
    top = visitor.page.eval_on_selector(
        "#nb-names-block", "heads => heads.getBoundingClientRect().top"
    )
    assert 0 <= top < 5


OVER = """(selector) => {
  const box = document.querySelector(selector).getBoundingClientRect();
  return document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2)
    ?.closest('#nb-names-block, #nb-maps-block')?.id;
}"""
UNDER_NAMES = """(selector) => {
  const heads = document.querySelector('#nb-names-block').getBoundingClientRect();
  const box = document.querySelector(selector).getBoundingClientRect();
  scrollBy(0, box.top + box.height / 2 - heads.height / 2);
}"""


def test_names_lie_over_labels_and_under_what_belongs_to_no_column(visitor: Visitor) -> None:
    page = visitor.page
    label = "#nb-layer [data-testid=block-info]"
    page.eval_on_selector(label, "e => e.scrollIntoView()")
    page.evaluate(UNDER_NAMES, label)
    assert page.evaluate(OVER, label) == "nb-names-block"
    assert not page.locator("#nb-maps .nb-whose >> nth=1").is_visible()
    page.click("#nb-maps .nb-map >> nth=1")
    title = visitor.texts("#nb-names-block strong")[1]
    assert page.inner_text("#nb-maps .nb-map:visible + p >> nth=0").startswith(f"{title}: layer")
    page.evaluate(UNDER_NAMES, "#nb-maps .nb-cell:nth-child(3) .nb-map")
    assert page.evaluate(OVER, "#nb-maps .nb-cell:nth-child(3) .nb-map") == "nb-maps-block"
    # What follows has columns of its own, or none.
    page.eval_on_selector("#nb-cut-title-block", "e => e.scrollIntoView()")
    bottom = "e => e.getBoundingClientRect().bottom"
    assert page.eval_on_selector("#nb-names-block", bottom) <= 0


def test_a_part_is_chosen_only_of_what_has_parts(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#nb-quantity input[value='residual']")
    page.wait_for_selector("#nb-kind input:disabled")
    page.click("#nb-quantity input[value='load']")
    page.wait_for_selector("#nb-kind input:enabled")


def test_compare_and_its_status_are_where_the_visitor_looks(
    visitor: Visitor, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, go = visitor.page, visitor.page.locator("#nb-go")
    for place in (0, 400, 1500):
        page.evaluate(f"window.scrollTo(0, {place})")
        box = go.bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= DESKTOP["height"]
    page.evaluate("window.scrollTo(0, 0)")
    # A tick says what it needs.
    page.click("#nb-variants label:has(input:not(:checked)) >> nth=0")
    page.wait_for_selector(".nb-status >> text=Press Compare to see")
    for _ in range(3):
        page.click("#nb-variants label:has(input:checked) >> nth=0")
    page.wait_for_selector(".nb-invitation >> text=1 chosen")
    # A wrong choice leaves what is shown, with its files.
    visitor.mark()
    page.click("#nb-compare")
    assert "1 chosen" in visitor.wait("problem")
    assert len(visitor.texts("#nb-predictions .nb-cell")) == 3
    page.wait_for_selector(".nb-old", state="detached")
    assert page.request.get(f"{served.url}/{page.get_attribute('.nb-take a', 'href')}").ok
    # Older results fade at once, before any answer of the server.
    go_on, load = threading.Event(), served.service.load_image

    def held(source: Any) -> Any:
        go_on.wait(WAIT_MS / 1000)
        return load(source)

    monkeypatch.setattr(served.service, "load_image", held)
    page.click("#nb-variants label:has(input:not(:checked)) >> nth=0")
    page.wait_for_selector(".nb-invitation >> text=Press Compare")
    visitor.mark()
    page.click("[data-example] >> nth=2")
    page.wait_for_selector("#nb-predictions.nb-old")
    go_on.set()
    visitor.wait()
    assert page.locator(".nb-old").count() == 0


def test_a_patch_is_read_by_pointer_and_by_keyboard(
    visitor: Visitor, served: Served, ids: list[str]
) -> None:
    page, line = visitor.page, visitor.page.locator("#nb-patch")
    one = page.locator("#nb-maps .nb-map >> nth=1")
    one.scroll_into_view_if_needed()
    box = one.bounding_box()
    assert box is not None
    photo = served.service.load_image(example_path())
    burden = served.service.burden(photo, ids)[ids[1]]
    words = page.inner_text("#nb-maps .nb-cell p >> nth=1").split(":")[0]
    site = next(k for k, name in enumerate(burden.site_names) if site_words(name) == words)
    assert burden.maps is not None
    value = ratio(2 ** burden.maps[site][1][2])
    # Four rows and columns: the middle of the second row's third patch.
    page.mouse.move(box["x"] + box["width"] * 2.5 / 4, box["y"] + box["height"] * 1.5 / 4)
    assert line.inner_text() == f"{words} · row 2, column 3 · {value}"
    page.mouse.move(2, 2)
    assert not line.is_visible()
    one.focus()
    # It goes on from where the pointer was, and stops at the edge.
    for key in ("ArrowLeft", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    value = ratio(2 ** burden.maps[site][0][1])
    assert line.inner_text() == f"{words} · row 1, column 2 · {value}"
    page.keyboard.press("Enter")
    assert page.locator("#nb-maps .nb-map:visible").count() == 2
    width = one.bounding_box()
    assert width is not None
    assert width["width"] > 1.5 * box["width"]
    # The large view stays while the layer slider moves.
    page.fill("#nb-layer input[type=number]", "1")
    page.press("#nb-layer input[type=number]", "Enter")
    page.wait_for_selector("#nb-maps .nb-map:visible + p >> text=layer 1,")
    assert page.locator("#nb-maps .nb-map:visible").count() == 2
    page.click("#nb-maps .nb-map:visible >> nth=0")
    assert page.locator("#nb-maps .nb-map:visible").count() == 3 + 2


def test_patches_of_one_token_are_shown_together(
    browser: Any, served: Served, tiny_checkpoints: Path
) -> None:
    found = ids_by_mitigation(tiny_checkpoints)
    pair = [found["dense"], found["token_merging"]]
    query = f"?variants={','.join(pair)}&layer=3&kind=mlp&example=n02102040_810"
    visitor = Visitor(browser, served, query)
    photo = served.service.load_image(example_path())
    groups = served.service.burden(photo, pair)[pair[1]].groups[-1]
    assert groups is not None
    sizes = np.bincount(groups.ravel())[groups]
    row, column = (int(k) for k in np.argwhere(sizes > 1)[0])
    for selector in ("#nb-maps .nb-map >> nth=1", "#nb-attribution .nb-map >> nth=1"):
        one = visitor.page.locator(selector)
        one.focus()
        for key in ["ArrowRight", *["ArrowDown"] * row, *["ArrowRight"] * column]:
            visitor.page.keyboard.press(key)
        said = visitor.page.inner_text("#nb-patch")
        assert f"row {row + 1}, column {column + 1}" in said
        assert f"one token with {sizes[row, column] - 1} more" in said
        assert one.locator(".nb-spot:visible").count() == sizes[row, column]
    visitor.context.close()


def test_the_dense_model_is_pruned_live(visitor: Visitor, served: Served, ids: list[str]) -> None:
    page = visitor.page
    photo = served.service.load_image(example_path())

    def expected(ablation: Ablation) -> list[str]:
        found = served.service.ablate(photo, ids, ablation)
        return [percent(top.prob) for top in found.prediction.top]

    def wait_for(ablation: Ablation) -> None:
        page.wait_for_function(
            "all => JSON.stringify([...document.querySelectorAll('#nb-ablation .nb-prob')]"
            ".map(p => p.innerText)) === JSON.stringify(all)",
            arg=expected(ablation),
        )

    wait_for(Ablation())
    page.fill("#nb-cut-share input[type=number]", "90")
    page.press("#nb-cut-share input[type=number]", "Enter")
    wait_for(Ablation(share=0.9))
    page.click("#nb-cut-layers label >> nth=1")
    wait_for(Ablation(share=0.9, layers=(2,)))
    page.click("#nb-cut-kinds label >> nth=0")
    wait_for(Ablation(share=0.9, layers=(2,), kinds=("mlp",)))
    page.click("#nb-cut-order input")
    page.click("#nb-cut-order [role=option] >> nth=1")
    wait_for(Ablation(share=0.9, layers=(2,), kinds=("mlp",), order="largest"))
    # A link brings the cut back, sliders and all.
    page.wait_for_selector("#nb-link[href*='cut_order=largest']")
    made = page.get_attribute("#nb-link", "href")
    again = Visitor(visitor.context.browser, served, made)
    assert again.texts("#nb-ablation .nb-prob") == visitor.texts("#nb-ablation .nb-prob")
    assert again.page.input_value("#nb-cut-share input[type=number]") == "90"
    assert again.page.locator("#nb-cut-layers input:checked").count() == 1
    assert again.page.is_checked("#nb-cut-layers label >> nth=1")
    assert [again.page.is_checked(f"#nb-cut-kinds label >> nth={k}") for k in (0, 1)] == [
        False,
        True,
    ]
    assert again.page.input_value("#nb-cut-order input") == "the largest load on this photo"
    assert again.page.get_attribute("#nb-link", "href") == made
    again.context.close()
    # Another photo is cut likewise; what the sliders say and what is shown stay one.
    visitor.mark()
    page.click("[data-example] >> nth=1")
    visitor.wait()
    assert page.input_value("#nb-cut-share input[type=number]") == "90"
    assert visitor.errors == []
