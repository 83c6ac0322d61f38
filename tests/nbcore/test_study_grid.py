"""The grid of a study: order, balance, dependencies, names, fingerprints."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nbcore.mitigation import create_mitigation
from nbcore.pruning import PRUNERS
from nbcore.study.grid import (
    DENSE,
    DENSE_PLUS,
    TWIN,
    UNPRUNED,
    Arm,
    Block,
    Wave,
    acting_without_removal,
    parts_of,
    references,
)
from nbcore.study.studies import STUDIES
from tests.nbcore.tiny_study import arm, tiny_study

A, B = (
    Block(hosts=("taylor",), mitigations=("none", "handoff"), ratios=(0.5, 0.3)),
    Block(hosts=("random",), mitigations=("none",), ratios=(0.5,)),
)


def short(arms: tuple[Arm, ...]) -> list[str]:
    return [a.key.replace("taylor", "T").replace("random", "R") for a in arms]


def test_waves_run_seed_by_seed_and_the_first_block_first() -> None:
    study = tiny_study(waves=(Wave(seeds=(0, 1), blocks=(A, B)), Wave(seeds=(2,), blocks=(B,))))
    seed = [
        "dense-1-none-seed{0}",
        "dense_plus-1-none-seed{0}",
        "T-0.5-none-seed{0}",
        "T-0.5-handoff-seed{0}",
        "T-0.3-none-seed{0}",
        "T-0.3-handoff-seed{0}",
        "R-0.5-none-seed{0}",
    ]
    last = [seed[0], seed[1], seed[6]]
    expected = [line.format(s) for s in (0, 1) for line in seed] + [x.format(2) for x in last]
    assert short(study.arms()) == expected


def test_what_two_waves_share_is_listed_once() -> None:
    waves = (Wave(seeds=(0,), blocks=(A,)), Wave(seeds=(0,), blocks=(A, B)))
    keys = short(tiny_study(waves=waves).arms())
    assert len(keys) == len(set(keys)) == 7
    assert keys[-1] == "R-0.5-none-seed0"


def test_only_the_seeds_asked_for() -> None:
    study = tiny_study(waves=(Wave(seeds=(0, 1), blocks=(A,)),))
    assert {a.seed for a in study.arms([1])} == {1}
    assert study.arms([7]) == ()


@pytest.mark.parametrize("name", STUDIES)
def test_an_arm_stands_behind_all_that_it_needs(name: str) -> None:
    arms = STUDIES[name]().arms()
    place = {a: i for i, a in enumerate(arms)}
    assert len(place) == len(arms)
    for a in arms:
        assert all(place[need] < place[a] for need in a.needs())


@pytest.mark.parametrize("name", STUDIES)
def test_every_prefix_is_balanced(name: str) -> None:
    """Within a wave no arm is a seed ahead of another by more than the seed that is being run."""
    study = STUDIES[name]()
    for wave in study.waves:
        alone = replace(study, waves=(wave,))
        of_arm: dict[tuple[str, str, float], int] = {}
        for a in alone.arms():
            done = of_arm.setdefault((a.pruner, a.mitigation, a.target_macs_ratio), 0)
            # The position of this seed in the wave: the arm was run for all seeds before it.
            assert done == wave.seeds.index(a.seed)
            of_arm[a.pruner, a.mitigation, a.target_macs_ratio] += 1
        assert set(of_arm.values()) == {len(wave.seeds)}


@pytest.mark.parametrize("name", STUDIES)
def test_every_name_of_a_grid_is_known_and_every_option_fits(name: str) -> None:
    study = STUDIES[name]()
    for a in study.arms():
        if a.pruner not in UNPRUNED:
            assert a.pruner in PRUNERS
            prune = study.prune_config(a)
            assert (prune.pruner, prune.macs_ratio) == (a.pruner, a.target_macs_ratio)
            create_mitigation(prune.mitigation, prune.mitigation_options)
        create_mitigation("+".join(parts_of(a.mitigation)), study.options_of(a.mitigation))


def test_settings_of_a_tuning_study_change_only_what_they_name() -> None:
    study = STUDIES["cifar10-tuning"]()
    host = arm("taylor", "none", 0.1, seed=100)
    tried = replace(host, mitigation="none@1")
    assert (study.arm_config(tried).lr, study.prune_config(tried).end) == (2e-3, 0.3)
    assert replace(study.arm_config(tried), lr=study.arm.lr) == study.arm_config(host)
    assert replace(study.prune_config(tried), end=study.prune.end) == study.prune_config(host)
    handoff = replace(host, mitigation="handoff@3")
    assert study.options_of(handoff.mitigation) == {"handoff": {"ridge": 0.3}}
    assert study.arm_config(handoff) == study.arm
    assert study.prune_config(handoff).mitigation == "handoff"
    assert len({study.fingerprint(a) for a in study.arms()}) == len(study.arms())


def test_needs() -> None:
    dense, plus = references(3)
    assert (dense.pruner, plus.pruner) == (DENSE, DENSE_PLUS)
    assert arm(DENSE, ratio=1.0, seed=3).needs() == ()
    assert arm(TWIN, seed=3).needs() == ()
    assert plus.needs() == (dense,)
    assert arm(DENSE_PLUS, "token_merging", 1.0, seed=3).needs() == (dense,)
    assert arm(seed=3).needs() == (dense, plus)


@pytest.mark.parametrize(
    ("mitigation", "left"),
    [
        ("none", "none"),
        ("handoff", "none"),
        ("persistent_dynamic+burden_quota", "none"),
        ("published", "token_merging"),
        ("handoff+distillation", "distillation"),
        ("handoff+reconstruction+distillation", "reconstruction+distillation"),
        ("homeostasis", "homeostasis"),
    ],
)
def test_what_of_a_mitigation_acts_on_a_dense_model(mitigation: str, left: str) -> None:
    assert acting_without_removal(mitigation) == left


def test_fingerprint_tells_what_decides_a_run_and_nothing_else() -> None:
    study = tiny_study()
    longer = replace(study, arm=replace(study.arm, lr=1e-4))
    dense, plus = references(0)
    assert longer.fingerprint(dense) == study.fingerprint(dense)
    assert longer.fingerprint(plus) != study.fingerprint(plus)
    merging = replace(study, mitigation_options={"token_merging": {"block": 1, "r": 2}})
    assert merging.fingerprint(arm()) == study.fingerprint(arm())
    assert merging.fingerprint(arm(mitigation="published")) != study.fingerprint(
        arm(mitigation="published")
    )
    control = replace(plus, mitigation="token_merging")
    assert merging.fingerprint(control) != study.fingerprint(control)
    earlier = replace(study, prune=replace(study.prune, end=0.3))
    assert earlier.fingerprint(arm()) != study.fingerprint(arm())
    assert earlier.fingerprint(plus) == study.fingerprint(plus)
    # None is a value as any other: no limit is not the default limit.
    no_limit = replace(study, mitigation_options={"persistent_dynamic": {"returns": None}})
    assert no_limit.fingerprint(arm(mitigation="published")) != study.fingerprint(
        arm(mitigation="published")
    )
    other_grid = replace(study, waves=(), name="other", command="other")
    assert all(other_grid.fingerprint(a) == study.fingerprint(a) for a in study.arms())
    keys = [study.fingerprint(a) for a in study.arms()]
    assert len(set(keys)) == len(keys)


def test_columns_and_back() -> None:
    for a in (arm(), arm(DENSE, ratio=1.0), arm("weights", "published", 0.02, 4)):
        assert Arm.from_columns(a.columns()) == a
