"""Mitigation `reconstruction`, the learned handoff: survivors learn to write what the whole dense
layer wrote.

`handoff` gives work over once and in closed form; here it is learned for as long as training goes
on. The loss gets weight times the mean over blocks of the residual of METHODS 3,

    R = sum ||C (y_dense - y_pruned)||² / sum ||C (y_dense - mean_t y_dense)||²,

y = a block's output at the original patches, C = I - 11ᵀ/D, sums over images and patches. So what
is minimised is the quantity that the burden report shows. The equation is ours; relatives:
FitNets (Romero et al., arXiv:1412.6550) and CoFi (Xia et al., arXiv:2204.00408).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from nbcore.burden import residual
from nbcore.mitigation.base import MITIGATIONS, Batches, StepOutputs, Taught
from nbcore.mitigation.teacher import Teacher
from nbcore.vit import PrunableViT


@MITIGATIONS.register("reconstruction")
class Reconstruction(Taught):
    """Pulls every block's output towards that of the dense model at the fork."""

    wants_blocks = True

    def __init__(self, *, weight: float = 0.1, last: int | None = None) -> None:
        """Choose how strongly to pull, and at which blocks.

        Args:
            weight: Of the mean residual, which is 0 for the same output and about 1 if the output
                is gone. Small, since a narrow network has better to do than to imitate: on CIFAR-10
                under `taylor` 0.5 and more raised the validation loss.
            last: Only this many blocks, counted from the end; None means all.
        """
        if weight <= 0:
            raise ValueError(f"reconstruction needs weight > 0, got {weight}")
        if last is not None and last < 1:
            raise ValueError(f"reconstruction needs last >= 1 or None for all blocks, got {last}")
        super().__init__(Teacher(with_blocks=True))
        self.weight = weight
        self.last = last

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        depth = len(model.vit.blocks)
        if self.last is not None and self.last > depth:
            raise ValueError(f"reconstruction of the last {self.last} blocks: there are {depth}")
        self.first = depth - (self.last or depth)
        super().attach(model, batches)

    def loss_term(self, outputs: StepOutputs) -> Tensor:
        dense = self.teacher(outputs.images).blocks
        measure = _compiled() if outputs.images.is_cuda else mean_residual
        return self.weight * measure(dense[self.first :], outputs.blocks[self.first :])


def mean_residual(dense: Sequence[Tensor], pruned: Sequence[Tensor]) -> Tensor:
    """Mean over blocks of the residual R, each pooled over images and patches; single precision.

    Args:
        dense: Outputs of the dense model's blocks, each [B, P, D].
        pruned: The same of the pruned model, un-merged.
    """
    ratios = []
    for one, two in zip(dense, pruned, strict=True):
        error, power = residual(one.float(), two.float())
        ratios.append(error.mean() / power.mean())
    return torch.stack(ratios).mean()


@cache
def _compiled() -> Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]:
    """`mean_residual` fused: it only moves memory, and each of its steps would move it again."""
    return torch.compile(mean_residual, dynamic=False)
