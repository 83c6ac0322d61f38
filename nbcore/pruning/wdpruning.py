"""Host `wdpruning`: learned scores rank the units of a site, a learned threshold counts them.

Site l has a threshold theta_l and n_l units with scores s: the best ceil(sigmoid(theta_l) n_l) are
kept. Scores get the gradient of their unit's gate, kept or not (straight through), thresholds the
sum of it over the kept units. While the cost S = sum of MACs sigmoid(theta_l) exceeds the budget R,
the loss has the term lambda_1 (S - R) + lambda_2 (S - R)², whose multipliers rise by ascent.

At the last removal step, and before where less than the budget would stay, all thresholds are moved
together until the budget is met: a unit at rank r is worth theta_l - logit((r + 1/2) / n_l), what
the threshold could still fall until the unit goes. Then masks are frozen, or chosen again at the
refresh steps where a mitigation asks for it.

Source:
    Yu et al., "Width & Depth Pruning for Vision Transformers", AAAI 2022, and its code.
    Differs in: heads and MLP neurons only, no depth; cost in MACs, not parameters; masks follow
    scores and thresholds at the removal steps and not at every step; neuron counts are multiples
    of 8, not 16; thresholds start at 5 and not 10, and scores and thresholds learn at a rate that
    fits the length of the search, since at the source's 0.0025 per step they would cross a tenth of
    their way in a thousand steps; the cut at the budget.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS, BasePruner, Quota
from nbcore.pruning.budget import NEURON_GROUP, Budget, allocate
from nbcore.vit import PrunableViT

THRESHOLD = 5.0
"""Where thresholds start: sigmoid(5) = 0.993, everything is kept."""
TRAVEL = 20.0
"""How far a threshold can move during the search; half of it is the way from all to one in 150."""
ASCENT = 10.0
"""Learning rate of the multipliers, the source's."""


@PRUNERS.register("wdpruning")
class WDPruningPruner(BasePruner):
    wants_unit_gradients = True

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.regrows = True
        self.revises = False
        self.frozen = False
        device, sites = model.keep.device, model.sites
        self.scores = torch.zeros(model.num_units, device=device, requires_grad=True)
        self.thresholds = torch.full((len(sites),), THRESHOLD, device=device, requires_grad=True)
        self.multipliers = torch.zeros(2, device=device, requires_grad=True)
        rate = TRAVEL / budget.steps[-1]
        self.learners = [
            torch.optim.Adam([self.scores, self.thresholds], lr=rate),
            torch.optim.Adam([self.multipliers], lr=ASCENT, maximize=True),
        ]
        numbers = torch.tensor(self.num_units, device=device)
        self.owner = torch.arange(len(sites), device=device).repeat_interleave(numbers)
        least = [1 if site.kind == "heads" else NEURON_GROUP for site in sites]
        self.least = torch.tensor(least, device=device) / numbers
        per_site = [c * n for c, n in zip(budget.macs.per_unit, self.num_units, strict=True)]
        self.costs = torch.tensor(per_site, device=device) / budget.dense_macs

    def allow_regrowth(self, margin: float = 0.0, returns: float | None = None) -> None:
        self.revises, self.margin, self.returns = True, margin, returns

    def set_quota(self, quota: Quota) -> None:
        raise ValueError(
            "host wdpruning learns how many units each site keeps; a quota would decide the same "
            "thing"
        )

    def loss_term(self) -> Tensor | None:
        if self.frozen:
            return None
        shares = torch.maximum(self.thresholds.sigmoid(), self.least)
        cost = self.budget.macs.fixed / self.budget.dense_macs + (self.costs * shares).sum()
        excess = (cost - self.budget.macs_ratio).clamp_min(0.0)
        return self.multipliers[0] * excess + self.multipliers[1] * excess**2

    @torch.no_grad()
    def after_backward(self, gate_gradient: Tensor | None) -> None:
        if self.frozen:
            return
        assert gate_gradient is not None
        assert self.thresholds.grad is not None
        gradient = gate_gradient.float().mean(0)
        # A step with broken gradients is left out by the trainer, and one NaN would stay for ever.
        gradient = torch.where(torch.isfinite(gradient).all(), gradient, 0.0)
        self.scores.grad = gradient
        self.thresholds.grad.index_add_(0, self.owner, gradient * self.keep)

    def after_step(self, step: int) -> Tensor | None:
        if self.frozen:
            return None
        for learner in self.learners:
            learner.step()
            learner.zero_grad()
        refresh = self.budget.refresh if self.revises else ()
        if step not in (*self.budget.steps, *refresh):
            return None
        self.frozen = step == (*self.budget.steps, *refresh)[-1]
        alive = self.candidates(self.scores.detach(), step).cpu()
        keep = self._learned(alive)
        spent = self.budget.macs.total([int(keep[s.units].sum()) for s in self.model.sites])
        within = spent <= self.budget.macs_ratio * self.budget.dense_macs
        return self.change(self._cut(alive) if within or step >= self.budget.steps[-1] else keep)

    def _ranks(self) -> list[Tensor]:
        """Units of each site, best first, positions among all units."""
        scores = self.scores.detach()
        scores = (scores + self.margin * scores.abs() * self.keep).cpu()
        return [
            site.start + torch.argsort(scores[site.units], descending=True, stable=True)
            for site in self.model.sites
        ]

    def _learned(self, alive: Tensor) -> Tensor:
        """The mask that scores and thresholds ask for of the units that may be kept [U]."""
        keep = torch.zeros(self.model.num_units, dtype=torch.bool)
        shares = self.thresholds.detach().double().sigmoid().tolist()
        for site, share, ranked in zip(self.model.sites, shares, self._ranks(), strict=True):
            ranked = ranked[alive[ranked]]
            count = math.ceil(share * site.num_units)
            if site.kind == "neurons":
                count = max(1, round(count / NEURON_GROUP)) * NEURON_GROUP
                if len(ranked) < min(count, site.num_units):
                    count = len(ranked) // NEURON_GROUP * NEURON_GROUP
            keep[ranked[:count]] = True
        return keep

    def _cut(self, alive: Tensor) -> Tensor:
        """The mask at the budget of the units that may be kept, all thresholds moved together
        [U]."""
        worth = torch.zeros(self.model.num_units, dtype=torch.float64)
        thresholds = self.thresholds.detach().double().tolist()
        for threshold, ranked in zip(thresholds, self._ranks(), strict=True):
            position = (torch.arange(len(ranked), dtype=torch.float64) + 0.5) / len(ranked)
            worth[ranked] = threshold - position.logit()
        allowed = int(self.budget.macs_ratio * self.budget.dense_macs)
        return allocate(worth, alive, self.model.sites, self.budget.macs, allowed)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "learned": [t.detach() for t in (self.scores, self.thresholds, self.multipliers)],
            "learners": [learner.state_dict() for learner in self.learners],
            "frozen": self.frozen,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for mine, saved in zip(
            (self.scores, self.thresholds, self.multipliers), state["learned"], strict=True
        ):
            mine.copy_(saved)
        for learner, saved in zip(self.learners, state["learners"], strict=True):
            learner.load_state_dict(saved)
        self.frozen = state["frozen"]
