"""The chart of layers: positions worked out by hand, one axis for all columns."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import pytest

from app import chart, layer_maps, text
from app.service import BurdenMaps
from app.sites import layer_and_kind, site_words
from tests.app.test_markup import info

SITES = ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")


def cell(
    key: str,
    values: Sequence[float | None],
    null: Sequence[float | None] | None = None,
    *,
    quantity: str = "burden",
    sites: Sequence[str] = SITES,
    **changed: object,
) -> BurdenMaps:
    fields = dict.fromkeys(field.name for field in dataclasses.fields(BurdenMaps)) | {
        "variant": key,
        "quantity": quantity,
        "site_names": tuple(sites),
        "values": tuple(values),
        "null_values": None if null is None else tuple(null),
        "loads": (1.0,) * len(SITES),
    }
    return BurdenMaps(**(fields | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("site", "layer", "kind", "words"),
    [
        ("blocks.0.attn", 1, "attn", "layer 1, attention"),
        ("blocks.11.mlp", 12, "mlp", "layer 12, MLP"),
        ("blocks.3", 4, "", "layer 4"),
    ],
)
def test_sites_are_named_from_layer_one(site: str, layer: int, kind: str, words: str) -> None:
    assert layer_and_kind(site) == (layer, kind)
    assert site_words(site) == words


def test_site_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'stem\.conv' is not like blocks\.0\.attn"):
        layer_and_kind("stem.conv")


def test_axis_is_logarithmic_for_ratios() -> None:
    # From 1/4 to 4 in log2 is -2 to 2: 1 stands in the middle, 2 at three quarters.
    axis = chart.Axis(low=-2.0, high=2.0, ratio=True)
    assert [axis.place(v) for v in (0.25, 0.5, 1.0, 2.0, 4.0)] == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert axis.ticks() == [
        (0.0, "¼×"),
        (25.0, "½×"),
        (50.0, "1×"),
        (75.0, "2×"),
        (100.0, "4×"),
    ]


def test_axis_is_linear_from_zero_for_loads() -> None:
    axis = chart.axis_of({"a": cell("a", (1.0, 2.0, 0.5, 0.0), quantity="load")})
    # The largest value, 2, leaves 5 % of room: 1 stands at 1 / 2.1 of the width.
    assert (axis.low, axis.ratio) == (0.0, False)
    assert axis.place(1.0) == pytest.approx(100 / 2.1)


def test_one_axis_holds_every_column_and_every_null() -> None:
    cells = {
        "a": cell("a", (1.0, 8.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.125)),
        "b": cell("b", (1.0, 1.0, None, 1.0)),
    }
    axis = chart.axis_of(cells)
    # log2 runs from -3 to 3, with a tenth of room on either side.
    assert (axis.low, axis.high) == pytest.approx((-3.1, 3.1))
    assert axis.place(0.0) == 0.0


def marks(page: str) -> list[tuple[str, float]]:
    """Style and position of every mark inside the tracks."""
    found = re.findall(r'class="nb-mark ((?:nb-null )?[\w-]+)" style="left:([\d.]+)%', page)
    return [(style, float(at)) for style, at in found]


def test_marks_stand_where_the_axis_puts_their_values() -> None:
    infos = (info("d", base=None), info("p"))
    cells = {
        "d": cell("d", (1.0, 1.0, 1.0, 1.0)),
        "p": cell("p", (2.0, 0.5, None, 1.0), (1.0, 0.5, 1.0, 1.0)),
    }
    page = chart.chart(infos, cells, {}, quantity="burden", before=False)
    # log2 from -1.1 to 1.1: 1/2 at 0.1 / 2.2 = 4.5 %, 1 in the middle, 2 at 2.1 / 2.2 = 95.5 %.
    column = page.split('class="nb-cell"')[2]
    assert marks(column) == [
        ("nb-null attn", 50.0),
        ("attn", 95.5),
        ("nb-null mlp", 4.5),
        ("mlp", 4.5),
        ("nb-null mlp", 50.0),
        ("mlp", 50.0),
    ]
    assert 'title="layer 1, attention: 2.00× (before retraining 1.00×)"' in column
    assert "layer 2, attention –" in column


def test_before_retraining_the_nulls_take_the_place_of_the_values() -> None:
    infos = (info("p"),)
    cells = {"p": cell("p", (2.0, 2.0, 2.0, 2.0), (0.5, 0.5, 0.5, 0.5))}
    page = chart.chart(infos, cells, {}, quantity="burden", before=True)
    assert marks(page) == [("attn", 4.5), ("mlp", 4.5), ("attn", 4.5), ("mlp", 4.5)]
    assert text.NULL_MARK not in page


def test_a_column_without_values_says_why() -> None:
    infos = (info("p"), info("q"))
    cells = {"p": cell("p", (None,) * 4, reason="its dense base is refused")}
    page = chart.chart(infos, cells, {"q": "q failed"}, quantity="burden", before=False)
    columns = page.split('class="nb-cell"')[1:]
    assert "its dense base is refused" in columns[0]
    assert "q failed" in columns[1]


def without_tips(page: str) -> str:
    """What stands on the page while nobody asks what a word means."""
    page = re.sub(r'<span class="nb-tip".*?</span>', "", page)
    return re.sub(r'<span class="nb-term"[^>]*>(.*?)</span>', r"\1", page)


def numbers_of(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", without_tips(page))
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_numbers_keep_site_ratios_apart_from_the_quantity() -> None:
    cells = {
        "p": cell(
            "p", (0.5, 0.25, 0.5, 0.25), quantity="load", selection=(1.5,) * 4, stream=(0.9,) * 4
        )
    }
    rows = numbers_of(layer_maps.numbers((info("p"),), cells))
    assert rows[0] == ["", "now", "selection", "signal"]
    assert rows[2] == ["layer 1, MLP", "0.250", "1.50×", "0.90×"]


def test_numbers_of_blocks_leave_out_what_belongs_to_sites() -> None:
    cells = {
        "p": cell(
            "p",
            (0.1, 0.2),
            (0.3, 0.4),
            quantity="residual",
            sites=("blocks.0", "blocks.1"),
            selection=(1.5,) * 4,
        )
    }
    rows = numbers_of(layer_maps.numbers((info("p"),), cells))
    assert rows == [
        ["", "now", "before retraining"],
        ["layer 1", "0.100", "0.300"],
        ["layer 2", "0.200", "0.400"],
    ]
