"""What every host owes the trainer: the budget, stillness of what is removed, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nbcore.compact import compact
from nbcore.config import Merge
from nbcore.masking import Masking
from nbcore.mitigation import Mitigation
from nbcore.pruning import PRUNERS, Budget, Pruner
from nbcore.train import TrainResult
from nbcore.vit import PrunableViT
from tests.nbcore.runs import TRAIN, assert_same_bits, shapes, train_pruned, weights_of
from tests.nbcore.tiny import close, pictures, tiny

MERGE = Merge(block=1, r=4)
STRUCTURED = [name for name in PRUNERS if PRUNERS[name].compacts]
FROM_THE_START = {"s2vite"}
LEARNS_ITS_MASKS = {"wdpruning"}
KEEPS_ALL_TO_THE_END = {"vit_slim"}
ALWAYS_REGROWS = {"s2vite", "wdpruning"}
REFRESH = (11, 13)


class Record(Mitigation):
    """Sees every step of a training, and stops it where it is told."""

    def __init__(
        self, *, regrows: bool = False, returns: float | None = None, stop_at: int | None = None
    ) -> None:
        self.regrows, self.returns, self.stop_at = regrows, returns, stop_at
        self.fade_steps = 2 if regrows else 0
        self.margin = 0.05 if regrows else 0.0
        self.seen: dict[int, Tensor] = {}

    def attach(self, model: PrunableViT, batches: object) -> None:
        self.model = model
        self.mask = torch.ones(model.num_units, dtype=torch.bool)

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        start = self.model.sites[site].start
        self.mask[start + lost], self.mask[start + regained] = False, True

    def after_step(self, step: int) -> None:
        assert not (self.model.keep > 0)[~self.mask].any()
        self.seen[step] = self.mask.clone()
        if step == self.stop_at:
            raise StoppedError


class StoppedError(Exception):
    """The power went."""


def host(name: str, **changes: Any) -> Callable[..., Pruner]:
    """A host whose budget differs from that of `budget_for`."""

    def build(model: PrunableViT, budget: Budget, generator: torch.Generator) -> Pruner:
        return PRUNERS[name](model, replace(budget, **changes), generator)

    return build


def spent_by(keep: Tensor, result: TrainResult, budget: Budget) -> int:
    return budget.macs.total([int(keep[s.units].sum()) for s in result.model.sites])


@pytest.mark.parametrize("merge", [None, MERGE], ids=["plain", "merging"])
@pytest.mark.parametrize("name", STRUCTURED)
def test_training_meets_the_budget_at_the_promised_step(name: str, merge: Merge | None) -> None:
    record = Record()
    result, budget = train_pruned(shapes(img_size=32), pruner=name, mitigation=record, merge=merge)
    seen, target = record.seen, int(0.5 * budget.dense_macs)
    spent = {step: spent_by(keep, result, budget) for step, keep in seen.items()}
    assert budget.steps == (3, 6, 9)
    assert len(seen) == 16
    promised = 1 if name in FROM_THE_START else 9
    if name not in LEARNS_ITS_MASKS:
        assert all(spent[step] > target for step in range(1, promised))
    group = 8 * max(budget.macs.per_unit[1::2])
    assert all(target - group < spent[step] <= target for step in range(promised, 17))
    assert all(torch.equal(seen[step], result.keep) for step in range(9, 17))
    assert result.history[-1]["macs_ratio"] == spent[16] / budget.dense_macs
    if name in KEEPS_ALL_TO_THE_END:
        assert all(seen[step].all() for step in range(1, 9))
    if name not in ALWAYS_REGROWS:
        assert all(not (seen[step + 1] & ~seen[step]).any() for step in range(1, 16))


@pytest.mark.parametrize("name", STRUCTURED)
def test_budget_holds_while_units_may_return_and_masks_freeze(name: str) -> None:
    record = Record(regrows=True)
    result, budget = train_pruned(
        shapes(img_size=32), pruner=host(name, refresh=REFRESH), mitigation=record
    )
    target, group = int(0.5 * budget.dense_macs), 8 * max(budget.macs.per_unit[1::2])
    for step in range(9, 17):
        assert target - group < spent_by(record.seen[step], result, budget) <= target
    assert all(torch.equal(record.seen[step], result.keep) for step in range(REFRESH[-1], 17))


class Stillness(Record):
    """Checks after every step that what was removed before it is where it was left."""

    def __init__(self, name: str, *, regrows: bool) -> None:
        super().__init__(regrows=regrows)
        self.dormant = regrows or name in ALWAYS_REGROWS
        self.folds = name in KEEPS_ALL_TO_THE_END
        """Gates go into the write weights of what returns at the last choice."""
        self.rest: dict[tuple[int, int], list[Tensor]] = {}
        """Parameters of removed units, by site and unit."""
        self.checks = 0
        self.returned = 0

    def parameters_of(self, site: int, unit: int) -> list[tuple[Tensor, Tensor]]:
        """(values, gradient) of everything that belongs to a unit."""
        found = []
        for parameter, dim, owner in self.model.unit_parameters(site):
            own = (owner == unit).nonzero()[:, 0]
            assert parameter.grad is not None
            values = parameter.detach().index_select(dim, own)
            found.append((values.clone(), parameter.grad.index_select(dim, own)))
        return found

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        super().on_keep_changed(site, lost, regained, kept)
        for unit in lost.tolist():
            parts = self.parameters_of(site, unit)
            self.rest[site, unit] = [values if self.dormant else 0 * values for values, _ in parts]
        for unit in regained.tolist():
            values = [values for values, _ in self.parameters_of(site, unit)][self.folds :]
            rest = self.rest.pop((site, unit))[self.folds :]
            assert all(torch.equal(v, r) for v, r in zip(values, rest, strict=True))
            self.returned += 1

    def after_step(self, step: int) -> None:
        before = self.seen.get(step - 1)
        super().after_step(step)
        for (site, unit), rest in self.rest.items():
            parts = self.parameters_of(site, unit)
            assert all(torch.equal(v, r) for (v, _), r in zip(parts, rest, strict=True))
            position = self.model.sites[site].start + unit
            if before is not None and not before[position]:
                assert not any(gradient.any() for _, gradient in parts)
                self.checks += 1


@pytest.mark.parametrize("regrows", [False, True], ids=["none", "returning"])
@pytest.mark.parametrize("name", STRUCTURED)
def test_removed_units_lie_still_and_get_no_gradients(name: str, regrows: bool) -> None:
    # With weight decay 0.5 and learning rate 1e-2 moments or decay would move anything they reach.
    watch = Stillness(name, regrows=regrows)
    result, _ = train_pruned(
        shapes(img_size=32), pruner=host(name, refresh=REFRESH), mitigation=watch
    )
    assert watch.checks > 20
    assert not watch.returned or watch.dormant
    if name in ALWAYS_REGROWS:
        assert watch.returned
    if not watch.dormant:  # nor is anything of them in the average, which is the result
        for index, site in enumerate(result.model.sites):
            gone = (~result.keep[site.units]).nonzero()[:, 0]
            assert len(gone)
            for parameter, dim, owner in result.model.unit_parameters(index):
                where = torch.isin(owner, gone).nonzero()[:, 0]
                assert not parameter.detach().index_select(dim, where).any()


@pytest.mark.parametrize(
    ("regrows", "returns"),
    [(False, None), (True, None), (True, 0.5)],
    ids=["none", "returning", "limited"],
)
@pytest.mark.parametrize("name", list(PRUNERS))
def test_stopped_trainings_go_on_to_the_same_bits(
    name: str, regrows: bool, returns: float | None, tmp_path: Path
) -> None:
    # Removals after steps 6 and 9, choices again after 11 and 14, a state after steps 4, 8 and 12:
    # stopped before the removals, between them, and between the later choices.
    data, path = shapes(img_size=32), tmp_path / "state.pt"
    build = host(name, steps=(6, 9), refresh=(11, 14))
    whole, _ = train_pruned(data, pruner=build, mitigation=Record(regrows=regrows, returns=returns))
    for stop in (5, 10, 13):
        with pytest.raises(StoppedError):
            train_pruned(
                data,
                pruner=build,
                mitigation=Record(regrows=regrows, returns=returns, stop_at=stop),
                state_path=path,
            )
        torch.manual_seed(stop)  # another process
    again, _ = train_pruned(
        data, pruner=build, mitigation=Record(regrows=regrows, returns=returns), state_path=path
    )
    assert_same_bits(weights_of(again), weights_of(whole))
    assert again.history == whole.history


@pytest.mark.parametrize("regrows", [False, True], ids=["none", "returning"])
@pytest.mark.parametrize("name", STRUCTURED)
def test_compaction_of_the_result_is_exact(name: str, regrows: bool) -> None:
    result, _ = train_pruned(
        shapes(img_size=32),
        pruner=host(name, refresh=REFRESH),
        mitigation=Record(regrows=regrows),
        merge=MERGE,
    )
    model, images = result.model.double(), pictures(4)
    small = compact(model, result.keep)
    assert sum(small.arch.hidden_features) < sum(model.arch.hidden_features)
    with torch.no_grad():
        close(small(images), model(images))


@pytest.mark.parametrize("name", STRUCTURED)
def test_the_trained_mask_is_the_hosts(name: str) -> None:
    built: list[Any] = []

    def build(*arguments: Any) -> Pruner:
        built.append(host(name, refresh=REFRESH)(*arguments))
        return built[0]

    record = Record(regrows=True)
    train_pruned(shapes(img_size=32), pruner=build, mitigation=record)
    assert torch.equal(built[0].keep, record.seen[16])


@pytest.mark.parametrize("rows", [1, 3], ids=["of-a-host", "per-image"])
def test_gates_of_missing_units_tell_what_their_return_would_change(rows: int) -> None:
    model, images = tiny(), pictures(3)
    optimizer = torch.optim.AdamW(model.parameters())
    keep = torch.ones(model.num_units, dtype=torch.bool)
    keep[[1, 9]] = False
    masking = Masking(model, dormant=True)
    masking.change(keep, optimizer)
    leaf = torch.full((rows, model.num_units), 0.9, dtype=torch.float64, requires_grad=True)
    gate, replaces = masking.gate(leaf)
    assert replaces
    model(images, gate, replace_mask=True).pow(2).sum().backward()
    plain = tiny()  # the same function of its gates, at zero for the two
    open_gate = (0.9 * keep.double()).repeat(rows, 1).requires_grad_(True)
    plain(images, open_gate).pow(2).sum().backward()
    assert leaf.grad is not None
    assert open_gate.grad is not None
    close(leaf.grad, open_gate.grad, 1e-10)
    assert leaf.grad[:, [1, 9]].abs().min() > 1e-6


def test_returning_units_start_with_a_typical_second_moment() -> None:
    """From zero AdamW would move them by more than three times its usual step at once."""
    model = tiny(depth=1, num_heads=2, embed_dim=8, mlp_ratio=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    masking = Masking(model, dormant=True)
    weight = model.vit.blocks[0].mlp.fc1.weight

    def moved() -> float:
        """How far a step at gradient 3 moves the first neuron, in learning rates."""
        before = weight.detach()[0].clone()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        weight.grad[0] *= masking.keep[2]
        optimizer.step()
        masking.after_optimizer_step()
        return (weight.detach()[0] - before).abs().max().item() / 1e-3

    keep = torch.ones(model.num_units, dtype=torch.bool)
    assert [moved() for _ in range(3)] == pytest.approx([1, 1, 1], rel=1e-3)
    keep[2] = False
    masking.change(keep, optimizer)
    assert not any(moved() for _ in range(300))
    masking.change(torch.ones_like(keep), optimizer)
    # m = 3 (1 - 0.9^n), and v is that of the other neurons: a start as gentle as that of m.
    assert [moved() for _ in range(30)] == pytest.approx(
        [1 - 0.9**n for n in range(1, 31)], rel=1e-3
    )


def test_config_of_these_tests_is_harsh() -> None:
    assert (TRAIN.lr, TRAIN.weight_decay) == (1e-2, 0.5)
