"""Small pruned trainings in which units may return, and a look at what happens inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nbcore.macs import macs_of
from nbcore.mitigation import Mitigation, create_mitigation, parts_of
from nbcore.pruning import PRUNERS, Budget, Pruner, plan_budget
from nbcore.pruning.taylor import TaylorPruner
from nbcore.train import TrainResult, steps_per_epoch, train
from nbcore.vit import PrunableViT, with_merge
from tests.nbcore.runs import CPU, TRAIN, dense_model, shapes

OPTIONS: dict[str, dict[str, Any]] = {
    "token_merging": {"block": 1, "r": 4},
    "persistent_dynamic": {"fade": 3, "margin": 0.0, "returns": None},
    "homeostasis": {"every": 2},
}
"""Of mitigations whose defaults do not fit a training of sixteen steps."""


class Restless(TaylorPruner):
    """A host that ranks units at random, anew at each choice: many leave and, if they may,
    return."""

    choices = 0

    def scores(self) -> Tensor:
        self.choices += 1
        generator = torch.Generator().manual_seed(self.choices)
        return torch.rand(self.model.num_units, generator=generator)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"choices": self.choices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.choices = state["choices"]


def mitigation_named(name: str) -> Mitigation:
    """A mitigation with the options of small trainings."""
    parts = parts_of(name)
    return create_mitigation(name, {part: OPTIONS[part] for part in parts if part in OPTIONS})


def budget_with_returns(model: PrunableViT) -> Budget:
    """Removals after steps 5, 6, 7 and 9 of sixteen, choices again after 10, 11 and 12."""
    data = shapes(img_size=32)
    per_epoch = steps_per_epoch(len(data.train.names), TRAIN.batch_size)
    plain = macs_of(with_merge(model, None))
    return plan_budget(
        macs_of(model),
        dense_macs=plain.total([site.num_units for site in model.sites]),
        macs_ratio=0.5,
        total_steps=per_epoch * TRAIN.total_epochs,
        start=0.3,
        end=0.6,
        updates=4,
        freeze=0.8,
    )


def train_mitigated(
    mitigation: str | Mitigation,
    *,
    pruner: str | Callable[..., Pruner] = Restless,
    **options: Any,
) -> tuple[TrainResult, Budget]:
    """A pruned training of sixteen steps in four epochs, from random weights."""
    if isinstance(mitigation, str):
        mitigation = mitigation_named(mitigation)
    model = with_merge(dense_model(), mitigation.merge())
    budget = budget_with_returns(model)
    factory = PRUNERS[pruner] if isinstance(pruner, str) else pruner
    result = train(
        model,
        shapes(img_size=32),
        replace(TRAIN, eval_every=4),
        seed=0,
        device=CPU,
        mitigation=mitigation,
        pruner=factory(model, budget, torch.Generator().manual_seed(0)),
        dense_macs=budget.dense_macs,
        title=None,
        **options,
    )
    return result, budget


@dataclass
class Watcher(Mitigation):
    """Writes down which units leave and return, and gates and weights after every step."""

    lost: dict[int, list[int]] = field(default_factory=dict)
    """Units by the step at which they left."""
    regained: dict[int, list[int]] = field(default_factory=dict)
    gates: list[Tensor] = field(default_factory=list)
    """After step 1, 2, ... [U]."""
    weights: list[list[list[Tensor]]] = field(default_factory=list)
    """After step 1, 2, ...: by unit its entries in each parameter."""

    def attach(self, model: PrunableViT, batches: object) -> None:
        self.model = model

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        step, start = len(self.gates) + 1, self.model.sites[site].start
        self.lost.setdefault(step, []).extend((start + lost).tolist())
        self.regained.setdefault(step, []).extend((start + regained).tolist())

    def after_step(self, step: int) -> None:
        self.gates.append(self.model.keep.clone())
        self.weights.append(
            [
                [
                    parameter.detach().index_select(dim, (owner == unit).nonzero()[:, 0])
                    for parameter, dim, owner in self.model.unit_parameters(index)
                ]
                for index, site in enumerate(self.model.sites)
                for unit in range(site.num_units)
            ]
        )
