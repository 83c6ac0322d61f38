"""What every pruning-during-training method shares: the protocol, keep masks and the budget in
MACs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nbcore.macs import MacsModel
from nbcore.registry import Registry
from nbcore.vit import PrunableViT, Site

NEURON_GROUP = 8
"""Neuron counts are multiples of this: hardware likes them, and slack stays small."""

Quota = Callable[[], Tensor]
"""Gives the weight of each site in the next removal [L]: a site with twice the weight loses twice
the share of its units."""


LabelledBatches = Callable[[], Sequence[tuple[Tensor, Tensor]]]
"""Gives a few training batches as the model sees them: images [B, 3, S, S] and soft targets
[B, K]."""


class Pruner(Protocol):
    """A host: decides during training which units are kept."""

    wants_unit_gradients: bool
    """True if `after_backward` needs the gradient of the loss with respect to every image's
    gates."""
    regrows: bool
    """True if removed units may return. Their weights then rest behind a closed gate instead of
    being zeroed, and their gates get gradients too."""
    compacts: bool
    """False if no unit ever leaves, so that there is nothing to compact."""

    def attach(self, batches: LabelledBatches) -> None:
        """Called once, before the first step; for hosts that look at gradients of their own."""

    def allow_regrowth(self, margin: float = 0.0) -> None:
        """Called before training if a mitigation lets units return: choose among all units, also
        at the budget's refresh steps.

        Args:
            margin: By how much of its own size the score of a kept unit is raised in a choice, so
                that units of about equal worth do not change places for ever.

        Raises:
            ValueError: If the host cannot, with the reason.
        """

    def set_quota(self, quota: Quota) -> None:
        """Called before training if a mitigation decides how removals are shared between sites.

        Raises:
            ValueError: If the host cannot, with the reason.
        """

    def gate(self) -> Tensor | None:
        """Learned factors on the units' contributions [1, U] for the next forward pass, or None.
        The host optimises them itself in `after_step`."""

    def loss_term(self) -> Tensor | None:
        """Addition to the loss of this step, or None."""

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        """See gradients before they are clipped and the optimiser steps.

        Args:
            gate_gradient: d(loss of image b)/d(gate u) [B, U] if `wants_unit_gradients`; of
                removed units it is zero unless `regrows`.
        """

    def after_step(self, step: int) -> Tensor | None:
        """Keep mask [U] after optimiser step `step` (counted from 1), or None if nothing was
        removed or returned. Averages of the weights start anew with every mask given."""

    def finalize(self) -> Tensor:
        """The final keep mask [U]; meets the budget."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PrunerFactory(Protocol):
    compacts: bool

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
    refresh: tuple[int, ...] = ()
    """Later steps at which hosts that let units return choose again at the full budget; masks are
    frozen after the last."""
    start: int = 0
    """Step after which hosts that have their budget from the start, or that learn before they
    remove, begin."""

    def progress(self, step: int) -> float | None:
        """Share of the way to the budget in (0, 1] that a choice at `step` goes, or None if nothing
        is chosen."""
        if step in self.refresh:
            return 1.0
        return (self.steps.index(step) + 1) / len(self.steps) if step in self.steps else None

    def at(self, step: int, num_units: Sequence[int]) -> int | None:
        """MACs allowed after `step`, or None if nothing is chosen at this step.

        The share kept falls from that of the whole model to `macs_ratio` along the cubic of Zhu &
        Gupta (arXiv:1710.01878): r(t) = r_f + (r_0 - r_f)(1 - t)^3.
        """
        progress = self.progress(step)
        if progress is None:
            return None
        start = min(1.0, self.macs.total(list(num_units)) / self.dense_macs)
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


