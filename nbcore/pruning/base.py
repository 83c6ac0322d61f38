"""What every pruning-during-training method shares: the protocol, keep masks and the budget in
MACs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nbcore.macs import MacsModel
from nbcore.registry import Registry
from nbcore.vit import PrunableViT, Site

NEURON_GROUP = 8
"""Neuron counts are multiples of this: hardware likes them, and slack stays small."""


class Pruner(Protocol):
    """A host: decides during training which units are kept."""

    wants_unit_gradients: bool
    """True if `after_backward` needs the gradient of the loss with respect to every image's
    gates."""

    def loss_term(self) -> Tensor | None:
        """Addition to the loss of this step, or None."""

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        """See gradients before the optimiser's step.

        Args:
            gate_gradient: d(loss of image b)/d(gate u) [B, U] if `wants_unit_gradients`.
        """

    def after_step(self, step: int) -> Tensor | None:
        """New keep mask [U] after optimiser step `step` (counted from 1), or None if nothing
        changes."""

    def finalize(self) -> Tensor:
        """The final keep mask [U]; meets the budget."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PrunerFactory(Protocol):
    def __call__(
        self, model: PrunableViT, budget: Budget, generator: torch.Generator
    ) -> Pruner: ...


PRUNERS: Registry[PrunerFactory] = Registry("pruner")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many MACs are left when, and what each unit costs."""

    macs: MacsModel
    """Cost of the model that is pruned, merging included."""
    dense_macs: int
    """MACs of the dense base without merging: the 1.0 of `macs_ratio`."""
    macs_ratio: float
    """Target share of `dense_macs`."""
    steps: tuple[int, ...]
    """Optimiser steps after which units are removed, ascending; the budget is met after the
    last."""

    def at(self, step: int, num_units: Sequence[int]) -> int | None:
        """MACs allowed after `step`, or None if nothing is removed at this step.

        The share kept falls from that of the whole model to `macs_ratio` along the cubic of Zhu &
        Gupta (arXiv:1710.01878): r(t) = r_f + (r_0 - r_f)(1 - t)^3.
        """
        if step not in self.steps:
            return None
        start = min(1.0, self.macs.total(list(num_units)) / self.dense_macs)
        progress = (self.steps.index(step) + 1) / len(self.steps)
        ratio = self.macs_ratio + (start - self.macs_ratio) * (1 - progress) ** 3
        return int(ratio * self.dense_macs)


def removal_steps(total_steps: int, start: float, end: float, updates: int) -> tuple[int, ...]:
    """Evenly spaced steps of removal between two shares of the training, distinct, the last at
    `end`.

    Raises:
        ValueError: If the interval holds no step.
    """
    first, last = int(start * total_steps), int(end * total_steps)
    if last <= first:
        raise ValueError(
            f"{total_steps} steps leave no step between start={start} and end={end} of the training"
        )
    span = last - first
    updates = min(updates, span)
    return tuple(first + (span * (i + 1)) // updates for i in range(updates))


def allocate(
    scores: Tensor, alive: Tensor, sites: Sequence[Site], macs: MacsModel, budget: int
) -> Tensor:
    """The best units that fit a budget.

    Heads and neurons keep about equal shares; units are ranked within their kind, across layers.
    Every site keeps at least one head or eight neurons. Neurons go in groups of eight (a site's
    best eight, next eight, ...), ranked by mean score; groups that no longer fit are skipped, so
    what is left of the budget is less than one group.

    Args:
        scores: Importance of every unit, larger is better [U].
        alive: True for units that may be kept [U].
        sites: Sites of the model.
        macs: Cost of fixed parts and units.
        budget: MACs that may be spent.

    Returns:
        Keep mask [U], a subset of `alive`.

    Raises:
        ValueError: If even the smallest allowed model exceeds the budget.
    """
    device = scores.device
    scores, alive = scores.detach().double().cpu(), alive.cpu()
    order = {site.name: _ranked(scores, alive, site) for site in sites}
    keep = torch.zeros(len(scores), dtype=torch.bool)
    spent = macs.fixed
    for site, cost in zip(sites, macs.per_unit, strict=True):
        reserved = order[site.name][: 1 if site.kind == "heads" else NEURON_GROUP]
        keep[reserved] = True
        spent += cost * len(reserved)
    if spent > budget:
        raise ValueError(
            f"a budget of {budget} MACs is below the smallest model: one head and eight neurons a "
            f"site need {spent}"
        )
    # Of the whole model, not of what is alive: rounding would add up over the removals.
    all_units = sum(cost * s.num_units for s, cost in zip(sites, macs.per_unit, strict=True))
    share = min(1.0, (budget - macs.fixed) / all_units)
    heads = _candidates(sites, macs, order, scores, "heads", 1)
    num_heads = round(share * sum(s.num_units for s in sites if s.kind == "heads"))
    limit = num_heads - sum(s.kind == "heads" for s in sites)
    spent = _take(heads[: max(0, limit)], keep, spent, budget)
    neurons = _candidates(sites, macs, order, scores, "neurons", NEURON_GROUP)
    spent = _take(neurons, keep, spent, budget)
    if all(bool(keep[units].all()) for units, _ in neurons):
        _take(heads[max(0, limit) :], keep, spent, budget)
    return keep.to(device)


def _ranked(scores: Tensor, alive: Tensor, site: Site) -> Tensor:
    """Positions of a site's living units, best first; ties go to the lower index."""
    units = torch.arange(site.start, site.start + site.num_units)
    units = units[alive[site.units]]
    return units[torch.argsort(scores[units], descending=True, stable=True)]


