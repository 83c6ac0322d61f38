"""Host `random`: units fall by a fixed random order. The control of every other host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS
from nbcore.pruning.budget import Budget
from nbcore.pruning.schedule import ScheduledPruner
from nbcore.vit import PrunableViT


@PRUNERS.register("random")
class RandomPruner(ScheduledPruner):
    """Scores are drawn once, so that what was kept stays ranked."""

    reranks = False

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.order = torch.rand(model.num_units, generator=generator).to(model.keep.device)

    def scores(self) -> Tensor:
        return self.order

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.order = state["order"].to(self.order.device)