def plan_budget(
    macs: MacsModel,
    *,
    dense_macs: int,
    macs_ratio: float,
    total_steps: int,
    start: float,
    end: float,
    updates: int,
    freeze: float,
) -> Budget:
    """The budget of a training: evenly spaced removals, then refreshes at the same pace.

    Args:
        macs: Cost of the model that is pruned.
        dense_macs: MACs of the dense base.
        macs_ratio: Target.
        total_steps: Optimiser steps of the training.
        start: Share of the steps after which removal begins.
        end: Share of the steps by which the budget is met.
        updates: Number of removals.
        freeze: Share of the steps after which masks stay as they are.
    """
    steps = removal_steps(total_steps, start, end, updates)
    pace = max(1, (steps[-1] - int(start * total_steps)) // len(steps))
    refresh = tuple(range(steps[-1] + pace, int(freeze * total_steps) + 1, pace))
    return Budget(
        macs=macs,
        dense_macs=dense_macs,
        macs_ratio=macs_ratio,
        steps=steps,
        refresh=refresh,
        start=int(start * total_steps),
    )


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


def shared_out(
    scores: Tensor, alive: Tensor, sites: Sequence[Site], weights: Tensor, debts: Tensor
) -> Tensor:
    """Scores by which `allocate` takes from each site in proportion to its weight.

    The k-th unit that site l loses gets the score (k - 1/2 - debt_l) / (w_l n_l), n_l = its living
    units: cut at any height, site l has lost about w_l n_l times that height (the divisor method of
    Sainte-Lague). Within a site the order of `scores` stays.

    Args:
        scores: Importance of every unit, larger is better [U].
        alive: True for units that may be kept [U].
        sites: Sites of the model.
        weights: Of each site, positive [L].
        debts: Units that each site still owes from earlier roundings [L].

    Returns:
        Scores [U].
    """
    shared = torch.zeros(len(scores), dtype=torch.float64)
    for site, weight, debt in zip(sites, weights.tolist(), debts.tolist(), strict=True):
        ranked = _ranked(scores, alive, site)
        order = torch.arange(len(ranked), 0, -1, dtype=torch.float64)
        shared[ranked] = (order - 0.5 - debt) / (weight * len(ranked))
    return shared


class BasePruner:
    """What hosts share that do nothing special: no gradients, no gates, no addition to the loss."""

    wants_unit_gradients = False
    compacts = True

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        self.model = model
        self.budget = budget
        self.generator = generator
        self.regrows = False
        self.margin = 0.0
        self.num_units = [site.num_units for site in model.sites]
        self.keep = torch.ones(model.num_units, dtype=torch.bool, device=model.keep.device)

    def attach(self, batches: LabelledBatches) -> None:
        pass

    def allow_regrowth(self, margin: float = 0.0) -> None:
        self.regrows, self.margin = True, margin

    def set_quota(self, quota: Quota) -> None:
        raise ValueError(f"host {type(self).__name__} does not share out removals between sites")

    def gate(self) -> Tensor | None:
        return None

    def loss_term(self) -> Tensor | None:
        return None

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        pass

    def change(self, keep: Tensor) -> Tensor | None:
        """Take up a mask [U]; gives it back, or None if it is the old one."""
        keep = keep.to(self.keep.device)
        if torch.equal(keep, self.keep):
            return None
        self.keep = keep
        return keep

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


class ScheduledPruner(BasePruner):
    """Hosts that score units and remove the worst on the cubic schedule; subclasses give
    `scores`."""

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.quota: Quota | None = None
        self.debts = torch.zeros(len(model.sites), dtype=torch.float64)
        """Units that each site was to lose by its quota and has not, below one [L]."""

    def scores(self) -> Tensor:
        """Importance of every unit, larger is better [U]."""
        raise TypeError(f"{type(self).__name__} must define scores()")

    def set_quota(self, quota: Quota) -> None:
        self.quota = quota

    def after_step(self, step: int) -> Tensor | None:
        allowed = self.budget.at(step, self.num_units)
        if allowed is None or (step in self.budget.refresh and not self.regrows):
            return None
        sites, macs = self.model.sites, self.budget.macs
        scores = self.scores().detach()
        if self.regrows:
            scores = scores + self.margin * scores.abs() * self.keep
        scores = scores.cpu()
        alive = torch.ones_like(self.keep) if self.regrows else self.keep
        if self.quota is None:
            return self.change(allocate(scores, alive, sites, macs, allowed))
        sizes = self._sizes(scores, self.quota().double().cpu(), allowed)
        keep, alive = torch.zeros_like(self.keep, device="cpu"), alive.cpu()
        for site, size in zip(sites, sizes, strict=True):
            keep[_ranked(scores, alive, site)[:size]] = True
        return self.change(keep)

    def _sizes(self, scores: Tensor, weights: Tensor, allowed: int) -> list[int]:
        """How many units each site keeps if removals are shared out by weight."""
        sites, alive = self.model.sites, self.keep.cpu()
        if weights.shape != (len(sites),) or not bool((weights > 0).all()):
            raise ValueError(f"a quota needs one positive weight per site, got {weights.tolist()}")
        shared = shared_out(scores, alive, sites, weights, self.debts)
        keep = allocate(shared, alive, sites, self.budget.macs, allowed)
        before = torch.tensor([int(alive[s.units].sum()) for s in sites], dtype=torch.float64)
        after = torch.tensor([int(keep[s.units].sum()) for s in sites], dtype=torch.float64)
        for kind in ("heads", "neurons"):
            own = torch.tensor([s.kind == kind for s in sites])
            share = weights * before * own
            owed = share / share.sum() * ((before - after) * own).sum()
            self.debts += torch.where(own, owed - (before - after), 0.0)
        # What reserves keep a site from losing is not made up for later.
        limit = torch.tensor([1.0 if s.kind == "heads" else NEURON_GROUP for s in sites])
        self.debts = torch.minimum(torch.maximum(self.debts, -limit), limit)
        return [int(size) for size in after]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"debts": self.debts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.debts.copy_(state["debts"])
