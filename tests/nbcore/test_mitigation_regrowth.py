"""Units that may return: they rest unchanged, come back gently, and stay where they are at the
end."""

from __future__ import annotations

import math

import pytest
import torch

from nbcore.config import PruneConfig, TrainConfig
from nbcore.macs import MacsModel
from nbcore.mitigation import create_mitigation
from nbcore.mitigation.base import Composition
from nbcore.mitigation.persistent_dynamic import PersistentDynamic
from nbcore.mitigation.published import Published
from nbcore.pruning import check_fade, plan_budget
from nbcore.pruning.taylor import TaylorPruner
from nbcore.recipes import RECIPES
from nbcore.study.grid import UNPRUNED
from nbcore.study.studies import STUDIES
from nbcore.train import TrainResult, steps_per_epoch
from tests.nbcore.mitigated import OPTIONS, Watcher, train_mitigated
from tests.nbcore.runs import assert_same_bits, weights_of

SEARCH, LAST = range(5, 13), 12
"""Steps at which masks may change, and the last of them."""


def watched(
    fade: int = 0, margin: float = 0.0, returns: float | None = None
) -> tuple[Watcher, TrainResult]:
    watcher = Watcher()
    parts = [PersistentDynamic(fade=fade, margin=margin, returns=returns), watcher]
    result, budget = train_mitigated(Composition(parts))
    counts = [int(result.keep[site.units].sum()) for site in result.model.sites]
    assert budget.macs.total(counts) <= budget.macs_ratio * budget.dense_macs
    return watcher, result


def test_units_return_until_masks_freeze() -> None:
    watcher, result = watched()
    assert set(watcher.lost) <= set(SEARCH)
    assert sum(map(len, watcher.regained.values())) > 100
    assert any(step > 9 for step in watcher.regained), "returns also after the last removal"
    for step in range(LAST, 16):
        assert torch.equal(watcher.gates[step] > 0, watcher.gates[LAST - 1] > 0)
    assert torch.equal(watcher.gates[-1].bool(), result.keep)


def test_without_it_nothing_returns() -> None:
    watcher = Watcher()
    train_mitigated(watcher)
    assert sum(map(len, watcher.lost.values())) > 0
    assert sum(map(len, watcher.regained.values())) == 0
    assert max(watcher.lost) == 9


def test_resting_weights_do_not_drift() -> None:
    watcher, _ = watched()
    gates = torch.stack(watcher.gates)
    resting, moving = 0, 0
    for step in range(1, 16):
        for unit in range(gates.shape[1]):
            before, after = watcher.weights[step - 1][unit], watcher.weights[step][unit]
            same = all(map(torch.equal, before, after))
            # A unit that leaves in this step is moved once more, and rests from then on.
            if gates[step - 1, unit] == 0 and gates[step, unit] == 0:
                assert same
                assert any(part.any() for part in after), "it rests, it is not zeroed"
                resting += 1
            moving += not same
    assert resting > 100
    assert moving > 100


def test_gate_of_a_returning_unit_opens_in_equal_steps() -> None:
    watcher, _ = watched(fade=4)
    seen = 0
    for step, units in watcher.regained.items():
        for unit in units:
            for later in range(step, min(16, step + 6) + 1):
                if unit in watcher.lost.get(later, []):
                    break
                wanted = min(1.0, (later - step) / 4)
                assert watcher.gates[later - 1][unit].item() == wanted
                seen += 0 < wanted < 1
    assert seen > 30


def test_margin_protects_those_that_are_kept() -> None:
    def returns(margin: float) -> int:
        return sum(map(len, watched(margin=margin)[0].regained.values()))

    assert returns(0.0) > returns(1e6) == 0


def test_limit_of_returns_falls_to_none_at_the_last_choice() -> None:
    watcher, _ = watched(returns=0.3)
    came = {step: len(units) for step, units in watcher.regained.items()}
    free = {step: len(units) for step, units in watched()[0].regained.items()}
    assert 0 < sum(came.values()) < sum(free.values()) / 2
    assert came.get(LAST, 0) == 0 < free[LAST]
    gates = torch.stack(watcher.gates) > 0
    for step, count in came.items():
        if count:
            cooling = (1 + math.cos(math.pi * (step - SEARCH[0]) / (LAST - SEARCH[0]))) / 2
            assert count <= 0.3 * cooling * int(gates[step - 2].sum())


