"""The unstructured host: shares, zeros that stay zeros, and a dense copy where weights return."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nbcore.config import Merge, PruneConfig
from nbcore.macs import macs_of
from nbcore.mitigation import Mitigation
from nbcore.pipeline import run_variant
from nbcore.pruning import Budget
from nbcore.pruning.weights import WeightsPruner, block_matrices, largest
from nbcore.vit import PrunableViT
from tests.nbcore.runs import CPU, DENSE, GENTLE, shapes, toy_child, train_pruned
from tests.nbcore.tiny import tiny

SHARE = 0.3
REFRESH = (11, 13)


def build(model: PrunableViT, budget: Budget, generator: torch.Generator) -> WeightsPruner:
    return WeightsPruner(model, replace(budget, macs_ratio=SHARE, refresh=REFRESH), generator)


def whole_shares(share: float, matrices: list[Tensor]) -> list[int]:
    return [int(share * matrix.numel() + 1e-9) for matrix in matrices]


class Zeros(Mitigation):
    """Counts the weights that are not zero, and holds each against what it was."""

    def __init__(self, *, regrows: bool = False) -> None:
        self.regrows = regrows
        self.counts: dict[int, list[int]] = {}
        self.patterns: dict[int, list[Tensor]] = {}

    def attach(self, model: PrunableViT, batches: object) -> None:
        self.matrices = block_matrices(model)

    def after_step(self, step: int) -> None:
        self.patterns[step] = [matrix.detach() != 0 for matrix in self.matrices]
        self.counts[step] = [int(pattern.sum()) for pattern in self.patterns[step]]


@pytest.mark.parametrize("merge", [None, Merge(block=1, r=4)], ids=["plain", "merging"])
@pytest.mark.parametrize("regrows", [False, True], ids=["none", "returning"])
def test_every_matrix_keeps_exactly_its_share_at_the_promised_steps(
    regrows: bool, merge: Merge | None
) -> None:
    zeros = Zeros(regrows=regrows)
    result, budget = train_pruned(shapes(img_size=32), pruner=build, mitigation=zeros, merge=merge)
    assert budget.steps == (3, 6, 9)
    # 0.3 + 0.7 (1 - t)^3 at t = 1/3, 2/3, 1: 0.3 + 0.7 * 8 / 27, 0.3 + 0.7 / 27, 0.3.
    shares = [1.0] * 2 + [0.3 + 5.6 / 27] * 3 + [0.3 + 0.7 / 27] * 3 + [0.3] * 8
    for step, share in enumerate(shares, start=1):
        assert zeros.counts[step] == whole_shares(share, zeros.matrices)
    # The result is an average since the last choice: as sparse, and with the same zeros.
    final = block_matrices(result.model)
    for found, wanted in zip(final, zeros.patterns[16], strict=True):
        assert torch.equal(found != 0, wanted)
    returned = [
        bool((new & ~old).any())
        for step in range(1, 16)
        for old, new in zip(zeros.patterns[step], zeros.patterns[step + 1], strict=True)
    ]
    assert any(returned) == regrows
    total = sum(matrix.numel() for matrix in zeros.matrices)
    for record in result.history:
        assert record["weights_ratio"] == sum(zeros.counts[record["step"]]) / total
    for step in range(REFRESH[-1] if regrows else 9, 16):
        pairs = zip(zeros.patterns[step], zeros.patterns[16], strict=True)
        assert all(torch.equal(old, new) for old, new in pairs)
    assert result.keep.all()
    assert result.history[-1]["macs_ratio"] == pytest.approx(
        macs_of(result.model).total([s.num_units for s in result.model.sites]) / budget.dense_macs
    )


def test_masked_weights_get_no_gradients_and_others_do() -> None:
    result, _ = train_pruned(shapes(img_size=32), replace(GENTLE, ema_decay=0), pruner=build)
    for matrix in block_matrices(result.model):
        assert matrix.grad is not None
        assert not matrix.grad[matrix == 0].any()
        assert matrix.grad[matrix != 0].any()


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_stay_and_exactly_as_many(values: list[int], share: float, seed: int) -> None:
    weight = torch.tensor(values, dtype=torch.float64) * 1e-9  # far below one: no rounding to ties
    mask = largest(weight, share)
    assert int(mask.sum()) == int(share * len(values) + 1e-9)
    kept, gone = weight[mask == 1].abs(), weight[mask == 0].abs()
    assert not len(kept) or not len(gone) or kept.min() >= gone.max()
    random = torch.rand(len(values), generator=torch.Generator().manual_seed(seed))
    among = (random < 0.7).double()
    within = largest(weight, share * among.mean().item(), among)
    assert not within[among == 0].any()


def test_a_masked_zero_does_not_come_back_before_a_kept_one() -> None:
    among = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert largest(torch.zeros(4), 0.5, among).tolist() == among.tolist()


@torch.no_grad()
def test_step_of_the_dense_copy_by_hand() -> None:
    model = tiny(depth=1)
    for matrix in block_matrices(model):
        matrix.fill_(1.0)
    weight = model.vit.blocks[0].mlp.fc1.weight
    weight[0, 0], weight[0, 1] = 0.25, 0.5
    budget = Budget(
        macs=macs_of(model), dense_macs=1, macs_ratio=1 - 2 / 512, steps=(1,), refresh=(3,)
    )
    pruner = WeightsPruner(model, budget, torch.Generator())
    pruner.allow_regrowth()
    pruner.damping = 0.1
    pruner.after_backward(None)
    pruner.after_step(1)  # the two smallest of 16 * 32 are masked
    assert weight.flatten()[:3].tolist() == [0, 0, 1]
    pruner.after_backward(None)  # the step is taken from the dense weights
    assert weight.flatten()[:3].tolist() == [0.25, 0.5, 1]
    weight[0, :3] += 2.0  # what an optimiser does
    pruner.after_step(2)
    assert weight.flatten()[:3].tolist() == [0, 0, 3]  # a tenth of it for those that are masked
    pruner.after_backward(None)
    assert weight.flatten()[:3].tolist() == pytest.approx([0.45, 0.7, 3])
    weight[0, 0] += 20.0  # 0.45 + 2: larger than the others now, so it returns for weight 3
    weight[0, 3] = 0.1
    pruner.after_step(3)
    assert weight.flatten()[:4].tolist() == pytest.approx([2.45, 0, 3, 0])
    assert pruner.dense is None  # frozen: from here on masked weights get no gradients
    for matrix in block_matrices(model):
        matrix.grad = torch.ones_like(matrix)
    pruner.after_backward(None)
    assert weight.grad.flatten()[:4].tolist() == [1, 0, 1, 0]


def test_a_broken_step_moves_no_copy() -> None:
    model = tiny(depth=1)
    budget = Budget(macs=macs_of(model), dense_macs=1, macs_ratio=0.5, steps=(1,), refresh=(9,))
    pruner = WeightsPruner(model, budget, torch.Generator())
    pruner.allow_regrowth()
    pruner.after_backward(None)
    pruner.after_step(1)
    assert pruner.dense is not None
    before = copy.deepcopy(pruner.dense)
    pruner.after_backward(None)
    pruner.after_step(2)  # the optimiser left this step out
    for copied, wanted in zip(pruner.dense, before, strict=True):
        torch.testing.assert_close(copied, wanted, rtol=1e-15, atol=0)


def test_margin_spares_weights_from_changing_places() -> None:
    for margin, returns in ((0.0, True), (0.2, False)):
        model = tiny(depth=1)
        budget = Budget(macs=macs_of(model), dense_macs=1, macs_ratio=0.5, steps=(1,), refresh=(2,))
        pruner = WeightsPruner(model, budget, torch.Generator())
        pruner.allow_regrowth(margin)
        pruner.after_step(1)
        assert pruner.dense is not None
        before = [mask.clone() for mask in pruner.masks]
        for dense, mask in zip(pruner.dense, before, strict=True):
            dense.copy_(1.1 - 0.1 * mask)  # what is masked is a tenth larger
        with torch.no_grad():
            torch._foreach_copy_(pruner.matrices, pruner.dense)
        pruner.after_step(2)
        pairs = zip(before, pruner.masks, strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs) == returns


@torch.no_grad()
def test_returning_weights_are_limited_and_the_largest_come() -> None:
    model = tiny(depth=1)
    budget = Budget(
        macs=macs_of(model), dense_macs=1, macs_ratio=0.5, steps=(1,), refresh=(2, 3, 4)
    )
    pruner = WeightsPruner(model, budget, torch.Generator())
    pruner.allow_regrowth(returns=0.2)
    pruner.after_step(1)
    for step, share in ((2, 0.15), (3, 0.05), (4, 0.0)):
        assert pruner.dense is not None
        before = [mask.clone() for mask in pruner.masks]
        for dense, mask in zip(pruner.dense, before, strict=True):
            # What is masked is the larger, every weight by something else.
            size = torch.linspace(1, 2, dense.numel()).view_as(dense)
            dense.copy_(size + 2 * (1 - mask))
        torch._foreach_copy_(pruner.matrices, pruner.dense)
        pruner.after_step(step)
        for old, new in zip(before, pruner.masks, strict=True):
            kept = old.numel() // 2
            assert int(new.sum()) == kept
            back = ((new == 1) & (old == 0)).flatten().nonzero()[:, 0]
            resting = (old == 0).flatten().nonzero()[:, 0]
            count = int(share * kept + 1e-9)
            assert back.tolist() == resting[len(resting) - count :].tolist()


def test_a_training_that_ends_before_the_budget_is_told() -> None:
    model = tiny(depth=1)
    budget = Budget(macs=macs_of(model), dense_macs=1, macs_ratio=0.5, steps=(8,))
    pruner = WeightsPruner(model, budget, torch.Generator())
    with pytest.raises(ValueError, match=r"1.000 of the block weights left, target 0.5"):
        pruner.finalize()


def test_removed_weights_that_came_back_by_themselves_are_told() -> None:
    class Meddling(Zeros):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step == 16:
                with torch.no_grad():
                    fc1 = self.matrices[2]
                    fc1.view(-1)[(fc1 == 0).flatten().nonzero()[:2, 0]] = 1.0

    with pytest.raises(ValueError, match="2 block weights that host weights removed are not zero"):
        train_pruned(shapes(img_size=32), pruner=build, mitigation=Meddling())


def test_a_variant_of_this_host_is_refused(tmp_path: Path) -> None:
    config = toy_child(prune=PruneConfig(pruner="weights", macs_ratio=0.5))
    with pytest.raises(ValueError, match=r"nothing to compact .* runs in studies only"):
        run_variant(config, tmp_path, None, CPU, command="")
    assert config.base == DENSE.id
    assert not any(tmp_path.iterdir())
