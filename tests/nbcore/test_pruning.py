"""Budgets and quotas: what is allowed when, and the units that fit it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbcore.config import Arch
from nbcore.macs import MacsModel
from nbcore.pruning import NEURON_GROUP, Budget, allocate, plan_budget, removal_steps
from nbcore.pruning.budget import best_first, shared_out
from nbcore.pruning.schedule import ScheduledPruner
from nbcore.vit import Site, sites_of
from tests.nbcore.tiny import tiny


@st.composite
def allocations(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[Site, ...], MacsModel, int, int]:
    """Scores, alive, sites, costs, the smallest allowed model's MACs and a budget above it."""
    depth = draw(st.integers(1, 3))
    heads = draw(st.lists(st.integers(1, 6), min_size=depth, max_size=depth))
    neurons = draw(st.lists(st.integers(8, 40), min_size=depth, max_size=depth))
    sites = sites_of(
        Arch(name="", num_heads=tuple(heads), hidden_features=tuple(neurons), head_dim=1)
    )
    costs = draw(st.lists(st.integers(1, 50), min_size=2 * depth, max_size=2 * depth))
    macs = MacsModel(fixed=draw(st.integers(0, 500)), per_unit=tuple(costs))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    units = sum(site.num_units for site in sites)
    scores = torch.randint(0, draw(st.sampled_from([2, 1000])), (units,), generator=random)
    alive = torch.rand(units, generator=random) < draw(st.sampled_from([0.5, 0.9, 1.0]))
    for site in sites:
        alive[site.units][: 1 if site.kind == "heads" else 8] = True
    smallest = macs.total([1 if s.kind == "heads" else 8 for s in sites])
    budget = draw(st.integers(smallest, macs.total([s.num_units for s in sites]) + 10))
    return scores.float(), alive, sites, macs, smallest, budget


@given(allocations())
@settings(max_examples=100, deadline=None)
def test_allocation_fills_the_budget_and_never_exceeds_it(case: tuple) -> None:
    scores, alive, sites, macs, _, budget = case
    keep = allocate(scores, alive, sites, macs, budget)
    counts = [int(keep[s.units].sum()) for s in sites]
    left = [int(alive[s.units].sum()) - n for s, n in zip(sites, counts, strict=True)]
    slack = budget - macs.total(counts)
    assert slack >= 0
    assert not (keep & ~alive).any()
    for site, count in zip(sites, counts, strict=True):
        assert count >= 1 if site.kind == "heads" else (count >= 8 and count % 8 == 0)
    groups = [8 * c for c, n in zip(macs.per_unit[1::2], left[1::2], strict=True) if n >= 8]
    heads = [c for c, n in zip(macs.per_unit[0::2], left[0::2], strict=True) if n]
    # Whatever is left out would not have fitted; single heads are only a filling for full MLPs.
    assert all(slack < cost for cost in groups or heads)


@given(allocations())
@settings(max_examples=50, deadline=None)
def test_within_a_site_the_best_are_kept(case: tuple) -> None:
    scores, alive, sites, macs, _, budget = case
    keep = allocate(scores, alive, sites, macs, budget)
    for site in sites:
        own, kept, living = scores[site.units], keep[site.units], alive[site.units]
        gone = own[living & ~kept]
        assert not len(gone) or own[kept].min() >= gone.max()


@given(allocations())
@settings(max_examples=50, deadline=None)
def test_budget_below_the_smallest_model_is_refused(case: tuple) -> None:
    scores, alive, sites, macs, smallest, _ = case
    with pytest.raises(ValueError, match=f"{smallest - 1} MACs is below .* need {smallest}"):
        allocate(scores, alive, sites, macs, smallest - 1)
    assert allocate(scores, alive, sites, macs, smallest).sum() == sum(
        1 if site.kind == "heads" else NEURON_GROUP for site in sites
    )


def test_allocation_by_hand() -> None:
    # Two blocks of 4 heads (10 MACs each) and 24 neurons (1 MAC each), 20 fixed: 148 in all.
    sites = sites_of(Arch(name="", num_heads=(4, 4), hidden_features=(24, 24), head_dim=1))
    macs = MacsModel(fixed=20, per_unit=(10, 1, 10, 1))
    scores = torch.zeros(56)
    scores[0:4] = torch.tensor([4.0, 3.0, 2.0, 9.0])
    scores[28:32] = torch.tensor([1.0, 5.0, 0.0, 0.5])
    scores[4:28] = torch.arange(24.0)
    scores[32:56] = 12.0
    # 84 - 20 = 64 of 128 MACs: half of the 8 heads, so 3, 0, 1 and the second site's best, 5;
    # 84 - 20 - 40 leaves 24: eight neurons a site, then the best group: 12 against mean(8..15).
    keep = allocate(scores, torch.ones(56, dtype=torch.bool), sites, macs, 84)
    assert keep[0:4].tolist() == [True, True, False, True]
    assert keep[28:32].tolist() == [False, True, False, False]
    assert keep[4:28].nonzero()[:, 0].tolist() == list(range(16, 24))
    assert keep[32:56].nonzero()[:, 0].tolist() == list(range(16))


