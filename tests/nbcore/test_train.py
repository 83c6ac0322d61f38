"""Stopped trainings go on to the same bits; schedule, record and broken gradients by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nbcore.history import site_loads
from nbcore.macs import macs_of
from nbcore.mitigation import Mitigation, StepOutputs, create_mitigation
from nbcore.mitigation.handoff import Handoff
from nbcore.pruning.taylor import TaylorPruner
from nbcore.train import TrainResult, learning_rate, steps_per_epoch, train
from nbcore.vit import PrunableViT
from tests.nbcore.runs import (
    CPU,
    TRAIN,
    assert_same_bits,
    dense_model,
    shapes,
    train_pruned,
    weights_of,
)


class StoppedError(Exception):
    """The power went."""


class Stopping(Mitigation):
    """Stops a training at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if step == self.at:
            raise StoppedError


class StoppingHandoff(Stopping, Handoff):
    def __init__(self, at: int) -> None:
        Handoff.__init__(self)
        self.at = at

    def after_step(self, step: int) -> None:
        Handoff.after_step(self, step)
        Stopping.after_step(self, step)


def train_dense(mitigation: Mitigation | None = None, **options: Any) -> TrainResult:
    config = options.pop("config", TRAIN)
    return train(
        dense_model(),
        shapes(img_size=32),
        config,
        seed=3,
        device=CPU,
        mitigation=mitigation or Mitigation(),
        **options,
    )


# Four steps an epoch, a state after each: before the first, and in the last epoch.
@pytest.mark.parametrize("at", [2, 15])
def test_stopped_dense_training_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "state.pt"
    with pytest.raises(StoppedError):
        train_dense(Stopping(at), state_path=path)
    assert path.exists() == (at > 4)
    torch.manual_seed(99)  # another process
    again, whole = train_dense(state_path=path), train_dense()
    assert_same_bits(weights_of(again), weights_of(whole))
    assert again.history == whole.history


# Units fall after steps 3, 6 and 9: stops before, between and after the removals.
@pytest.mark.parametrize(("at", "host"), [(5, "taylor"), (11, "taylor"), (11, "random")])
def test_stopped_pruned_training_goes_on_to_the_same_bits(
    at: int, host: str, tmp_path: Path
) -> None:
    path, data = tmp_path / "state.pt", shapes(img_size=32)
    with pytest.raises(StoppedError):
        train_pruned(data, pruner=host, mitigation=StoppingHandoff(at), state_path=path)
    again, _ = train_pruned(data, pruner=host, mitigation="handoff", state_path=path)
    whole, _ = train_pruned(data, pruner=host, mitigation="handoff")
    assert_same_bits(weights_of(again), weights_of(whole))
    assert again.history == whole.history
    assert not whole.keep.all()


def test_finished_training_is_read_from_its_state(tmp_path: Path) -> None:
    path, data = tmp_path / "state.pt", shapes(img_size=32)
    whole, _ = train_pruned(data, state_path=path)
    again, _ = train_pruned(data, mitigation=Stopping(1), state_path=path)
    assert_same_bits(weights_of(again), weights_of(whole))


def test_average_is_kept_as_the_result_and_restarts_at_removals() -> None:
    raw, _ = train_pruned(shapes(img_size=32), replace(TRAIN, ema_decay=0.0))
    averaged, _ = train_pruned(shapes(img_size=32))
    name = "vit.blocks.0.attn.proj.weight"
    one, two = raw.model.state_dict()[name], averaged.model.state_dict()[name]
    assert torch.equal(raw.keep, averaged.keep)  # the average does not disturb the training
    assert not torch.equal(one, two)
    assert torch.equal(one == 0, two == 0)


