"""Plots: places and ticks worked out by hand."""

from __future__ import annotations

import re

import pytest

from app.plot import Line, Mark, Scale, Slice, key, linear, logarithmic, plot, rows

PLAIN = Scale(title="x", low=0.0, high=10.0, ticks=((0.0, "0"), (10.0, "ten")))
LEFT_TO_RIGHT = "{:g}".format


def test_places_are_percent_of_the_axis_and_stay_on_it() -> None:
    assert [PLAIN.place(value) for value in (-1, 0, 2.5, 10, 99)] == [0, 0, 25, 100, 100]
    # log10: 1 -> 0, 10 -> 1, 100 -> 2.
    log = Scale(title="x", low=1.0, high=100.0, ticks=(), log=True)
    assert [log.place(value) for value in (1, 10, 100)] == pytest.approx([0, 50, 100])
    assert log.place(0.0) == 0


@pytest.mark.parametrize(
    ("values", "zero", "ticks"),
    [
        # From 0 to 1.06: a sixth is 0.177, so every 0.2.
        ([0.2, 1.0], True, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        # From 0.4 - 0.036 to 1 + 0.036: a sixth is 0.112, so every 0.2.
        ([0.4, 1.0], False, ["0.4", "0.6", "0.8", "1"]),
        # From 20 - 3.6 to 80 + 3.6: a sixth is 11.2, so every 20.
        ([20, 80], False, ["20", "40", "60", "80"]),
    ],
)
def test_linear_ticks_are_round_and_all_values_lie_inside(
    values: list[float], zero: bool, ticks: list[str]
) -> None:
    scale = linear("x", values, LEFT_TO_RIGHT, zero=zero)
    assert [words for _, words in scale.ticks] == ticks
    assert scale.low <= min(values)
    assert scale.high > max(values)
    assert (scale.low == 0) == zero


def test_one_value_alone_has_an_axis_too() -> None:
    scale = linear("x", [5.0], LEFT_TO_RIGHT)
    assert scale.place(5.0) == pytest.approx(50)
    assert linear("x", [0.0], LEFT_TO_RIGHT).ticks


def test_logarithmic_ticks_are_as_fine_as_the_range_needs() -> None:
    far = logarithmic("x", [0.001, 10.0], LEFT_TO_RIGHT)
    assert [words for _, words in far.ticks] == ["0.001", "0.01", "0.1", "1", "10"]
    near = logarithmic("x", [0.05, 1.0], LEFT_TO_RIGHT)
    assert [words for _, words in near.ticks] == ["0.05", "0.1", "0.2", "0.5", "1"]
    # From 0.15 / 1.15 to 0.3 * 1.15.
    close = logarithmic("x", [0.15, 0.3], LEFT_TO_RIGHT)
    assert [words for _, words in close.ticks] == ["0.15", "0.2", "0.3"]


def test_first_row_is_on_top() -> None:
    scale = rows("", ["a", "b", "c"])
    # Three rows: middles at 5/6, 3/6 and 1/6 of the height.
    assert [scale.place(-k) for k in range(3)] == pytest.approx([500 / 6, 50, 100 / 6])


def test_marks_stand_where_their_values_are_with_their_intervals() -> None:
    mark = Mark(
        x=2.5, y=5.0, words="a <b>", style="nb-circle nb-c3", y_range=(4.0, 8.0), x_range=(2.0, 3.0)
    )
    drawn = plot(PLAIN, PLAIN, alt="all of it", marks=[mark])
    assert '<i class="nb-upright nb-c3" style="left:25.00%;bottom:40.00%;height:40.00%">' in drawn
    assert '<i class="nb-level nb-c3" style="bottom:50.00%;left:20.00%;width:10.00%">' in drawn
    assert 'aria-label="a &lt;b&gt;" style="left:25.00%;bottom:50.00%"' in drawn
    assert drawn.count("a &lt;b&gt;") == 2
    assert 'role="group" aria-label="all of it"' in drawn
    assert "--w:3ch" in drawn


def test_marks_that_would_hide_each_other_can_be_shifted() -> None:
    mark = Mark(x=5.0, y=5.0, words="a", style="nb-circle nb-c0", y_range=(4.0, 6.0), shift=-8)
    drawn = plot(PLAIN, PLAIN, alt="", marks=[mark])
    assert drawn.count("left:calc(50.00% + -8px)") == 2


def test_quiet_marks_are_no_stop_of_the_keyboard() -> None:
    marks = [
        Mark(x=1, y=1, words="one", style="nb-circle nb-c0", quiet=True),
        Mark(x=9, y=1, words="nine", style="nb-circle nb-c0"),
    ]
    drawn = plot(PLAIN, PLAIN, alt="", marks=marks)
    assert drawn.count('tabindex="0"') == 1
    assert 'title="one"' in drawn
    # On the right half, the hover text opens to the left.
    assert re.search(r'nb-point nb-leftwards"[^>]*aria-label="nine"', drawn)


def test_lines_run_through_their_points_upwards() -> None:
    line = Line(points=[(0.0, 0.0), (10.0, 5.0)], style="nb-ramp", share=0.25)
    drawn = plot(PLAIN, PLAIN, alt="", lines=[line])
    assert 'points="0.00,100.00 100.00,50.00" style="--t:0.250"' in drawn


def test_a_point_alone_is_a_line_of_no_length() -> None:
    drawn = plot(PLAIN, PLAIN, alt="", lines=[Line(points=[(5.0, 5.0)])])
    assert 'points="50.00,50.00 50.00,50.00"' in drawn


def test_slices_meet_half_way_and_leave_no_gap() -> None:
    slices = [Slice(x=x, words=[f"at {x}", "value & more"]) for x in (0.0, 4.0, 10.0)]
    drawn = plot(PLAIN, PLAIN, alt="", slices=slices)
    bands = re.findall(r"left:([\d.]+)%;width:([\d.]+)%;--at:([\d.]+)%", drawn)
    assert [tuple(map(float, band)) for band in bands] == [(0, 20, 0), (20, 50, 40), (70, 30, 100)]
    assert drawn.count("<b>at ") == 3
    assert "value &amp; more" in drawn


def test_guide_and_key() -> None:
    assert '<i class="nb-guide" style="left:50.00%"></i>' in plot(PLAIN, PLAIN, alt="", guide=5.0)
    assert "nb-guide" not in plot(PLAIN, PLAIN, alt="")
    assert 'class="nb-swatch nb-square nb-c1"></i>a &amp; b' in key([("nb-square nb-c1", "a & b")])