def test_heads_keep_their_share_over_many_small_removals() -> None:
    # Shares are of the whole model: at half of the MACs half of the 24 heads, whatever was before.
    sites = sites_of(Arch(name="", num_heads=(6,) * 4, hidden_features=(96,) * 4, head_dim=1))
    macs = MacsModel(fixed=0, per_unit=(16, 2) * 4)
    whole = macs.total([site.num_units for site in sites])
    keep, scores = torch.ones(4 * 102, dtype=torch.bool), torch.rand(4 * 102)
    for budget in torch.linspace(whole, whole / 2, 40).int().tolist():
        keep = allocate(scores, keep, sites, macs, budget)
    assert sum(int(keep[s.units].sum()) for s in sites if s.kind == "heads") == 12
    assert sum(int(keep[s.units].sum()) for s in sites if s.kind == "neurons") == 192


def test_cubic_schedule_by_hand() -> None:
    # r(t) = 1/2 + 1/2 (1 - t)^3 at t = 1/4, 1/2, 3/4, 1: 91/128, 9/16, 65/128, 1/2 of 10000 MACs.
    macs = MacsModel(fixed=1000, per_unit=(1000, 100))
    budget = Budget(macs=macs, dense_macs=10_000, macs_ratio=0.5, steps=(2, 4, 6, 8))
    assert [budget.at(step, [4, 50]) for step in (2, 4, 6, 8)] == [7109, 5625, 5078, 5000]
    assert [budget.at(step, [4, 50]) for step in (1, 3, 7, 9)] == [None] * 4


def test_schedule_of_a_merging_model_starts_at_its_own_cost() -> None:
    # Merging leaves 8000 of 10000 MACs: from 0.8 to 0.5 in one half step: 0.5 + 0.3 / 8.
    macs = MacsModel(fixed=0, per_unit=(1000, 100))
    budget = Budget(macs=macs, dense_macs=10_000, macs_ratio=0.5, steps=(1, 2))
    assert [budget.at(step, [4, 40]) for step in (1, 2)] == [5375, 5000]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((100, 0.0, 0.6, 3), (20, 40, 60)),
        ((10, 0.5, 1.0, 20), (6, 7, 8, 9, 10)),
        ((7, 0.0, 1.0, 2), (3, 7)),
    ],
)
def test_removal_steps_by_hand(arguments: tuple, steps: tuple[int, ...]) -> None:
    assert removal_steps(*arguments) == steps


def test_interval_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 steps leave no step between start=0.0 and end=0.2"):
        removal_steps(4, 0.0, 0.2, 3)


def test_plan_by_hand() -> None:
    # 100 steps: removals between 10 and 60 at a pace of 25, then again up to 90 at that pace.
    macs = MacsModel(fixed=0, per_unit=(1, 1))
    plan = plan_budget(
        macs,
        dense_macs=9,
        macs_ratio=0.5,
        total_steps=100,
        start=0.1,
        end=0.6,
        updates=2,
        freeze=0.9,
    )
    assert (plan.start, plan.steps, plan.refresh) == (10, (35, 60), (85,))
    assert [plan.progress(step) for step in (10, 35, 36, 60, 85)] == [None, 0.5, None, 1.0, 1.0]
    assert plan.at(85, [4, 5]) == 4


def test_shares_by_hand() -> None:
    # Two sites of 4 heads. Site 0 has twice the weight: its k-th loss counts (k - 1/2) / 8, that of
    # site 1 (k - 1/2) / 4, k = 1 for the worst: 1, 3, 5, 7 eighths halved against 1, 3, 5, 7.
    sites = sites_of(Arch(name="", num_heads=(4, 4), hidden_features=(8, 8), head_dim=1))
    heads = [site for site in sites if site.kind == "heads"]
    scores = torch.zeros(24)
    scores[0:4] = torch.tensor([3.0, 1.0, 2.0, 9.0])
    scores[12:16] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    alive, debts = torch.ones(24, dtype=torch.bool), torch.zeros(2)
    shared = shared_out(scores, alive, heads, torch.tensor([2.0, 1.0]), debts)
    assert (shared[0:4] * 16).tolist() == [5, 1, 3, 7]
    assert (shared[12:16] * 8).tolist() == [1, 3, 5, 7]
    # Unit 1 is gone: three living units. Site 0 owes half a unit, so its first loss is due at once.
    alive[1] = False
    shared = shared_out(scores, alive, heads, torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.0]))
    assert (shared[[2, 0, 3]] * 6).tolist() == [0, 1, 2]


