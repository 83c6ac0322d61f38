"""Flips as HTML: every number that is shown is one that was counted, and texts are only texts."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import numpy as np
import pytest

from app import flips_view
from app.amounts import percent
from app.flips import Chapter, Query, Summary, Trio, find, summarize
from app.flips.summary import share
from tests.app.flip_books import CLASSES, INFOS, PACKED, chapter, info


@pytest.fixture(scope="module")
def book() -> Chapter:
    return chapter()


@pytest.fixture(scope="module")
def trio(book: Chapter) -> Trio:
    return book.trio("plain", "mended")


@pytest.fixture(scope="module")
def counted(book: Chapter, trio: Trio) -> Summary:
    return summarize(book, trio)


def words(html: str) -> str:
    """What a person reads: no tags, spaces as one."""
    return re.sub(r"[ \n]+", " ", re.sub(r"<[^>]+>", " ", html)).strip()


def test_tiles_show_photo_truth_and_every_answer(book: Chapter, trio: Trio) -> None:
    flips = find(book, trio, Query(pattern="any", sort="position"), limit=8)
    html = flips_view.gallery(book, trio, flips)
    tiles = html.split("<li>")[1:]
    assert len(tiles) == 8
    # Photo 1: dense says a at 0.8, plain b at 0.5, mended a at 0.6; it is an a.
    said = words(tiles[1])
    assert "really: a ✓ a 80\u202f% ✗ b 50\u202f% KL 0.68, burden 1.50×" in said
    assert "✓ a 60\u202f%" in said
    assert 'aria-label="Open in Compare: a; dense says a; pruned says b; mitigated says a"' in html
    code = base64.b64encode(b"RIFFone").decode()
    assert f'src="data:image/webp;base64,{code}"' in tiles[1]
    assert 'src="data:image/jpeg;base64,' in tiles[6]
    assert re.findall(r'data-photo="(\d+)"', html) == [str(position) for position in PACKED]
    assert [("not packed" in tile) for tile in tiles] == [k not in PACKED for k in range(8)]


def test_before_the_photos_stand_blank_ones_of_the_same_lines(trio: Trio) -> None:
    waits = flips_view.waiting({"dense": "dense", "pruned": "<p>", "mitigated": "m"}, photos=3)
    assert waits["tiles"].count("nb-blank-tile") == waits["tiles"].count("nb-skeleton") == 3
    # A line for each model, and a small one for each that is not dense.
    assert waits["tiles"].count("<b>") == 3 * 3
    assert waits["tiles"].count("<small>") == 3 * 2
    assert "pruned: &lt;p&gt;" in waits["names"]
    # None of it is there for those who read without seeing.
    assert all('aria-hidden="true"' in part for part in waits.values())
    assert "tabindex" not in "".join(waits.values())


@pytest.mark.parametrize(
    ("query", "limit", "offset", "said"),
    [
        (Query(pattern="any"), 8, 0, "8 of 8 test photos. 2 of them are packed here"),
        (Query(pattern="any"), 3, 3, "Shown: 4 to 6 of 8."),
        (Query(pattern="any", packed=True), 1, 1, "8 of 8 test photos. 2 of them are packed"),
        (Query(pattern="any", packed=True), 1, 1, "Shown: 2 to 2 of 2."),
        (Query(pattern="all_wrong", packed=True), 8, 0, "1 of 8 test photos. 0 of them"),
        (Query(pattern="all_wrong", packed=True), 8, 0, "Untick the box"),
        (Query(pattern="all_wrong", class_name="a"), 8, 0, "0 of 8 test photos. Widen the ranges"),
    ],
)
def test_line_above_the_photos_says_what_is_shown(
    book: Chapter, trio: Trio, query: Query, limit: int, offset: int, said: str
) -> None:
    flips = find(book, trio, query, limit=limit, offset=offset)
    assert said in words(flips_view.found(flips, num_photos=8, offset=offset))


def test_table_holds_the_count_of_every_pattern(trio: Trio, counted: Summary) -> None:
    html = flips_view.summary(trio, counted)
    for name, count in counted.counts.items():
        row = html.split(f'data-pattern="{name}"')[1].split("</tr>")[0]
        assert row.endswith(f"<td>{count}</td><td>{percent(count / 8)}</td>")


def test_accuracies_are_drawn_and_written_with_their_intervals(counted: Summary) -> None:
    html = flips_view.accuracy(counted)
    groups = [*counted.by_class.values(), counted.accuracy]
    assert html.count("nb-quiet") == html.count("nb-level") == 3 * len(groups)
    for group in groups:
        for one in group.values():
            ends = f"{percent(one.low)}–{percent(one.high)}"
            assert f"<td>{percent(one.value)}<small>{ends}</small></td>" in html
            assert f"{one.right} of {one.total} photos" in html


def test_reliability_has_a_mark_for_every_group_of_photos(counted: Summary) -> None:
    html = flips_view.reliability(counted)
    bins = [one for found in counted.reliability.values() for one in found.bins]
    assert html.count('class="nb-point') == html.count("nb-upright") == len(bins)
    assert html.count("<polyline") == 1 + 3
    # No group has ten photos, so none is joined to another.
    assert html.count('points=""') == 3
    for found in counted.reliability.values():
        assert f"expected calibration error {percent(found.error)}" in html


def test_reliability_joins_groups_of_ten_photos(counted: Summary) -> None:
    one = counted.reliability["dense"].bins[0]
    bins = tuple(
        replace(one, confidence=sure, right=share(np.arange(total) < right))
        for sure, right, total in ((0.25, 9, 9), (0.5, 8, 10), (0.75, 12, 12))
    )
    found = replace(counted.reliability["dense"], bins=bins)
    html = flips_view.reliability(replace(counted, reliability={"dense": found}))
    # Percent of the width and, from above, of the height.
    assert 'points="50.00,20.00 75.00,0.00"' in html


def test_confusion_shades_flips_and_not_what_agrees(counted: Summary) -> None:
    # Dense says a a b b b a c a, plain a b b a b b c b: see the table in test_flips.
    html = flips_view.confusion(counted.confusion["pruned"], CLASSES)
    cells = re.findall(r'<td class="([^"]*)" style="--s:([\d.]+)"[^>]*>(\d+)</td>', html)
    assert [int(count) for *_, count in cells] == [1, 3, 0, 1, 2, 0, 0, 0, 1]
    assert [float(shade) for _, shade, _ in cells] == [0, 1, 0, 0.333, 0, 0, 0, 0, 0]
    assert [kind for kind, *_ in cells][::4] == ["nb-agree"] * 3
    assert "Same answer on 50.0\u202f% of the photos; 4 flips." in html
    assert "dense says a, this model b: 3" in html


def test_credit_says_source_licence_and_what_packing_changed(book: Chapter) -> None:
    html = flips_view.credit(book)
    assert "The 2 most telling photos are packed here, re-encoded" in html
    assert "by more than 2.0 percentage points" in html
    assert "Source: &lt;drawn&gt;. free &amp; open" in html
    exact = chapter()
    assert exact.photos is not None
    exact.photos = replace(exact.photos, largest_change=0.0)
    assert "pixel for pixel" in flips_view.credit(exact)
    exact.photos = None
    assert flips_view.credit(exact) == ""


def test_names_of_models_and_reasons_are_texts(book: Chapter, counted: Summary) -> None:
    evil = [info("plain", mitigation="none"), info("mended"), INFOS[0]]
    evil[0] = replace(evil[0], title="<b>bold</b>")
    bad = chapter(evil).trio("plain", "mended")
    for html in (flips_view.models(bad), flips_view.summary(bad, counted)):
        assert "<b>bold" not in html
        assert "&lt;b&gt;bold" in html
    assert "&lt;i&gt;" in flips_view.refused({"x": "<i>"})
    assert flips_view.refused({}) == ""
