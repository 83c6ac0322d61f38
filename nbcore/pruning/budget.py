"""The budget in MACs: what is allowed at which step, and the best units that fit it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbcore.macs import MacsModel
from nbcore.vit import Site

NEURON_GROUP = 8
"""Neuron counts are multiples of this: hardware likes them, and slack stays small."""


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

    def cooling(self, step: int, first: int | None = None) -> float:
        """How much is still open to change at a step: falls from 1 to 0 at the last choice along a
        cosine, as the exchanges of RigL do (Evci et al., arXiv:1911.11134).

        Args:
            step: From `first` on.
            first: Where it is 1; the first choice if None.
        """
        first = self.steps[0] if first is None else first
        last = (*self.steps, *self.refresh)[-1]
        progress = (step - first) / max(1, last - first)
        return 0.5 * (1 + math.cos(math.pi * progress))

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
    order = {site.name: best_first(scores, alive, site) for site in sites}
    keep = torch.zeros(len(scores), dtype=torch.bool)
    spent = macs.fixed
    for site, cost in zip(sites, macs.per_unit, strict=True):
        reserved = order[site.name][: 1 if site.kind == "heads" else NEURON_GROUP]
        keep[reserved] = True
        spent += cost * len(reserved)
    check_reach(budget, spent)
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


def check_reach(budget: int, smallest: int) -> None:
    if smallest > budget:
        raise ValueError(
            f"a budget of {budget} MACs is below the smallest model: one head and eight neurons a "
            f"site need {smallest}"
        )


def check_fade(budget: Budget, fade_steps: int, total_steps: int) -> None:
    """Refuse a training that would end while gates of returning units still open.

    Args:
        budget: When units are chosen.
        fade_steps: Steps over which the gate of a unit that returns opens.
        total_steps: Optimiser steps of the training.

    Raises:
        ValueError: If the last choice comes too late.
    """
    last = (*budget.steps, *budget.refresh)[-1]
    if last + fade_steps > total_steps:
        raise ValueError(
            f"units may return until step {last} of {total_steps}, and their gates take "
            f"{fade_steps} steps to open, so they would not be open at the end; choose `fade` at "
            f"most {total_steps - last}, freeze masks earlier (`freeze`), or train longer"
        )


def best_first(scores: Tensor, alive: Tensor, site: Site) -> Tensor:
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
        best = best_first(scores, alive, site)
        order = torch.arange(len(best), 0, -1, dtype=torch.float64)
        shared[best] = (order - 0.5 - debt) / (weight * len(best))
    return shared
