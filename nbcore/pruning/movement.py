"""Host `movement`: units whose contributions training turns down fall first.

Source:
    Sanh et al., "Movement Pruning", arXiv:2005.07683: scores move by S <- S - lr W dL/dW, with the
    gradient passed straight through to what is masked. Whole blocks: Lagunas et al., "Block
    Pruning", arXiv:2109.04838. Here the block is what a unit writes, since its gate's gradient is
    the sum over it: g dL/dg = sum of W dL/dW over the columns of `fc2` or `proj`.
    Differs in: units are ranked across layers; a learning rate of one, as ranks do not depend on
    it (the source's follows the schedule of the weights); S starts at the fork from the dense
    model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS
from nbcore.pruning.budget import Budget
from nbcore.pruning.schedule import ScheduledPruner
from nbcore.vit import PrunableViT


@PRUNERS.register("movement")
class MovementPruner(ScheduledPruner):
    wants_unit_gradients = True

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.moved = torch.zeros(model.num_units, device=model.keep.device)

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        assert gate_gradient is not None
        movement = gate_gradient.float().mean(0)
        # A step with broken gradients is left out by the trainer, and one NaN would stay for ever.
        whole = torch.isfinite(movement).all()
        self.moved -= torch.where(whole, movement, 0.0)

    def scores(self) -> Tensor:
        return self.moved

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"moved": self.moved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.moved.copy_(state["moved"])