def test_fade_margin_and_limit_reach_trainer_and_host() -> None:
    told: list[tuple[float, float | None]] = []

    class Host(TaylorPruner):
        def allow_regrowth(self, margin: float = 0.0, returns: float | None = None) -> None:
            told.append((margin, returns))
            super().allow_regrowth(margin, returns)

    train_mitigated("none", pruner=Host)
    assert told == []
    train_mitigated(PersistentDynamic(fade=2, margin=0.5, returns=None), pruner=Host)
    options = {"persistent_dynamic": {"fade": 4, "returns": 0.4}}
    train_mitigated(create_mitigation("handoff+persistent_dynamic", options), pruner=Host)
    assert told == [(0.5, None), (0.2, 0.4)]


def test_gates_that_could_not_open_before_the_end_are_refused_at_the_start() -> None:
    text = "until step 12 of 16, .* take 5 steps to open.*`fade` at most 4, freeze masks earlier"
    watcher = Watcher()
    with pytest.raises(ValueError, match=text):
        train_mitigated(Composition([PersistentDynamic(fade=5), watcher]))
    assert not watcher.gates
    watcher = Watcher()
    late = PersistentDynamic(fade=4, returns=None)
    result, _ = train_mitigated(Composition([late, watcher]))
    assert watcher.regained[12]
    assert torch.equal(watcher.gates[-1], result.keep.float()), "the last ones just open"
    train_mitigated(PersistentDynamic(fade=5), pruner="weights")  # single weights have no gates


IMAGES = {"cifar10": 47_500, "mnist": 57_000, "imagenette": 8_995, "folder": 2_000, "shapes": 768}
"""Smallest training sets that named configurations are for."""


@pytest.mark.parametrize("name", [*RECIPES, *STUDIES])
def test_gates_open_in_time_in_everything_that_has_a_name(name: str) -> None:
    found: list[tuple[str, TrainConfig, PruneConfig]] = []
    if name in RECIPES:
        found += [(c.data.dataset, c.train, c.prune) for c in RECIPES[name]() if c.prune]
    if name in STUDIES:
        study = STUDIES[name]()
        found += [
            (study.data.dataset, study.arm_config(arm), study.prune_config(arm))
            for arm in study.arms()
            if arm.pruner not in UNPRUNED
        ]
    macs = MacsModel(fixed=0, per_unit=(1,))
    for dataset, config, prune in found:
        mitigation = create_mitigation(prune.mitigation, prune.mitigation_options)
        total = steps_per_epoch(IMAGES[dataset], config.batch_size) * config.total_epochs
        times = {key: getattr(prune, key) for key in ("start", "end", "updates", "freeze")}
        budget = plan_budget(macs, dense_macs=1, macs_ratio=0.5, total_steps=total, **times)
        check_fade(budget, mitigation.fade_steps, total)
    assert found


@pytest.mark.parametrize("name", ["published", "published+distillation"])
def test_published_is_its_two_halves_to_the_bit(name: str) -> None:
    one, _ = train_mitigated(name)
    two, _ = train_mitigated(name.replace("published", "token_merging+persistent_dynamic"))
    assert_same_bits(weights_of(one), weights_of(two))
    assert one.history == two.history
    half, _ = train_mitigated("token_merging")
    assert half.history != one.history


def test_published_takes_the_options_of_its_parts() -> None:
    options = {"token_merging": {"block": 2, "r": 7}, "persistent_dynamic": {"fade": 9}}
    for built in (create_mitigation("published", options), Published(**options)):
        merge = built.merge()
        assert merge is not None
        assert (merge.block, merge.r) == (2, 7)
        assert (built.regrows, built.fade_steps, built.margin) == (True, 9, 0.2)
    text = r"options for \['published'\].*takes options for persistent_dynamic, token_merging"
    with pytest.raises(ValueError, match=text):
        create_mitigation("published", {"published": {}})
    with pytest.raises(ValueError, match=r"'published\+token_merging' names a part twice"):
        create_mitigation("published+token_merging", OPTIONS)


@pytest.mark.parametrize(("fade", "margin"), [(-1, 0.0), (3, -0.1)])
def test_impossible_options_are_refused(fade: int, margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin >= 0, got {fade} and {margin}"):
        PersistentDynamic(fade=fade, margin=margin)


@pytest.mark.parametrize("returns", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_limits_are_refused(returns: float) -> None:
    with pytest.raises(ValueError, match=r"returns in \(0, 1\].* None for no limit, got"):
        PersistentDynamic(returns=returns)
