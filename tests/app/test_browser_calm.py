"""Nothing on the page jumps: layout shifts as Chromium itself counts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.serving import Served, serve
from tests.app.visitor import DESKTOP, PHONE, WAIT_MS

pytestmark = pytest.mark.browser

GOOD = 0.1
"""What web.dev calls good for the sum of a page's layout shifts."""
COUNT = """() => {
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      if (!entry.hadRecentInput) {
        const names = entry.sources.map((s) => s.node?.id || s.node?.parentElement?.id);
        window.shifts.push([entry.value, names.join(' ')]);
      }
    }
  }).observe({type: 'layout-shift', buffered: true});
}"""


@pytest.fixture(scope="module")
def served(tiny_checkpoints: Path) -> Served:
    return serve(tiny_checkpoints)


def shifts(page: Any) -> list[tuple[float, str]]:
    # Shifts are reported after the frame they happened in.
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 300)))")
    return [(value, where) for value, where in page.evaluate("window.shifts.splice(0)")]


@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_jumps_at_first_or_while_another_photo_is_compared(
    browser: Any, served: Served, window: dict[str, int]
) -> None:
    context = browser.new_context(viewport=window)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.add_init_script(f"({COUNT})()")
    page.goto(served.url)
    page.wait_for_selector(".nb-take")
    seen = shifts(page)
    assert sum(value for value, _ in seen) < GOOD, seen
    for name in ("n03028079_5942", "n03425413_7772"):
        page.eval_on_selector(".nb-status", "line => line.dataset.old = '1'")
        page.click(f"[data-example='{name}']")
        page.wait_for_selector(".nb-done:not([data-old])")
        seen = shifts(page)
        assert sum(value for value, _ in seen) < GOOD, seen
    # While maps are looked at, those of another photo come in too.
    page.eval_on_selector("#nb-chart", "e => e.scrollIntoView()")
    page.eval_on_selector(".nb-status", "line => line.dataset.old = '1'")
    page.eval_on_selector("#nb-compare", "button => button.click()")
    page.wait_for_selector(".nb-done:not([data-old])")
    seen = shifts(page)
    assert sum(value for value, _ in seen) < GOOD, seen
    context.close()


def test_first_view_is_there_before_any_answer_of_the_server(browser: Any, served: Served) -> None:
    context = browser.new_context(viewport=DESKTOP)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    # No event of the page reaches the server, so nothing can have been computed for it.
    page.route("**/gradio_api/queue/**", lambda route: route.abort())
    page.goto(served.url)
    page.wait_for_selector("#nb-predictions li")
    assert page.locator("#nb-predictions .nb-cell").count() == 3
    assert page.locator("#nb-attribution .nb-map").count() == 3 + 2
    assert page.locator("#nb-maps .nb-map").count() == 3 + 2
    assert page.locator("#nb-chart .nb-mark").count() > 3 * 6
    assert page.locator("#nb-ablation .nb-map").count() == 1
    assert page.locator("#nb-costs td").count() > 0
    context.close()