def test_average_by_hand_since_the_last_removal() -> None:
    class Weights(Mitigation):
        def attach(self, model: PrunableViT, batches: object) -> None:
            self.parameter, self.seen = model.vit.head.weight, [model.vit.head.weight.detach()]

        def after_step(self, step: int) -> None:
            self.seen.append(self.parameter.detach().clone())

    weights = Weights()
    result, budget = train_pruned(shapes(img_size=32), mitigation=weights)
    last = budget.steps[-1]
    average = weights.seen[last]
    for k, weight in enumerate(weights.seen[last + 1 :], start=2):
        decay = min(TRAIN.ema_decay, 1 - k ** (-2 / 3))  # timm's warm-up of the k-th update
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(result.model.vit.head.weight, average, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25),  # warm-up over 4 steps to 1
        (3, 1.0),
        (4, 1.0),
        (8, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 4 / 15))),
        (19, 0.1),
    ],
)
def test_learning_rate_by_hand(step: int, expected: float) -> None:
    config = replace(TRAIN, lr=1.0, final_lr=0.1, warmup_epochs=2)
    assert learning_rate(step, 20, 2, config) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_of_a_training_shorter_than_its_warm_up() -> None:
    config = replace(TRAIN, lr=1.0, warmup_epochs=10)
    assert [learning_rate(step, 4, 1, config) for step in range(4)] == [1 / 3, 2 / 3, 1.0, 1.0]
    assert learning_rate(0, 1, 1, config) == 1.0


def test_steps_per_epoch_counts_full_batches() -> None:
    assert [steps_per_epoch(n, 16) for n in (66, 64, 63, 15)] == [4, 4, 3, 1]


def test_history_tells_every_epoch() -> None:
    result, budget = train_pruned(shapes(img_size=32))
    history = result.history
    assert [(r["epoch"], r["step"]) for r in history] == [(1, 4), (2, 8), (3, 12), (4, 16)]
    assert ["validation_top1" in r for r in history] == [False, True, False, True]
    assert [r["lr"] for r in history] == [learning_rate(s, 16, 4, TRAIN) for s in (3, 7, 11, 15)]
    assert [r["skipped_steps"] for r in history] == [0] * 4
    ratios = [r["macs_ratio"] for r in history]
    assert 1 > ratios[0] > ratios[1] > ratios[2] == ratios[3]
    kept = [int(result.keep[s.units].sum()) for s in result.model.sites]
    assert ratios[3] == budget.macs.total(kept) / budget.dense_macs
    assert all(len(r["loads"]) == 4 and min(r["loads"]) > 0 for r in history)
    assert all(0 < r["loss"] < 5 for r in history)


def test_history_tells_loads_as_the_host_gates_them() -> None:
    data, model = shapes(img_size=32), dense_model()
    spec = model.sites[1]
    gates = torch.ones(1, model.num_units)
    gates[:, spec.units] = torch.linspace(-1.0, 2.0, spec.num_units)
    plain = site_loads(model, data, CPU)
    found = site_loads(model, data, CPU, gates)
    assert site_loads(model, data, CPU) == plain, "the mask is as it was"
    with torch.no_grad():
        model.vit.blocks[0].mlp.fc2.weight *= gates[0, spec.units]
    assert found == pytest.approx(site_loads(model, data, CPU), abs=1e-5)
    assert found[1] > 1.03 * plain[1]

    class Gated(TaylorPruner):
        def gate(self) -> Tensor:
            silent = torch.ones(1, self.model.num_units)
            silent[:, spec.units] = 0
            return silent

    history = train_pruned(data, pruner=Gated)[0].history
    assert all((load == 0) == (site == 1) for r in history for site, load in enumerate(r["loads"]))


def test_training_learns() -> None:
    config = replace(TRAIN, epochs=((32, 8),), mixup=0.0, cutmix=0.0, jitter=0.0, erasing=0.0)
    history = train_dense(config=replace(config, weight_decay=0.0, lr=3e-3)).history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


