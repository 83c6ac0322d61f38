"""Host `taylor`: units whose removal changes the loss least, to first order, fall first.

Source:
    Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, gate
    variant: importance is (g dL/dg)², summed over tokens per image, averaged over images, smoothed
    over steps (EMA 0.9). Ranking within a kind follows "Isomorphic Pruning", arXiv:2407.04616.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS
from nbcore.pruning.budget import Budget
from nbcore.pruning.schedule import ScheduledPruner
from nbcore.vit import PrunableViT

SMOOTHING = 0.9


@PRUNERS.register("taylor")
class TaylorPruner(ScheduledPruner):
    wants_unit_gradients = True

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.average = torch.zeros(model.num_units, device=model.keep.device)
        self.gain = torch.zeros_like(self.average)
        self.batch_size = 1

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        assert gate_gradient is not None
        importance = gate_gradient.float().pow(2).mean(0)
        # A step with broken gradients is left out by the trainer, and one NaN would stay for ever.
        whole = torch.isfinite(importance).all()
        self.average.lerp_(torch.where(whole, importance, self.average), 1 - SMOOTHING)
        self.batch_size = len(gate_gradient)
        if self.regrows:
            gain = -gate_gradient.float().mean(0)
            self.gain.lerp_(torch.where(whole, gain, self.gain), 1 - SMOOTHING)

    def scores(self) -> Tensor:
        """Importance [U]; where units may return, in units of the loss.

        A kept unit sits near a minimum, where single images pull its gate either way and the mean
        pull vanishes: what its removal costs is of second order, E[g²]/2 with the Fisher estimate
        of the curvature, g = the gradient of its gate for one image. A resting one is at no
        minimum, so E[g²] would flatter it: its return gains -E[g] - E[g²]/2, and counts for that
        less two standard errors. The estimate is ours.
        """
        if not self.regrows:
            return self.average
        curvature = self.average / 2
        error = (self.average * (1 - SMOOTHING) / ((1 + SMOOTHING) * self.batch_size)).sqrt()
        return torch.where(self.keep, curvature, self.gain - curvature - 2 * error)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"average": self.average, "gain": self.gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.average.copy_(state["average"])
        self.gain.copy_(state["gain"])
