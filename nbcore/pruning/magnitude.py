"""Host `magnitude`: units with small weights fall first.

Source:
    Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878 (schedule). Differs in: whole units
    instead of single weights; scores divided by the layer mean, since layers differ in scale.

The weights of a unit that rests do not move. So where units may return, one does only if training
shrinks a unit that is kept below it by more than the margin: with a margin of 1 hardly any does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS
from nbcore.pruning.schedule import ScheduledPruner


@PRUNERS.register("magnitude")
class MagnitudePruner(ScheduledPruner):
    @torch.no_grad()
    def scores(self) -> Tensor:
        """||fc1 row||² ||fc2 column||² of neurons, ||W_O^h||² of heads, each over its layer mean
        [U]."""
        parts = []
        for site in self.model.sites:
            block = self.model.vit.blocks[site.block]
            if site.kind == "heads":
                columns = block.attn.proj.weight.pow(2).sum(0)
                score = columns.reshape(site.num_units, -1).sum(1)
            else:
                score = block.mlp.fc1.weight.pow(2).sum(1) * block.mlp.fc2.weight.pow(2).sum(0)
            alive = self.keep[site.units]
            parts.append(score / score[alive].mean().clamp_min(torch.finfo(score.dtype).tiny))
        return torch.cat(parts)
