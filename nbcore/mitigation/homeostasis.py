"""Mitigation `homeostasis`: survivors are pulled back to the load they had before pruning.

Synaptic scaling: every so many steps each survivor's write column is multiplied by

    clip((L*_u / L_u)^eta, 0.8, 1.25)

with its load L_u now and its set-point L*_u, its load in the dense model at the fork, token merging
left out. Gates that a host learns are part of the load. The equation is ours; the idea is that of
neurons that scale all their synapses to hold their own activity (Turrigiano et al.,
"Activity-dependent scaling of quantal amplitude in neocortical neurons", Nature 391, 1998).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.burden import PooledLoads
from nbcore.mitigation.base import MITIGATIONS, Batches, Gate, Mitigation, needs_units
from nbcore.mitigation.loads import measure_loads
from nbcore.pruning import Pruner
from nbcore.pruning.base import PrunerFactory
from nbcore.vit import PrunableViT, with_merge

CLIP = (0.8, 1.25)


@MITIGATIONS.register("homeostasis")
class Homeostasis(Mitigation):
    """Scales write columns; loads are taken on one training batch."""

    def __init__(self, *, eta: float = 0.1, every: int = 100) -> None:
        """Choose how strongly and how often to pull.

        Args:
            eta: Exponent; 1 would go all the way in one step, were loads independent.
            every: Steps from one scaling to the next.
        """
        if not 0 < eta <= 1 or every < 1:
            raise ValueError(
                f"homeostasis needs eta in (0, 1] and every >= 1, got {eta} and {every}"
            )
        self.eta = eta
        self.every = every
        self.gate: Gate = lambda: None

    def check_host(self, host: Pruner | PrunerFactory) -> None:
        needs_units("homeostasis", host, "there are no survivors to which load could shift")

    def watch(self, gate: Gate) -> None:
        self.gate = gate

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        self.model = model
        self.batches = batches
        self.set_points = unit_loads(measure_loads(with_merge(model, None), batches()))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if step % self.every:
            return
        loads = unit_loads(measure_loads(self.model, self.batches()[:1], self.gate()))
        # Units that are gone, or whose gates are still opening, are let be.
        stays = self.model.keep == 1
        factors = torch.where(stays, scaling(loads, self.set_points, self.eta), 1.0)
        for index, site in enumerate(self.model.sites):
            for parameter, dim, owner in self.model.unit_parameters(index):
                if dim == 1:
                    parameter.mul_(factors[site.units][owner].to(parameter))

    def state_dict(self) -> dict[str, Any]:
        return {"set_points": self.set_points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.set_points = state["set_points"].to(self.set_points.device)


def unit_loads(loads: PooledLoads) -> Tensor:
    """Load of every unit [U], double."""
    pairs = zip(loads.power, loads.stream, strict=True)
    return torch.cat([(power / stream).sqrt() for power, stream in pairs])


def scaling(loads: Tensor, set_points: Tensor, eta: float) -> Tensor:
    """Factors for write columns; 1 for units that have no load or no set-point above zero.

    Args:
        loads: L of each unit now [U].
        set_points: L* of each unit [U].
        eta: Exponent.
    """
    factors = (set_points / loads).pow(eta).clamp(*CLIP)
    return torch.where((loads > 0) & (set_points > 0), factors, 1.0)