class Breaking(Mitigation):
    """Adds a term to the loss whose gradient is not finite, at some steps."""

    def __init__(self, *steps: int, value: float = math.nan) -> None:
        self.steps, self.value, self.step = steps, value, 1
        self.weights: list[Tensor] = []

    def attach(self, model: PrunableViT, batches: object) -> None:
        self.parameter = model.vit.head.weight

    def loss_term(self, outputs: StepOutputs) -> Tensor | None:
        self.weights.append(self.parameter.detach().clone())
        return outputs.logits.sum() * self.value if self.step in self.steps else None

    def after_step(self, step: int) -> None:
        self.step = step + 1
        if step in self.steps:
            assert torch.equal(self.parameter, self.weights[-1])


MANY = replace(TRAIN, batch_size=2, epochs=((16, 1),), warmup_epochs=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_with_broken_gradients_are_left_out_and_counted(value: float) -> None:
    result = train_dense(Breaking(5, 9, value=value), config=MANY)
    assert result.history[0]["skipped_steps"] == 2
    assert math.isfinite(result.history[0]["loss"])
    assert all(torch.isfinite(t).all() for t in result.model.state_dict().values())


def test_broken_gradients_do_not_spoil_the_ranking() -> None:
    class Kept(TaylorPruner):
        def after_step(self, step: int) -> Tensor | None:
            assert torch.isfinite(self.average).all()
            return super().after_step(step)

    result, _ = train_pruned(shapes(img_size=32), MANY, pruner=Kept, mitigation=Breaking(2, 7))
    assert result.history[0]["skipped_steps"] == 2
    assert int(result.keep.sum()) < len(result.keep)


def test_too_many_broken_steps_stop_with_advice() -> None:
    # 33 steps an epoch: three may break, the fourth is too much.
    text = r"gradients of 4 of 33 steps in epoch 1 were not finite; lower `lr` \(now 0.01\)"
    with pytest.raises(RuntimeError, match=text):
        train_dense(Breaking(1, 2, 3, 4), config=MANY)
    assert train_dense(Breaking(1, 2, 3), config=MANY).history[0]["skipped_steps"] == 3


def test_an_epoch_of_one_broken_step_stops_with_the_same_advice() -> None:
    config = replace(TRAIN, batch_size=100, epochs=((16, 1),))
    with pytest.raises(RuntimeError, match="gradients of 1 of 1 steps in epoch 1"):
        train_dense(Breaking(1), config=config)


def test_loss_of_left_out_steps_is_not_in_the_mean() -> None:
    alone: list[float] = []

    class Steep(Breaking):
        """The root of zero is finite, its gradient is not."""

        def loss_term(self, outputs: StepOutputs) -> Tensor | None:
            targets = torch.full((len(outputs.images),), 3)
            alone.append(F.cross_entropy(outputs.logits.detach(), targets).item())
            return (0 * outputs.logits.sum()).abs().sqrt() if self.step in self.steps else None

        def after_step(self, step: int) -> None:
            self.step = step + 1

    plain = replace(MANY, batch_size=22, mixup=0.0, cutmix=0.0, smoothing=0.0)  # three steps
    data = shapes(img_size=32)
    data = replace(data, train=replace(data.train, targets=torch.full_like(data.train.targets, 3)))
    result = train(dense_model(), data, plain, seed=0, device=CPU, mitigation=Steep(2))
    assert result.history[0]["skipped_steps"] == 1
    assert result.history[0]["loss"] == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-5)


def test_dense_macs_default_to_the_models_own() -> None:
    result = train_dense(config=MANY)
    assert result.history[0]["macs_ratio"] == 1.0
    assert result.keep.all()
    assert macs_of(result.model).fixed > 0


def test_same_seed_same_bits_and_another_seed_others() -> None:
    few = replace(MANY, batch_size=16)
    one, two = train_dense(config=few), train_dense(config=few)
    assert_same_bits(weights_of(one), weights_of(two))
    other = train(
        dense_model(),
        shapes(img_size=32),
        few,
        seed=4,
        device=CPU,
        mitigation=create_mitigation("none", {}),
    )
    assert other.history != one.history
