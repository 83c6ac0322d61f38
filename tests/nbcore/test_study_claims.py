"""Verdicts: what is planted in a made-up study is found, and what is not planted is not claimed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbcore.study.claims import USEFUL_CORRELATION, all_claims, best_mitigation, fresh_runs
from nbcore.study.grid import DENSE_PLUS, TWIN, WEIGHTS, Block, StudyConfig, Wave
from nbcore.study.report import in_grid_order
from nbcore.study.statistics import (
    Estimate,
    damage_correlation,
    differences_in_differences,
    gains,
    holm,
    overall,
    site_correlation,
)
from nbcore.study.tables import read_frames
from nbcore.study.verdicts import REFUTED, SUPPORTED, UNDECIDED, Claim, all_of, judge, number
from tests.nbcore.study_tables import World, write_tables
from tests.nbcore.tiny_study import tiny_study

HOSTS = ("taylor", "s2vite", "magnitude", "random")
MITIGATIONS = (
    "none",
    "token_merging",
    "published",
    "handoff",
    "distillation",
    "handoff+distillation",
)
COST = {"taylor": 0.05, "s2vite": 0.06, "magnitude": 0.07, "random": 0.12}


def grid(seeds: tuple[int, ...] = (0, 1, 2, 3, 4), **changes: object) -> StudyConfig:
    blocks = (
        Block(hosts=HOSTS, mitigations=MITIGATIONS, ratios=(0.3, 0.1)),
        Block(hosts=(DENSE_PLUS,), mitigations=MITIGATIONS, ratios=(1.0,)),
        Block(hosts=(TWIN,), mitigations=("none",), ratios=(0.3, 0.1)),
    )
    return tiny_study(waves=(Wave(seeds=seeds, blocks=blocks),), **changes)


def verdicts(study: StudyConfig, world: World, folder: Path, *, seed: int = 0) -> dict[str, str]:
    write_tables(study, world, folder, seed=seed)
    runs, sites, _ = read_frames(folder)
    return {claim.sentence: claim.verdict for claim in all_claims(study, runs, sites)}


def of(found: dict[str, str], *words: str) -> str:
    """The verdict of the one claim whose sentence has all the words."""
    chosen = [v for sentence, v in found.items() if all(word in sentence for word in words)]
    assert len(chosen) == 1, f"{len(chosen)} claims with {words}"
    return chosen[0]


def claim_of(claims: list[Claim], *words: str) -> Claim:
    """The one claim whose sentence has all the words."""
    (found,) = [c for c in claims if all(word in c.sentence for word in words)]
    return found


def with_weights(folder: Path, seeds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> list[Claim]:
    """Claims of a study with the host `weights`, on which merging does great harm and
    `persistent_dynamic`, run there alone, adds 0.02."""
    structured = ("none", "token_merging", "published", "distillation")
    whole = ("none", "token_merging", "published", "persistent_dynamic")
    blocks = (
        Block(hosts=HOSTS[:2], mitigations=structured, ratios=(0.3, 0.1)),
        Block(hosts=(WEIGHTS,), mitigations=whole, ratios=(0.2, 0.05)),
        Block(hosts=(DENSE_PLUS,), mitigations=structured, ratios=(1.0,)),
    )
    study = tiny_study(waves=(Wave(seeds=seeds, blocks=blocks),))
    write_tables(study, World(cost=COST, relief={"token_merging": 0.3}, noise=0.001), folder)
    runs, sites, _ = read_frames(folder)
    for name, effect in (
        ("token_merging", -0.2),
        ("published", -0.2),
        ("persistent_dynamic", 0.02),
    ):
        runs.loc[(runs["pruner"] == WEIGHTS) & (runs["mitigation"] == name), "top1"] += effect
    return all_claims(study, runs, sites)


def estimate(low: float, high: float, n: int = 5, p: float = math.nan) -> Estimate:
    return Estimate(mean=(low + high) / 2, low=low, high=high, n=n, p=p)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (estimate(0.001, 0.010), SUPPORTED),
        (estimate(0.001, 0.010, p=0.2), UNDECIDED),  # not after Holm's correction
        (estimate(0.001, 0.010, n=2), UNDECIDED),  # too few seeds
        (estimate(-0.010, -0.001), REFUTED),
        (estimate(-0.001, 0.0015), REFUTED),  # anything useful, from 0.002 on, is excluded
        (estimate(-0.001, 0.0025), UNDECIDED),
        (estimate(-0.010, -0.001, n=2), UNDECIDED),
        (Estimate(mean=0.1, n=5), UNDECIDED),  # no interval
    ],
)
def test_the_rule(given: Estimate, verdict: str) -> None:
    assert judge(given, 0.002) == verdict


def test_several_statements_together() -> None:
    assert all_of([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert all_of([SUPPORTED, UNDECIDED]) == UNDECIDED
    assert all_of([SUPPORTED, UNDECIDED, REFUTED]) == REFUTED
    assert all_of([]) == UNDECIDED


def test_planted_effects_are_found(tmp_path: Path) -> None:
    world = World(
        cost=COST,
        relief={"handoff": 0.3, "distillation": 0.3, "handoff+distillation": 0.65},
        general={"token_merging": 0.01},
    )
    found = verdicts(grid(), world, tmp_path)
    for name in ("handoff", "distillation", "handoff+distillation", "token_merging"):
        assert of(found, f"`{name}` makes pruned") == SUPPORTED
    for name in ("handoff", "distillation", "handoff+distillation"):
        assert of(found, f"`{name}` relieves") == SUPPORTED
    # It adds as much to the dense model: a general regulariser, and no relief of pruning.
    assert of(found, "`token_merging` relieves") != SUPPORTED
    assert of(found, "`handoff+distillation`, recovers", "to 0.1 costs") == SUPPORTED
    assert of(found, "`handoff+distillation` beats distillation") == SUPPORTED
    assert of(found, "`handoff`, the best without distillation") != REFUTED
    assert of(found, "Neural burden exists") == SUPPORTED
    assert of(found, "Pruned models beat a dense twin") == SUPPORTED
    assert of(found, "Hosts beat removal at random") == SUPPORTED


def test_burden_that_predicts_no_damage_at_its_site_is_no_burden(tmp_path: Path) -> None:
    # Over runs damage follows burden, as hosts that cost more have more of both; over sites it
    # falls as burden rises.
    study = grid()
    write_tables(study, World(cost=COST, damage=-1.0), tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    assert damage_correlation(runs).low > USEFUL_CORRELATION
    claims = all_claims(study, runs, sites)
    third = claim_of(claims, "(3)")
    assert third.verdict == REFUTED
    assert claim_of(claims, "Neural burden exists").verdict == REFUTED
    heads = site_correlation(sites[sites["kind"] == "heads"])
    assert f"heads alone {number(heads)}" in third.numbers
    assert f"loss increase of the run: {number(damage_correlation(runs))}" in third.numbers


def test_hosts_are_named_where_they_differ(tmp_path: Path) -> None:
    write_tables(grid(), World(cost=COST, noise=0.001), tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    # Survivors of magnitude carry less than the cut explains.
    runs.loc[(runs["pruner"] == "magnitude"), "burden"] *= 0.5
    claims = all_claims(grid(), runs, sites)
    told = claim_of(claims, "(1) After pruning").numbers
    assert "below one on 1 (`magnitude`)" in told
    told = claim_of(claims, "Hosts beat removal at random").numbers
    found = re.findall(r"`(\w+)` ([+-][\d.]+) points", told)
    top1 = runs[runs["mitigation"] == "none"].groupby("pruner")["top1"].mean()
    assert {host: float(gain) for host, gain in found} == pytest.approx(
        {host: 100 * (top1[host] - top1["random"]) for host in HOSTS[:3]}, abs=0.006
    )


def test_p_values_of_one_topic_are_corrected_together(tmp_path: Path) -> None:
    """Else a quarter of studies would find one of five mitigations that do nothing to help."""
    write_tables(grid(), World(cost=COST, noise=0.01), tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    claims = all_claims(grid(), runs, sites)
    for topic, table in (("makes pruned", gains), ("relieves", differences_in_differences)):
        raw = {name: overall(table(runs, name)).p for name in MITIGATIONS[1:]}
        assert all(0.0001 < p < 1 for p in raw.values())
        for name, corrected in zip(raw, holm([*raw.values()]), strict=True):
            assert corrected >= raw[name]
            told = f"Holm p = {corrected:.4f} over 5 such claims; "
            assert told in claim_of(claims, f"`{name}` {topic}").numbers
        assert min(holm([*raw.values()])) > min(raw.values())


def test_weights_are_not_counted_among_models_of_equal_cost(tmp_path: Path) -> None:
    claims = with_weights(tmp_path)
    for topic in ("makes pruned models of equal cost", "relieves"):
        claim = claim_of(claims, f"`token_merging` {topic}")
        assert claim.verdict == SUPPORTED
        assert "over 4 cells" in claim.numbers
        assert "not counted: `weights`, -" in claim.numbers
        assert claim.numbers.endswith(", at 0.600 of the MACs of `none`")
    # What leaves MACs as they are can be asked; it was run on `weights` alone.
    assert [c.sentence for c in claims if "`persistent_dynamic`" in c.sentence] == [
        "`persistent_dynamic` makes models pruned by `weights` more accurate at equal cost."
    ]
    assert claim_of(claims, "pruned by `weights`").verdict == SUPPORTED


def test_cells_that_a_mean_leaves_out_are_named(tmp_path: Path) -> None:
    study = grid()
    write_tables(study, World(cost=COST), tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    gone = (runs["pruner"] == "s2vite") & (runs["target_macs_ratio"] == 0.3) & (runs["seed"] < 3)
    claims = all_claims(study, runs[~gone], sites)
    numbers = claim_of(claims, "`handoff` makes pruned").numbers
    assert "over 7 cells of host and budget (without s2vite at 0.3: other seeds): " in numbers


def test_a_cost_that_differs_is_told(tmp_path: Path) -> None:
    claims = with_weights(tmp_path)
    assert "at 0.600 of the MACs of `none`" in claim_of(claims, "published pair", WEIGHTS).numbers
    assert "of the MACs" not in claim_of(claims, "published pair", "taylor").numbers
    assert "n = 5, at 0.600 of its MACs" in claim_of(claims, "`published` relieves").numbers
    assert "of its MACs" not in claim_of(claims, "`distillation` relieves").numbers


def test_few_seeds_of_a_headline_are_told_and_how_hosts_are_counted(tmp_path: Path) -> None:
    told = "carried by 3 seeds, a headline needs 5"
    (tmp_path / "few").mkdir()
    few = with_weights(tmp_path / "few", (0, 1, 2))
    headlines = [c for c in few if c.topic in ("burden", "published", "best")]
    assert headlines
    assert all(told in c.numbers for c in headlines if "not defined" not in c.numbers)
    assert not any("carried by" in c.numbers for c in with_weights(tmp_path))
    for claim in (c for c in few if "recovers" in c.sentence or "way back" in c.sentence):
        assert "at least half and the interval (not corrected by Holm) above zero" in claim.numbers


def test_what_is_not_there_is_not_claimed(tmp_path: Path) -> None:
    world = World(cost=dict.fromkeys(COST, 0.06), excess=0.0, damage=0.0)
    found = verdicts(grid(), world, tmp_path, seed=1)
    # Being as good as a distillation that does nothing is true here, and so is beating the twin.
    true = {sentence for sentence in found if "twin" in sentence or "at least as good" in sentence}
    assert [s for s, v in found.items() if v == SUPPORTED and s not in true] == []
    assert of(found, "Neural burden exists") != SUPPORTED
    assert of(found, "recovers", "to 0.1 costs") == REFUTED


def test_harm_is_told_as_not_supported(tmp_path: Path) -> None:
    world = World(cost=COST, relief={"published": -0.3}, noise=0.001)
    found = verdicts(grid(), world, tmp_path)
    assert of(found, "`published` makes pruned") == REFUTED
    assert of(found, "`published` relieves") == REFUTED
    assert of(found, "published pair", "`taylor`") == REFUTED


def test_two_seeds_decide_nothing(tmp_path: Path) -> None:
    world = World(cost=COST, relief={"handoff": 0.5}, noise=0.0001)
    found = verdicts(grid((0, 1)), world, tmp_path)
    assert set(found.values()) == {UNDECIDED}


def test_less_than_half_on_three_hosts_is_refuted(tmp_path: Path) -> None:
    world = World(cost=COST, relief=dict.fromkeys(MITIGATIONS[1:], 0.2), noise=0.0005)
    assert of(verdicts(grid(), world, tmp_path), "recovers", "to 0.1 costs") == REFUTED


def test_the_best_is_chosen_on_validation_and_judged_on_fresh_seeds(tmp_path: Path) -> None:
    study = grid(choice_seeds=(0, 1))
    write_tables(study, World(cost=COST), tmp_path)
    runs, _, _ = read_frames(tmp_path)
    plain = (runs["pruner"] == "taylor") & (runs["seed"] < 2)
    # Good on validation in the choice seeds; another good on test, and on validation elsewhere.
    runs.loc[plain & (runs["mitigation"] == "handoff"), "val_top1"] += 0.2
    runs.loc[runs["mitigation"] == "published", "top1"] += 0.2
    late = (runs["mitigation"] == "published") & (runs["seed"] >= 2)
    runs.loc[late, "val_top1"] += 0.2
    assert best_mitigation(study, runs) == "handoff"
    assert sorted(set(fresh_runs(study, runs)["seed"])) == [2, 3, 4]
    # Without seeds set apart the validation split of all seeds decides.
    assert best_mitigation(replace(study, choice_seeds=()), runs) == "published"


def test_distillation_alone_is_a_control_and_not_the_best(tmp_path: Path) -> None:
    study = grid()
    world = World(
        cost=COST, relief={"distillation": 0.9, "handoff+distillation": 0.5, "handoff": 0.2}
    )
    write_tables(study, world, tmp_path)
    runs, _, _ = read_frames(tmp_path)
    assert best_mitigation(study, runs) == "handoff+distillation"
    assert best_mitigation(study, runs, without="distillation") == "handoff"


def test_a_cell_that_one_candidate_has_alone_does_not_decide(tmp_path: Path) -> None:
    study = grid()
    world = World(cost=COST, relief={"handoff+distillation": 0.5, "handoff": 0.2}, noise=0.0005)
    write_tables(study, world, tmp_path)
    runs, _, _ = read_frames(tmp_path)
    # A host of whose runs only two are done yet.
    begun = (runs["pruner"] != "random") | runs["mitigation"].isin(["none", "handoff"])
    assert best_mitigation(study, runs[begun]) == "handoff+distillation"


def test_the_best_may_be_that_of_another_study(tmp_path: Path) -> None:
    study = grid(best="published")
    world = World(cost=COST, relief={"handoff+distillation": 0.9, "published": 0.8}, noise=0.0005)
    found = verdicts(study, world, tmp_path)
    assert of(found, "The best mitigation, `published`, recovers", "to 0.1 costs") == SUPPORTED
    runs, _, _ = read_frames(tmp_path)
    assert best_mitigation(replace(study, best="homeostasis"), runs) is None
    # What stands beside distillation is still chosen here.
    assert best_mitigation(study, runs, without="distillation") == "published"


def test_the_way_back_to_the_dense_model_is_told_apart_from_what_pruning_costs(
    tmp_path: Path,
) -> None:
    # Dense models trained on are 0.01 better than those that arms fork from, and hosts lose 0.02.
    world = World(
        cost=dict.fromkeys(COST, 0.02), relief=dict.fromkeys(MITIGATIONS[1:], 0.4), noise=0.0002
    )
    found = verdicts(grid(), world, tmp_path)
    assert of(found, "recovers", "to 0.1 costs") == REFUTED
    assert of(found, "pruned to 0.1 at least half of the way back") == SUPPORTED


def test_an_effect_that_is_there_but_too_small_says_so(tmp_path: Path) -> None:
    # A point of general gain for each mitigation, where useful is what exceeds two.
    world = World(cost=COST, general=dict.fromkeys(MITIGATIONS[1:], 0.01), noise=0.0005)
    write_tables(grid(), world, tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    for useful, small in ((0.002, False), (0.02, True)):
        claims = all_claims(grid(small_effect=useful), runs, sites)
        claim = claim_of(claims, "`handoff` makes pruned")
        assert claim.verdict == SUPPORTED
        assert ("smaller than a useful effect" in claim.numbers) == small


def test_relief_tells_what_both_models_gain(tmp_path: Path) -> None:
    # Merging takes two points from the dense model and one from pruned ones: relief, and harm.
    study = grid()
    world = World(cost=dict.fromkeys(COST, 0.0), general={"token_merging": -0.01}, noise=0.0)
    write_tables(study, world, tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    merged = (runs["pruner"] == DENSE_PLUS) & (runs["mitigation"] == "token_merging")
    runs.loc[merged, "top1"] -= 0.01
    claims = all_claims(study, runs, sites)
    claim = claim_of(claims, "`token_merging` relieves")
    assert claim.verdict == SUPPORTED
    assert "to pruned models it adds -1.00 points" in claim.numbers
    assert "to the dense one -2.00 points" in claim.numbers
    acts = claim_of(claims, "`handoff` relieves").numbers
    assert "to the dense one nothing, as it acts only when units leave" in acts


def test_relief_is_what_pruned_models_gain_less_what_the_dense_one_does(tmp_path: Path) -> None:
    # One more seed of the dense model alone, which merging harms far more there.
    study = grid()
    write_tables(study, World(cost=dict.fromkeys(COST, 0.0), noise=0.0), tmp_path)
    runs, sites, _ = read_frames(tmp_path)
    merged = runs["mitigation"] == "token_merging"
    dense = runs["pruner"] == DENSE_PLUS
    runs.loc[merged & dense, "top1"] -= 0.01
    runs.loc[merged & dense & (runs["seed"] == 4), "top1"] -= 0.2
    runs = runs[dense | ~merged | (runs["seed"] != 4)]
    numbers = claim_of(all_claims(study, runs, sites), "`token_merging` relieves").numbers
    found = [float(value) for value in re.findall(r"([+-][\d.]+) points", numbers)]
    difference, pruned, plus = found[:3]
    assert plus == -1.0
    assert difference == pytest.approx(pruned - plus, abs=0.011)


def test_a_claim_on_three_hosts_says_where_there_are_fewer(tmp_path: Path) -> None:
    told = "2 hosts are too few to decide"
    assert told in claim_of(with_weights(tmp_path), "recovers", "to 0.1 costs").numbers
    write_tables(grid(), World(cost=COST), tmp_path / "four")
    runs, sites, _ = read_frames(tmp_path / "four")
    numbers = claim_of(all_claims(grid(), runs, sites), "recovers", "to 0.1 costs").numbers
    assert "too few" not in numbers


def test_ranks_that_agree_in_all_seeds_are_no_certainty(tmp_path: Path) -> None:
    write_tables(grid(), World(cost=COST), tmp_path)
    runs, _, _ = read_frames(tmp_path)
    alike = runs[runs["seed"] == 0]
    same = damage_correlation(pd.concat([alike.assign(seed=seed) for seed in range(3)]))
    assert same.mean == pytest.approx(damage_correlation(alike).mean)
    assert number(same) == f"{same.mean:.2f} (n = 3, no interval)"
    # Hosts that change places within a budget move the last bit of a correlation.
    places = [alike.sample(frac=1, random_state=seed).assign(seed=seed) for seed in range(5)]
    found = [damage_correlation(own).mean for own in places]
    assert len(set(found)) > 1
    assert np.ptp(found) < 1e-12
    assert math.isnan(damage_correlation(pd.concat(places)).low)


def test_rows_are_read_in_the_order_of_the_grid(tmp_path: Path) -> None:
    study = grid()
    write_tables(study, World(cost=COST), tmp_path)
    runs, _, _ = read_frames(tmp_path)
    shuffled = runs.sample(frac=1, random_state=0)
    assert in_grid_order(study, shuffled).equals(in_grid_order(study, runs))
