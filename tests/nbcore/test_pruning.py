"""Budgets are met, never exceeded, and what is removed stays removed to the bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbcore.config import Arch, Merge
from nbcore.macs import MacsModel, macs_of
from nbcore.mitigation import Mitigation
from nbcore.pruning import PRUNERS, Budget, allocate, removal_steps
from nbcore.pruning.base import NEURON_GROUP
from nbcore.pruning.taylor import TaylorPruner
from nbcore.train import train
from nbcore.vit import PrunableViT, Site, sites_of
from tests.nbcore.runs import CPU, TRAIN, shapes, train_pruned
from tests.nbcore.tiny import tiny

MERGE = Merge(block=1, r=4)


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


def unpruned_budget(model: PrunableViT, ratio: float = 0.5) -> Budget:
    macs = macs_of(model)
    whole = macs.total([site.num_units for site in model.sites])
    return Budget(macs=macs, dense_macs=whole, macs_ratio=ratio, steps=(1,))


@torch.no_grad()
def test_magnitude_by_hand() -> None:
    model = tiny(depth=1, num_heads=2, embed_dim=4)
    block = model.vit.blocks[0]
    for layer in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        layer.weight.zero_()
    block.attn.proj.weight[0] = torch.tensor([1.0, 1.0, 3.0, 0.0])  # heads: 1 + 1 and 9
    block.mlp.fc1.weight[:, :2] = torch.tensor([[1.0, 1.0], [2.0, 0.0]])  # rows: 2 and 4
    block.mlp.fc2.weight[3] = torch.tensor([3.0, 1.0])  # columns: 9 and 1
    pruner = PRUNERS["magnitude"](model, unpruned_budget(model), torch.Generator())
    # Heads 2 and 9 with mean 5.5, neurons 18 and 4 with mean 11.
    expected = torch.tensor([2 / 5.5, 9 / 5.5, 18 / 11, 4 / 11], dtype=torch.float64)
    torch.testing.assert_close(pruner.scores(), expected)
    # The mean is that of the living: without neuron 1 it is 18.
    pruner.load_state_dict({"keep": torch.tensor([True, True, True, False])})
    torch.testing.assert_close(pruner.scores()[2:], torch.tensor([1, 4 / 18], dtype=torch.float64))


class Watched(TaylorPruner):
    """Keeps the gradients it was shown."""

    seen: Tensor

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        assert gate_gradient is not None
        self.seen = gate_gradient.clone()
        super().after_backward(gate_gradient)


class Watcher(Mitigation):
    """Keeps the images of the last step."""

    def loss_term(self, images: Tensor, logits: Tensor) -> None:
        self.images = images.clone()


def test_taylor_score_is_the_squared_gradient_of_each_image_alone() -> None:
    data = shapes(img_size=32)
    split = replace(data.train, images=data.train.images[:2], targets=torch.tensor([3, 3]))
    data = replace(data, train=replace(split, names=split.names[:2]))
    config = replace(
        TRAIN, epochs=((32, 1),), batch_size=2, mixup=0.0, cutmix=0.0, smoothing=0.0, ema_decay=0
    )
    kwargs = {"depth": 1, "num_heads": 2, "embed_dim": 8, "mlp_ratio": 2.0}
    model = tiny(**kwargs, class_token=False, global_pool="avg").float()
    before = copy.deepcopy(model).train()
    budget = replace(unpruned_budget(model), steps=(100,))
    pruner, watcher = Watched(model, budget, torch.Generator()), Watcher()
    with pytest.raises(ValueError, match="training ended before the budget was met"):
        train(model, data, config, seed=0, device=CPU, mitigation=watcher, pruner=pruner)
    alone = []
    for image in watcher.images:
        gate = torch.ones(1, model.num_units, requires_grad=True)
        F.cross_entropy(before(image[None], gate), torch.tensor([3])).backward()
        assert gate.grad is not None
        alone.append(gate.grad[0])
    torch.testing.assert_close(pruner.seen, torch.stack(alone), rtol=1e-4, atol=1e-7)
    expected = 0.1 * (alone[0] ** 2 + alone[1] ** 2) / 2  # first step of an EMA of 0.9 from zero
    torch.testing.assert_close(pruner.scores(), expected, rtol=1e-4, atol=1e-9)


def test_taylor_average_by_hand_and_unharmed_by_broken_steps() -> None:
    model = tiny()
    pruner = PRUNERS["taylor"](model, unpruned_budget(model), torch.Generator())
    ones = torch.ones(2, model.num_units)
    pruner.after_backward(torch.stack([ones[0], 3 * ones[0]]))  # mean of 1 and 9, times 0.1
    for broken in (torch.nan, torch.inf):
        spoilt = ones.clone()
        spoilt[0, 0] = broken
        pruner.after_backward(spoilt)
    torch.testing.assert_close(pruner.scores(), torch.full((model.num_units,), 0.5))
    pruner.after_backward(2 * ones)  # 0.9 * 0.5 + 0.1 * 4
    torch.testing.assert_close(pruner.scores(), torch.full((model.num_units,), 0.85))


def test_random_keeps_one_order_and_differs_by_seed() -> None:
    model = tiny()
    one, two, other = (
        PRUNERS["random"](model, unpruned_budget(model), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.scores(), two.scores())
    assert not torch.equal(one.scores(), other.scores())
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.scores(), other.scores())


@pytest.mark.parametrize("merge", [None, MERGE], ids=["plain", "merging"])
@pytest.mark.parametrize("name", list(PRUNERS))
def test_training_meets_the_budget_at_the_promised_step(name: str, merge: Merge | None) -> None:
    seen: dict[int, Tensor] = {}

    class Log(Mitigation):
        def attach(self, model: PrunableViT, batches: object) -> None:
            self.model = model

        def after_step(self, step: int) -> None:
            seen[step] = self.model.keep.bool().clone()

    result, budget = train_pruned(shapes(img_size=32), pruner=name, mitigation=Log(), merge=merge)
    sites, target = result.model.sites, int(0.5 * budget.dense_macs)
    spent = {
        step: budget.macs.total([int(keep[s.units].sum()) for s in sites])
        for step, keep in seen.items()
    }
    last = budget.steps[-1]
    assert budget.steps == (3, 6, 9)
    assert len(seen) == 16
    assert all(spent[step] > target for step in range(1, last))
    group = 8 * max(budget.macs.per_unit[1::2])
    assert all(target - group < spent[step] <= target for step in range(last, 17))
    assert all(torch.equal(seen[step], result.keep) for step in range(last, 17))
    assert result.history[-1]["macs_ratio"] == spent[16] / budget.dense_macs
    assert all(not (seen[step + 1] & ~seen[step]).any() for step in range(1, 16))


@pytest.mark.parametrize("mitigation", ["none", "handoff"])
def test_removed_weights_and_gradients_are_exactly_zero(mitigation: str) -> None:
    config = replace(TRAIN, ema_decay=0.0)
    result, _ = train_pruned(shapes(img_size=32), config, mitigation=mitigation)
    for index, site in enumerate(result.model.sites):
        gone = (~result.keep[site.units]).nonzero()[:, 0]
        assert len(gone)
        for parameter, dim, owner in result.model.unit_parameters(index):
            assert parameter.grad is not None
            lost = torch.isin(owner, gone)
            where, stays = lost.nonzero()[:, 0], (~lost).nonzero()[:, 0]
            for values in (parameter.detach(), parameter.grad):
                assert not values.index_select(dim, where).any()
                assert values.index_select(dim, stays).any()


def test_average_of_removed_weights_is_exactly_zero() -> None:
    result, _ = train_pruned(shapes(img_size=32))
    for index, site in enumerate(result.model.sites):
        gone = (~result.keep[site.units]).nonzero()[:, 0]
        for parameter, dim, owner in result.model.unit_parameters(index):
            where = torch.isin(owner, gone).nonzero()[:, 0]
            assert not parameter.detach().index_select(dim, where).any()
