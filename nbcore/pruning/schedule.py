"""Hosts that score units and remove the worst on the cubic schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import BasePruner, Quota
from nbcore.pruning.budget import NEURON_GROUP, Budget, allocate, best_first, shared_out
from nbcore.vit import PrunableViT


class ScheduledPruner(BasePruner):
    """Hosts that score units and remove the worst on the cubic schedule; subclasses give
    `scores`."""

    shares_out = True

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
        alive = self.candidates(scores, step) if self.regrows else self.keep
        scores = scores.cpu()
        if self.quota is None:
            return self.change(allocate(scores, alive, sites, macs, allowed))
        sizes = self._sizes(scores, self.quota().double().cpu(), allowed)
        keep, alive = torch.zeros_like(self.keep, device="cpu"), alive.cpu()
        for site, size in zip(sites, sizes, strict=True):
            keep[best_first(scores, alive, site)[:size]] = True
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
