"""What every pruning-during-training method shares: the protocol, the registry, and defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nbcore.pruning.budget import NEURON_GROUP, Budget, check_reach
from nbcore.registry import Registry
from nbcore.vit import PrunableViT

Quota = Callable[[], Tensor]
"""Gives the weight of each site in the next removal [L]: a site with twice the weight loses twice
the share of its units."""


LabelledBatches = Callable[[], Sequence[tuple[Tensor, Tensor]]]
"""Gives a few training batches, augmented but never mixed, at the side of the last stage: images
[B, 3, S, S] and soft targets [B, K]."""


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
    reranks: bool
    """False if the order of units is fixed, so that none would return where it may."""
    shares_out: bool
    """True if a quota can decide how removals are shared between sites (`set_quota`)."""
    folds: bool
    """True if the host multiplies learned gates into write weights."""
    budget: Budget

    def attach(self, batches: LabelledBatches) -> None:
        """Called once, before the first step; for hosts that look at gradients of their own."""

    def allow_regrowth(self, margin: float = 0.0, returns: float | None = None) -> None:
        """Called before training if a mitigation lets units return: choose among all units, also
        at the budget's refresh steps.

        Args:
            margin: By how much of its own size the score of a kept unit is raised in a choice, so
                that units of about equal worth do not change places for ever.
            returns: How many units may return at the first choice, as a share of those of their
                kind that are kept; falls to none at the last choice (`Budget.cooling`). None sets
                no limit.

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

    def record(self) -> dict[str, float]:
        """What only this host has to say in a record of the history."""

    def finalize(self) -> Tensor:
        """The final keep mask [U]; meets the budget."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PrunerFactory(Protocol):
    compacts: bool
    reranks: bool
    shares_out: bool
    folds: bool

    def __call__(
        self, model: PrunableViT, budget: Budget, generator: torch.Generator
    ) -> Pruner: ...


PRUNERS: Registry[PrunerFactory] = Registry("pruner")


class BasePruner:
    """What hosts share that do nothing special: no gradients, no gates, no addition to the loss."""

    wants_unit_gradients = False
    compacts = True
    reranks = True
    shares_out = False
    folds = False

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        if self.compacts:
            least = [
                min(site.num_units, 1 if site.kind == "heads" else NEURON_GROUP)
                for site in model.sites
            ]
            check_reach(int(budget.macs_ratio * budget.dense_macs), budget.macs.total(least))
        self.model = model
        self.budget = budget
        self.generator = generator
        self.regrows = False
        self.margin = 0.0
        self.returns: float | None = None
        self.num_units = [site.num_units for site in model.sites]
        self.keep = torch.ones(model.num_units, dtype=torch.bool, device=model.keep.device)

    def attach(self, batches: LabelledBatches) -> None:
        pass

    def allow_regrowth(self, margin: float = 0.0, returns: float | None = None) -> None:
        self.regrows, self.margin, self.returns = True, margin, returns

    def candidates(self, scores: Tensor, step: int) -> Tensor:
        """Units that a choice at a step may keep, where removed ones may return: those kept and, of
        each kind, the best of the others up to the limit [U].

        Args:
            scores: Importance of every unit, larger is better [U].
            step: One of the budget's steps.
        """
        if self.returns is None:
            return torch.ones_like(self.keep)
        share = self.returns * self.budget.cooling(step)
        candidates = self.keep.clone()
        for kind in ("heads", "neurons"):
            own = torch.cat(
                [torch.full((s.num_units,), s.kind == kind) for s in self.model.sites]
            ).to(self.keep.device)
            resting = (own & ~self.keep).nonzero()[:, 0]
            order = torch.argsort(scores[resting], descending=True, stable=True)
            candidates[resting[order[: int(share * (own & self.keep).sum())]]] = True
        return candidates

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

    def record(self) -> dict[str, float]:
        return {}

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
