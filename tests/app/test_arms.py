"""Measures of arms: burden, relief and shares as METHODS §4 and the report take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from app.arm_plot import arm_plot
from app.arms import ON_REMOVAL, ORDER, PUBLISHED, Choice, arms
from app.studies import Study, read_study, study_names
from app.text_study import MEASURE_NOTES, MEASURES, WEIGHTS_NOTES
from nbcore.study import grid
from nbcore.study.statistics import (
    differences_in_differences,
    excess_burden,
    gains,
    mean_over_seeds,
    recovered,
)
from nbcore.study.tables import read_frames
from tests.app.study_folder import write_study
from tests.sources import ROOT

SHIPPED = ROOT / "checkpoints"
REPORTED = [n for n in study_names(SHIPPED) if (SHIPPED / "study" / n / "summary.csv").is_file()]
NOWHERE = {"figures": (), "topics": (), "trials": (), "facts": (), "rule": "", "report": ""}


@pytest.fixture
def by_hand(tmp_path: Path) -> Study:
    write_study(tmp_path)
    return read_study(tmp_path, "by-hand")


def a_study(top1: Mapping[tuple[str, str, str], Mapping[int, float]], **summed: str) -> Study:
    """Accuracies by arm and seed; the last arm has a row in the summary."""
    runs = [
        dict(
            zip(("pruner", "target_macs_ratio", "mitigation"), arm, strict=True),
            seed=str(seed),
            top1=str(value),
        )
        for arm, values in top1.items()
        for seed, value in values.items()
    ]
    told = {key: runs[-1][key] for key in ("pruner", "target_macs_ratio", "mitigation")}
    return Study(name="small", runs=tuple(runs), summary=(told | summed,), **NOWHERE)


def test_excess_burden_is_held_against_cut_and_dense_trained_on(by_hand: Study) -> None:
    arm = arms(by_hand, Choice(measure="excess", host="random"))[0]
    # Burden 1.5, 2, 2.5; when cut 0.5; the dense model trained on 1.25.
    assert arm.values == pytest.approx({"0": 2.4, "1": 3.2, "2": 4.0})
    # Of a factor the logarithms are averaged: 0.875469, 1.163151, 1.386294 have mean 1.141638 and
    # standard error 0.147855; t(0.975, 2) = 4.302653.
    assert arm.mean == pytest.approx((2.4 * 3.2 * 4.0) ** (1 / 3))
    half = 4.302653 * 0.147855
    assert (arm.low, arm.high) == pytest.approx(
        (math.exp(1.141638 - half), math.exp(1.141638 + half)), rel=1e-4
    )
    # Nothing was cut from these.
    assert arms(by_hand, Choice(measure="excess", host="dense_plus")) == ()


@pytest.mark.parametrize("name", ["burden", "burden_null", "burden_dense_plus"])
def test_seeds_without_one_of_three_burdens_are_left_out(by_hand: Study, name: str) -> None:
    gone = tuple(row | ({name: ""} if row["seed"] == "1" else {}) for row in by_hand.runs)
    arm = arms(replace(by_hand, runs=gone), Choice(measure="excess", host="random"))[0]
    assert (set(arm.values), arm.seeds) == ({"0", "2"}, 2)
    # Two seeds are enough for an interval, as in the report.
    assert arm.low is not None
    # As a table that an earlier version wrote.
    lacking = tuple({k: v for k, v in row.items() if k != name} for row in by_hand.runs)
    assert arms(replace(by_hand, runs=lacking), Choice(measure="excess")) == ()


def test_relief_has_a_dot_for_each_seed_that_has_all_four_runs() -> None:
    arm = ("taylor", "0.3", "published")
    study = a_study(
        {
            ("dense_plus", "1", "none"): {0: 0.90, 1: 0.90, 2: 0.90},
            # What of `published` acts on a dense model.
            ("dense_plus", "1", "token_merging"): {0: 0.89, 1: 0.91},
            ("taylor", "0.3", "none"): {0: 0.80, 1: 0.80, 2: 0.80},
            arm: {0: 0.84, 1: 0.85, 2: 0.86},
        },
        did="0.045",
        did_low="",
        did_high="",
        seeds="3",
    )
    (found,) = arms(study, Choice(measure="did"))
    # (84 - 80) - (89 - 90), (85 - 80) - (91 - 90); the dense model of seed 2 was not run.
    assert found.values == pytest.approx({"0": 5.0, "1": 4.0})
    assert (found.mean, found.seeds) == (pytest.approx(4.5), 2)
    drawn = arm_plot(study, Choice(measure="did"))
    assert "published, taylor, 30\u202f%: +4.50, 2 seeds" in drawn
    assert drawn.count("nb-quiet") == 2


def test_what_acts_on_removal_gives_a_dense_model_nothing(by_hand: Study) -> None:
    (relief,) = arms(by_hand, Choice(measure="did"))
    # Those of the gain; mean and interval are the table's.
    assert relief.values == pytest.approx({"0": 4.0, "1": 3.0, "2": 2.0})
    assert (relief.mean, relief.low, relief.high) == pytest.approx((3.0, -1.0, 7.0))


def test_a_recovered_share_has_no_dots_but_says_of_how_many_seeds_it_is() -> None:
    study = a_study(
        {
            ("dense_plus", "1", "none"): {0: 0.80, 1: 0.90, 2: 0.90},
            # Seed 0 lost nothing, so no share of it comes back.
            ("taylor", "0.3", "none"): {0: 0.80, 1: 0.80, 3: 0.80},
            ("taylor", "0.3", "handoff"): {0: 0.81, 1: 0.84, 2: 0.86, 3: 0.86},
        },
        recovered="0.5",
        recovered_low="-0.1",
        recovered_high="0.9",
        seeds="3",
    )
    (share,) = arms(study, Choice(measure="recovered"))
    # (1 + 4) / (0 + 10) points of seeds 0 and 1; seed 2 has no run without mitigation, seed
    # 3 no dense model trained on.
    assert (share.values, share.mean, share.seeds) == ({}, 0.5, 2)
    drawn = arm_plot(study, Choice(measure="recovered"))
    assert "50\u202f% (\u221210\u202f% to 90\u202f%), 2 seeds" in drawn
    assert "nb-quiet" not in drawn
    assert MEASURE_NOTES["recovered"] in drawn
    assert "No dots" in MEASURE_NOTES["recovered"]


@pytest.mark.parametrize("measure", [name for name in MEASURES if name != "recovered"])
def test_every_other_measure_has_a_dot_for_each_seed_it_counts(
    by_hand: Study, measure: str
) -> None:
    found = arms(by_hand, Choice(measure=measure))
    assert found
    assert [arm.seeds for arm in found] == [len(arm.values) for arm in found]
    assert {arm.seeds for arm in found} == {3}
    drawn = arm_plot(by_hand, Choice(measure=measure))
    assert drawn.count("nb-quiet") == 3 * len(found)
    assert "No dots" not in drawn


def test_one_dense_model_measured_again_is_one_seed_without_interval(by_hand: Study) -> None:
    dense = by_hand.summary[0] | {"seeds": "1", "top1_low": "", "top1_high": ""}
    study = replace(by_hand, summary=(dense, *by_hand.summary[1:]))
    for measure in ("top1", "val_top1"):
        (arm,) = arms(study, Choice(measure=measure, host="dense"))
        assert (len(arm.values), arm.seeds, arm.low, arm.high) == (3, 1, None, None)
    drawn = arm_plot(study, Choice(measure="top1", host="dense"))
    assert "90.00\u202f%, one model measured 3 times" in drawn


def test_single_weights_are_told_apart_where_they_are_shown(by_hand: Study) -> None:
    assert WEIGHTS_NOTES["excess"] not in arm_plot(by_hand, Choice(measure="excess"))
    rows = [
        tuple(row | ({"pruner": "weights"} if row["pruner"] == "random" else {}) for row in table)
        for table in (by_hand.runs, by_hand.summary)
    ]
    study = replace(by_hand, runs=rows[0], summary=rows[1])
    assert WEIGHTS_NOTES["excess"] in arm_plot(study, Choice(measure="excess"))
    assert WEIGHTS_NOTES["excess"] not in arm_plot(study, Choice(measure="excess", host="taylor"))


def test_names_of_arms_and_parts_are_those_of_the_study_code() -> None:
    assert ORDER == grid.UNPRUNED
    assert PUBLISHED == grid.PUBLISHED
    assert set(ON_REMOVAL) == grid.NEEDS_REMOVAL


@pytest.mark.parametrize("name", REPORTED)
def test_shipped_studies_say_what_their_reports_say(name: str) -> None:
    """Per seed and per arm, page == nbcore.study.statistics on the same runs."""
    study = read_study(SHIPPED, name)
    runs = read_frames(SHIPPED / "study" / name)[0]
    table = excess_burden(runs)
    shown = arms(study, Choice(measure="excess", mitigation="none"))
    assert {(arm.host, float(arm.budget)) for arm in shown} == set(table.columns)
    for arm in shown:
        logs = table[arm.host, float(arm.budget)].dropna()
        expected = mean_over_seeds(logs)
        assert {int(s): math.log(v) for s, v in arm.values.items()} == pytest.approx(dict(logs))
        assert (math.log(arm.mean), arm.seeds) == (pytest.approx(expected.mean), expected.n)
        if arm.low is not None and arm.high is not None:
            ends = (math.log(arm.low), math.log(arm.high))
            assert ends == pytest.approx((expected.low, expected.high))
        assert (arm.low is None) == math.isnan(expected.low)
    names = {row["mitigation"] for row in study.summary if row["gain"]}
    for measure, of in (("gain", gains), ("did", differences_in_differences)):
        tables = {mitigation: of(runs, mitigation) for mitigation in names}
        found = arms(study, Choice(measure=measure))
        assert {arm.mitigation for arm in found} == names
        for arm in found:
            seeds = tables[arm.mitigation][arm.host, float(arm.budget)].dropna()
            points = {int(seed): value for seed, value in arm.values.items()}
            assert points == pytest.approx({s: 100 * v for s, v in seeds.items()}, abs=1e-9)
            # The large mark, from summary.csv with six digits, is the mean of the dots.
            assert arm.mean == pytest.approx(100 * seeds.mean(), rel=1e-5)
    shares = {mitigation: recovered(runs, mitigation) for mitigation in names}
    for arm in arms(study, Choice(measure="recovered")):
        share = shares[arm.mitigation][arm.host, float(arm.budget)]
        assert (arm.mean, arm.seeds) == (pytest.approx(share.mean, rel=1e-5), share.n)


def test_shipped_studies_are_there() -> None:
    assert {"imagenette-vit-tiny", "cifar10-four-layer"} <= set(REPORTED)
