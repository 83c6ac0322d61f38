"""The answer beside the photo: hand-written values in, the very words out."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import numpy as np
from PIL import Image

from app import layer_maps
from app.burden import BurdenMaps
from app.in_short import in_short
from tests.app.test_markup import info, prediction

SITES = ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp")
CARRIED = BurdenMaps(
    variant="p",
    quantity="burden",
    is_dense=False,
    site_names=SITES,
    values=(1.5, None, 3.25, 0.5),
    maps=np.zeros((4, 2, 3)),
    null_values=(1.0, 4.5, 1.0, 1.0),
    null_maps=None,
    loads=(1.0,) * 4,
    selection=None,
    stream=None,
    null_stream=None,
    groups=(None,) * 4,
    reason=None,
)


def lines(page: str) -> list[list[str]]:
    """Words of each model's lines."""
    return [
        [html.unescape(line).strip() for line in re.findall(r"<(?:b|span)[^>]*>([^<]*)", item)]
        for item in page.split("<li>")[1:]
    ]


def test_each_model_says_its_answer_and_where_it_carries_most() -> None:
    infos = (info("d", base=None), info("p"), info("q"))
    said = {
        "d": prediction("d", ("ring", 0.62, 0.0)),
        "p": replace(prediction("p", ("star", 0.71, 0.5)), base_class="ring"),
        "q": replace(prediction("q", ("ring", 0.6, -0.02)), base_class="ring"),
    }
    page = in_short(infos, said, {"p": CARRIED}, before=False)
    assert lines(page) == [
        ["d", "says ring, 62\u202f%"],
        ["p", "says star, 71\u202f%; dense: ring", "most burden: layer 2, attention, 3.25×"],
        ["q", "says ring, 60\u202f%", ""],
    ]
    cut = lines(in_short(infos, said, {"p": CARRIED}, before=True))
    assert cut[1][-1] == "most burden: layer 1, MLP, 4.50×"
    load = replace(CARRIED, quantity="load")
    last = lines(in_short(infos, said, {"p": load}, before=False))[1][-1]
    assert last == "most load: layer 2, attention, 3.250"


def test_what_is_cut_for_want_of_room_can_be_rested_on() -> None:
    page = in_short((info("d", base=None), info("p")), None, None, before=False)
    assert [re.findall(r'title="([dp])"', item) for item in page.split("<li>")[1:]] == [
        ["d"],
        ["p"],
    ]


def test_there_are_as_many_lines_before_the_answer_as_after() -> None:
    infos = (info("d", base=None), info("p"))
    waits = lines(in_short(infos, None, None, before=False))
    assert [len(item) for item in waits] == [2, 3]
    assert waits[1] == ["p", "", ""]


def test_a_map_tells_where_on_the_photo_it_is_strongest() -> None:
    maps = np.zeros((4, 2, 3))
    # log2 of burdens: the largest is in the second row and third column.
    maps[2] = [[0.5, -3.0, 0.0], [1.0, 0.0, 1.5]]
    cell = replace(CARRIED, maps=maps)
    drawn = Image.new("RGB", (6, 4))
    page = layer_maps.map_cell(info("p"), cell, drawn, "blocks.1.attn")
    assert "layer 2, attention: <b>3.25×</b><small>most in row 2, column 3</small>" in page
    flat = layer_maps.map_cell(info("p"), cell, drawn, "blocks.0.attn")
    assert "<small></small>" in flat
    # Alone and large it stands below no heading of its own.
    assert '<span class="nb-whose">p: </span>layer 1' in flat