class Fixed(ScheduledPruner):
    """Scores that the test gives."""

    values: Tensor

    def scores(self) -> Tensor:
        return self.values


def fixed_pruner(seed: int = 0, **changes: object) -> tuple[Fixed, Budget]:
    """Four blocks of 6 heads of 16 MACs and 64 neurons of 1; half of the MACs after three steps."""
    model = tiny(depth=4, num_heads=6, embed_dim=24, mlp_ratio=64 / 24)
    macs = MacsModel(fixed=0, per_unit=(16, 1) * 4)
    fields = {"macs": macs, "dense_macs": 640, "macs_ratio": 0.5, "steps": (1, 2, 3)} | changes
    budget = Budget(**fields)  # type: ignore[arg-type]
    pruner = Fixed(model, budget, torch.Generator())
    pruner.values = torch.rand(model.num_units, generator=torch.Generator().manual_seed(seed))
    return pruner, budget


def kept_of(pruner: ScheduledPruner) -> list[int]:
    return [int(pruner.keep[site.units].sum()) for site in pruner.model.sites]


def test_quota_decides_how_many_each_site_loses_and_scores_which() -> None:
    pruner, budget = fixed_pruner()
    pruner.set_quota(lambda: torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    for step in (1, 2, 3):
        pruner.after_step(step)
    kept = kept_of(pruner)
    assert budget.macs.total(kept) == 320
    assert sum(kept[0::2]) == 12  # as without a quota: half of the heads, half of the neurons
    assert sum(kept[1::2]) == 128
    assert kept[0] < min(kept[2::2])
    assert kept[5] < min(kept[1], kept[3], kept[7])
    for site in pruner.model.sites:
        own, kept_units = pruner.values[site.units], pruner.keep[site.units]
        assert own[kept_units].min() >= own[~kept_units].max()


def test_equal_quotas_take_equally_from_all_sites() -> None:
    pruner, _ = fixed_pruner()
    pruner.set_quota(lambda: torch.full((8,), 0.7))
    pruner.after_step(1)
    first = kept_of(pruner)
    assert max(first[0::2]) - min(first[0::2]) <= 1
    assert max(first[1::2]) - min(first[1::2]) <= 8
    pruner.after_step(2), pruner.after_step(3)
    assert kept_of(pruner) == [3, 32] * 4


def test_small_removals_add_up_to_the_quota() -> None:
    # One site of two weighs three times as much, and 24 heads fall one or two at a time. Rounded
    # alone, the heavier site would lose every one of them until it is three times as small.
    model = tiny(depth=2, num_heads=32, embed_dim=64, mlp_ratio=0.25)
    macs = MacsModel(fixed=0, per_unit=(16, 1, 16, 1))
    budget = Budget(macs=macs, dense_macs=1056, macs_ratio=0.65, steps=tuple(range(1, 25)))
    pruner = Fixed(model, budget, torch.Generator())
    pruner.values = torch.arange(float(model.num_units))
    pruner.set_quota(lambda: torch.tensor([3.0, 1.0, 1.0, 1.0]))
    left = [32.0, 32.0]
    for step in range(1, 25):
        before = kept_of(pruner)[0::2]
        pruner.after_step(step)
        lost = sum(before) - sum(kept_of(pruner)[0::2])
        share = 3 * left[0] / (3 * left[0] + left[1])
        left = [left[0] - lost * share, left[1] - lost * (1 - share)]
    assert kept_of(pruner)[0::2] == pytest.approx(left, abs=1.5)
    assert 2.2 < (32 - kept_of(pruner)[0]) / (32 - kept_of(pruner)[2]) < 3


@given(allocations(), st.integers(0, 2**31), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_quotas_leave_the_budget_as_it_is(case: tuple, seed: int, spread: int) -> None:
    scores, alive, sites, macs, _, budget = case
    random = torch.Generator().manual_seed(seed)
    weights = (spread * torch.randn(len(sites), generator=random)).exp().double()
    debts = 2 * torch.rand(len(sites), generator=random).double() - 1
    keep = allocate(shared_out(scores, alive, sites, weights, debts), alive, sites, macs, budget)
    counts = [int(keep[s.units].sum()) for s in sites]
    left = [int(alive[s.units].sum()) - n for s, n in zip(sites, counts, strict=True)]
    assert macs.total(counts) <= budget
    groups = [8 * c for c, n in zip(macs.per_unit[1::2], left[1::2], strict=True) if n >= 8]
    assert all(budget - macs.total(counts) < cost for cost in groups)
    for site, count in zip(sites, counts, strict=True):
        assert keep[best_first(scores, alive, site)[:count]].all()


def test_returning_units_keep_the_sizes_that_quotas_gave() -> None:
    pruner, _ = fixed_pruner(refresh=(4,))
    pruner.set_quota(lambda: torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    pruner.allow_regrowth()
    for step in (1, 2, 3):
        pruner.after_step(step)
    sizes, before = kept_of(pruner), pruner.keep.clone()
    pruner.values = -pruner.values  # the worst are the best now
    pruner.after_step(4)
    assert kept_of(pruner) == sizes
    assert (pruner.keep & ~before).any()


def test_debts_are_part_of_the_state() -> None:
    one, _ = fixed_pruner()
    other, _ = fixed_pruner()
    one.set_quota(lambda: torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    one.after_step(1)
    assert one.debts.any()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.debts, one.debts)


@pytest.mark.parametrize("weights", [[1.0] * 7, [1.0] * 7 + [0.0], [1.0] * 7 + [float("nan")]])
def test_quotas_that_are_none_are_refused(weights: list[float]) -> None:
    pruner, _ = fixed_pruner()
    pruner.set_quota(lambda: torch.tensor(weights))
    with pytest.raises(ValueError, match="a quota needs one positive weight per site"):
        pruner.after_step(1)


def test_margin_spares_units_from_changing_places() -> None:
    # All dormant units have scores a tenth above those kept: with a margin of a fifth none returns.
    for margin, returns in ((0.0, True), (0.2, False)):
        pruner, _ = fixed_pruner(refresh=(4,))
        pruner.allow_regrowth(margin)
        for step in (1, 2, 3):
            pruner.after_step(step)
        before = pruner.keep.clone()
        pruner.values = torch.where(before, 1.0, 1.1)
        changed = pruner.after_step(4)
        assert (changed is not None) == returns
        assert bool((pruner.keep & ~before).any()) == returns


def test_choices_cool_from_all_to_nothing() -> None:
    _, budget = fixed_pruner(refresh=(4, 5))
    assert [budget.cooling(step) for step in (1, 3, 5)] == pytest.approx([1.0, 0.5, 0.0])
    _, budget = fixed_pruner(steps=(1,))
    assert budget.cooling(1) == 1.0


def test_returns_are_limited_and_the_best_of_them_come() -> None:
    pruner, budget = fixed_pruner(refresh=(4, 5, 6))
    pruner.allow_regrowth(returns=0.4)
    for step in (1, 2, 3):
        pruner.after_step(step)
    neurons = torch.cat(
        [torch.full((s.num_units,), s.kind == "neurons") for s in pruner.model.sites]
    )
    for step in (4, 5, 6):
        before = pruner.keep.clone()
        # What rests is worth more than all that is kept, each unit something else.
        values = torch.rand(len(before), generator=torch.Generator().manual_seed(step))
        pruner.values = torch.where(before, values, 2 + values)
        pruner.after_step(step)
        back = pruner.keep & ~before
        # 12 heads and 128 neurons are kept.
        for own, kept in ((~neurons, 12), (neurons, 128)):
            assert int((pruner.keep & own).sum()) == kept
            resting = (own & ~before).nonzero()[:, 0]
            order = torch.argsort(pruner.values[resting], descending=True)
            best = resting[order[: int(kept * 0.4 * budget.cooling(step))]]
            assert back[best].all()
            assert int((back & own).sum()) == len(best)
        assert bool(back.any()) == (step < 6), "none at the last choice"


def test_without_returns_there_are_no_choices_at_refresh_steps() -> None:
    pruner, _ = fixed_pruner(refresh=(4,))
    for step in (1, 2, 3):
        pruner.after_step(step)
    pruner.values = -pruner.values
    assert pruner.after_step(4) is None


def test_a_budget_out_of_reach_is_refused_before_the_training() -> None:
    # One head and eight neurons a site cost 4 * (16 + 8) of 640.
    with pytest.raises(ValueError, match=r"a budget of 64 MACs is below .* need 96"):
        fixed_pruner(macs_ratio=0.1)