def _candidates(
    sites: Sequence[Site],
    macs: MacsModel,
    order: dict[str, Tensor],
    scores: Tensor,
    kind: str,
    group: int,
) -> list[tuple[Tensor, int]]:
    """(units, MACs) of everything beyond the reserved units of a kind, best first."""
    found: list[tuple[float, int, Tensor, int]] = []
    for site, cost in zip(sites, macs.per_unit, strict=True):
        if site.kind != kind:
            continue
        ranked = order[site.name]
        for start in range(group, len(ranked) - group + 1, group):
            units = ranked[start : start + group]
            found.append((-scores[units].mean().item(), len(found), units, cost * group))
    return [(units, cost) for _, _, units, cost in sorted(found, key=lambda c: c[:2])]


def _take(candidates: list[tuple[Tensor, int]], keep: Tensor, spent: int, budget: int) -> int:
    for units, cost in candidates:
        if spent + cost <= budget:
            keep[units] = True
            spent += cost
    return spent


class ScheduledPruner:
    """Hosts that score units and remove the worst on the cubic schedule; subclasses give
    `scores`."""

    wants_unit_gradients = False

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        self.model = model
        self.budget = budget
        self.generator = generator
        self.num_units = [site.num_units for site in model.sites]
        self.keep = torch.ones(model.num_units, dtype=torch.bool, device=model.keep.device)

    def scores(self) -> Tensor:
        """Importance of every unit, larger is better [U]."""
        raise TypeError(f"{type(self).__name__} must define scores()")

    def loss_term(self) -> Tensor | None:
        return None

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        pass

    def after_step(self, step: int) -> Tensor | None:
        allowed = self.budget.at(step, self.num_units)
        if allowed is None:
            return None
        self.keep = allocate(self.scores(), self.keep, self.model.sites, self.budget.macs, allowed)
        return self.keep

    def finalize(self) -> Tensor:
        spent = self.budget.macs.total([int(self.keep[s.units].sum()) for s in self.model.sites])
        if spent > self.budget.macs_ratio * self.budget.dense_macs:
            raise ValueError(
                f"training ended before the budget was met: {spent / self.budget.dense_macs:.3f} "
                "of the dense MACs "
                f"left, target {self.budget.macs_ratio}; the last removal step is "
                f"{self.budget.steps[-1]}"
            )
        return self.keep

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keep = state["keep"].to(self.keep.device)
