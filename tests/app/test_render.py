"""Colours mean the same in every picture of a comparison, and lie where the values are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import render
from app.render import Scale, attribution_scale, burden_scale, heatmap, legend, sheet, site_words

SIGNED = Scale(
    low=-2.0, high=2.0, diverging=True, title="t", low_words="l", high_words="h", ticks=()
)
UNSIGNED = Scale(
    low=0.0, high=4.0, diverging=False, title="t", low_words="l", high_words="h", ticks=()
)
WHITE = Image.new("RGB", (8, 8), "white")


def colours(values: list[list[float]], scale: Scale, crop: Image.Image = WHITE) -> np.ndarray:
    """Colour of the middle of each patch [rows, columns, 3]."""
    grid = np.array(values)
    side = 20 * max(grid.shape)
    picture = np.asarray(heatmap(crop, grid, scale, side=side))
    rows, columns = (np.arange(n) * side // n + side // (2 * n) for n in grid.shape)
    return picture[np.ix_(rows, columns)]


def test_colours_by_hand() -> None:
    # On white, the ends at opacity 0.15 + 0.7 = 0.85, in eight bits 217: 255 * 38 / 255 + 217 / 255
    # * channel.
    # Highest #b2182b = (178, 24, 43), lowest #2166ac = (33, 102, 172), middle #f7f7f7 at 0.15.
    found = colours([[2.0, -2.0], [0.0, 9.0]], SIGNED)
    assert found[0, 0].tolist() == [189, 58, 75]
    assert found[0, 1].tolist() == [66, 125, 184]
    assert found[1, 0].tolist() == [254, 254, 254]
    assert found[1, 1].tolist() == found[0, 0].tolist()
    # Highest #bd0026 = (189, 0, 38); lowest #ffffcc at 0.15 leaves 255 * 0.85 + 0.15 * 204.
    found = colours([[4.0, 0.0]], UNSIGNED)
    assert found[0].tolist() == [[199, 38, 70], [255, 255, 247]]


def test_more_is_redder_and_less_is_bluer() -> None:
    found = colours([[-2.0, -1.0, 0.0, 1.0, 2.0]], SIGNED)[0].astype(int)
    redness = found[:, 0] - found[:, 2]
    assert (np.diff(redness) > 0).all()
    assert redness[2] == 0


def test_the_photo_shows_through_in_grey() -> None:
    crop = Image.new("RGB", (8, 8), (200, 0, 0))
    # Grey of (200, 0, 0) is 0.299 * 200 = 60; paled to 255 - 0.75 * 195 = 109; and
    # 217 / 255 of it with 38 / 255 of #f7f7f7 = 247.
    assert colours([[0.0]], SIGNED, crop)[0, 0].tolist() == [130, 130, 130]


def test_values_stay_on_their_patches() -> None:
    values = np.zeros((3, 3))
    values[0, 2] = 2.0
    picture = np.asarray(heatmap(WHITE, values, SIGNED, side=90)).astype(int)
    red = picture[..., 0] - picture[..., 2] > 50
    assert red[:30, 60:].all()
    assert red.sum() == 30 * 30


def test_one_scale_for_all_and_one_percent_clipped() -> None:
    small, large = np.full((10, 10), 0.3), np.full((10, 10), -3.0)
    scale = burden_scale([small, large], "burden")
    assert (scale.low, scale.high) == (-3.0, 3.0)
    outlier = np.zeros((2, 10, 10))
    outlier[0, 0, 0] = 1e9
    assert burden_scale([outlier], "load").high < 1e9
    assert burden_scale([outlier], "burden").high == 0.5
    signed = attribution_scale([small, large], signed=True, title="Score")
    assert (signed.low, signed.high, signed.diverging) == (-3.0, 3.0, True)
    plain = attribution_scale([small], signed=False, title="Score")
    assert (plain.low, plain.high, plain.diverging) == (0.0, pytest.approx(0.3), False)


def test_loads_are_drawn_by_their_ratios() -> None:
    scale = burden_scale([np.full((2, 2), 0.5)], "load")
    # From 0.5 down to a hundredth of it; 0.05 is half of the two decades.
    assert scale.shares(np.array([0.5, 0.05, 0.005, 0.0])).tolist() == pytest.approx([1, 0.5, 0, 0])
    assert scale.ticks == ((0.01, "0.01"), (0.03, "0.03"), (0.1, "0.1"), (0.3, "0.3"))


def test_maps_of_nothing_still_have_a_scale() -> None:
    for scale in (
        burden_scale([], "burden"),
        burden_scale([np.zeros((2, 2))], "residual"),
        attribution_scale([np.zeros((2, 2))], signed=True, title="Score"),
    ):
        assert scale.low < scale.high
        assert np.isfinite(scale.shares(np.zeros(3))).all()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0.6, ["0.71", "1", "1.4"]),
        (1.0, ["1/2", "1", "2"]),
        (2.5, ["1/4", "1/2", "1", "2", "4"]),
        (3.9, ["1/8", "1/4", "1/2", "1", "2", "4", "8"]),
        (6.0, ["1/64", "1/16", "1/4", "1", "4", "16", "64"]),
    ],
)
def test_burden_ticks_are_ratios_at_their_logarithm(limit: float, words: list[str]) -> None:
    scale = burden_scale([np.full((2, 2), limit)], "burden")
    assert [label for _, label in scale.ticks] == words
    for value, label in scale.ticks:
        number, _, below = label.partition("/")
        assert 2**value == pytest.approx(float(number) / float(below or 1), rel=0.02)
        assert scale.low <= value <= scale.high


def test_the_legend_shows_the_colours_of_the_maps() -> None:
    bar = np.asarray(legend(SIGNED))[70]
    ends = colours([[-2.0, 2.0]], SIGNED)[0]
    assert bar[60].tolist() == ends[0].tolist()
    assert bar[bar.shape[0] - 61].tolist() == ends[1].tolist()
    assert np.asarray(legend(SIGNED, "a note")).shape[0] > np.asarray(legend(SIGNED)).shape[0]


def test_pictures_over_one_pale_photo_are_the_same_and_leave_it_as_it_was() -> None:
    rng = np.random.default_rng(0)
    crop = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    pale = render.pale_photo(crop, 90)
    before, groups = pale.tobytes(), np.array([[0, 0, 1], [2, 3, 4], [5, 6, 7]])
    for values in rng.normal(size=(2, 3, 3)):
        shared = heatmap(crop, values, SIGNED, side=90, groups=groups, pale=pale)
        assert shared.tobytes() == heatmap(crop, values, SIGNED, side=90, groups=groups).tobytes()
    assert pale.tobytes() == before


def test_a_sheet_holds_the_same_maps_in_order() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(6, 4, 4))
    names = [f"blocks.{k}.{part}" for k in range(3) for part in ("attn", "mlp")]
    page = np.asarray(sheet(WHITE, maps, names, SIGNED))
    tile, gap, label = render.TILE_SIDE, 10, 22
    for index in range(6):
        left, top = (index % 4) * (tile + gap), (index // 4) * (tile + label + gap) + label
        wanted = np.asarray(heatmap(WHITE, maps[index], SIGNED, side=tile))
        assert np.array_equal(page[top : top + tile, left : left + tile], wanted)


def test_edges_of_merged_patches_are_drawn_and_no_others() -> None:
    # Patches 0 and 1 share a token, 2 and 3 stand alone: an edge right and below of the pair only.
    groups = np.array([[0, 0, 1], [2, 3, 4], [5, 6, 7]])
    crop = Image.new("RGB", (8, 8), "black")
    plain = np.asarray(heatmap(crop, np.zeros((3, 3)), SIGNED, side=90))
    drawn = np.asarray(heatmap(crop, np.zeros((3, 3)), SIGNED, side=90, groups=groups))
    changed = (plain != drawn).any(-1)
    wanted = np.zeros((90, 90), bool)
    wanted[0:31, 60] = True
    wanted[30, 0:61] = True
    assert np.array_equal(changed, wanted)


def test_names_in_words() -> None:
    assert site_words("blocks.0.attn") == "1 attention"
    assert site_words("blocks.11.mlp") == "12 MLP"
    assert site_words("blocks.3") == "layer 4"


def test_every_word_can_be_drawn(tmp_path: Path) -> None:
    """The font draws an empty box for letters that it lacks, which no other test would see."""
    from PIL import ImageFont

    font = ImageFont.load_default(20)
    scales = [burden_scale([np.ones((2, 2))], q) for q in ("burden", "load", "residual")]
    scales += [attribution_scale([np.ones((2, 2))], signed=s, title="Score") for s in (True, False)]
    texts = [t for s in scales for t in (s.title, s.low_words, s.high_words)]
    texts += [label for s in scales for _, label in s.ticks]
    missing = bytes(font.getmask("\ufffe"))
    for letter in set("".join(texts)) - {" "}:
        assert bytes(font.getmask(letter)) != missing, letter
