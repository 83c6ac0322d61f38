"""Host `weights`: single small weights of all block matrices fall; no unit ever leaves.

Unstructured, so there is nothing to compact and nothing gets faster: for studies only. The budget
`macs_ratio` is the share of the weights of all `qkv`, `proj`, `fc1` and `fc2` matrices that is
kept; merging does not count. Biases, norms, stem and classifier are not pruned.

Where weights may return, a dense copy is kept and trained on: the loss and its gradient are those
of the masked weights, the step is taken from the dense ones, and masks are chosen anew from the
dense ones at every update (Lin et al., "Dynamic Model Pruning with Feedback", arXiv:2006.07253:
w <- w - lr g(mask w)).

Source:
    Zhu & Gupta, "To prune, or not to prune", arXiv:1710.01878: in every matrix the weights of
    smallest magnitude are set to zero, all matrices at the same share, on the cubic schedule.
    Differs in: starts from a dense checkpoint. Where weights return it differs from Lin et al. in:
    AdamW takes the steps; masks are frozen after the last refresh. `damping` below one makes masked
    weights take smaller steps. On a toy (three blocks, generated shapes, two seeds) the whole step
    was best: top-1 at 2 % of the weights 85.9 without returns, 87.0 at a tenth, 89.7 at the whole
    step; at 5 and 20 % all were within noise of each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS, BasePruner, Quota
from nbcore.pruning.budget import Budget
from nbcore.vit import PrunableViT


@PRUNERS.register("weights")
class WeightsPruner(BasePruner):
    compacts = False
    damping = 1.0
    """Share of the optimiser's step that masked weights take in the dense copy."""

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.matrices: list[Tensor] = block_matrices(model)
        self.masks = [torch.ones_like(matrix) for matrix in self.matrices]
        self.dense: list[Tensor] | None = None
        """Copy that is trained on where weights may return; None otherwise, and once masks are
        frozen."""

    def allow_regrowth(self, margin: float = 0.0, returns: float | None = None) -> None:
        self.margin, self.returns = margin, returns
        self.dense = [matrix.detach().clone() for matrix in self.matrices]

    def set_quota(self, quota: Quota) -> None:
        raise ValueError(
            "host weights removes no units: there are no removals that a quota could share out"
        )

    @torch.no_grad()
    def after_backward(self, gate_gradient: Tensor | None) -> None:
        if self.dense is not None:
            torch._foreach_copy_(self.matrices, self.dense)
        else:
            gradients = [matrix.grad for matrix in self.matrices]
            torch._foreach_mul_(gradients, self.masks)  # type: ignore[call-overload,arg-type]

    @torch.no_grad()
    def after_step(self, step: int) -> Tensor | None:
        if self.dense is not None:
            rates = torch._foreach_add(
                torch._foreach_mul(self.masks, 1 - self.damping), self.damping
            )
            torch._foreach_lerp_(self.dense, self.matrices, rates)
        progress = self.budget.progress(step)
        chosen = progress is not None and (step in self.budget.steps or self.dense is not None)
        if progress is not None and chosen:
            target = self.budget.macs_ratio
            share = target + (1 - target) * (1 - progress) ** 3
            if self.dense is None:
                self.masks = [
                    largest(weight, share, mask)
                    for weight, mask in zip(self.matrices, self.masks, strict=True)
                ]
            else:
                self.masks = [
                    largest(
                        weight * (1 + self.margin * mask), share, self._open(weight, mask, step)
                    )
                    for weight, mask in zip(self.dense, self.masks, strict=True)
                ]
        if self.dense is not None:
            torch._foreach_copy_(self.matrices, self.dense)
        torch._foreach_mul_(self.matrices, self.masks)
        if step == (*self.budget.steps, *self.budget.refresh)[-1]:
            self.dense = None
        return self.keep if chosen else None

    def _open(self, weight: Tensor, mask: Tensor, step: int) -> Tensor | None:
        """One where a weight may stay or return at a step; None means everywhere."""
        if self.returns is None:
            return None
        share = self.returns * self.budget.cooling(step) * float(mask.mean())
        return mask + largest(weight, share, 1 - mask) * (1 - mask)

    def record(self) -> dict[str, float]:
        """The budget: the share of block weights kept (`macs_ratio` counts whole units)."""
        kept = sum(int(mask.sum()) for mask in self.masks)
        return {"weights_ratio": kept / sum(mask.numel() for mask in self.masks)}

    def finalize(self) -> Tensor:
        """All units; raises unless the share of weights is met and the others are zero."""
        share = self.record()["weights_ratio"]
        if share > self.budget.macs_ratio:
            raise ValueError(
                f"training ended before the budget was met: {share:.3f} of the block "
                f"weights left, target {self.budget.macs_ratio}; the last removal step is "
                f"{self.budget.steps[-1]}"
            )
        pairs = zip(self.matrices, self.masks, strict=True)
        moved = sum(int(matrix[mask == 0].count_nonzero()) for matrix, mask in pairs)
        if moved:
            raise ValueError(
                f"{moved} block weights that host weights removed are not zero any more: a "
                "mitigation changed them after the host's step; leave it out"
            )
        return self.keep

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"masks": self.masks, "dense": self.dense}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        torch._foreach_copy_(self.masks, state["masks"])
        self.dense = state["dense"]
        if self.dense is not None:
            self.dense = [copy.to(m) for copy, m in zip(self.dense, self.matrices, strict=True)]


def block_matrices(model: PrunableViT) -> list[Tensor]:
    """Weights of `qkv`, `proj`, `fc1` and `fc2` of every block."""
    return [
        layer.weight
        for block in model.vit.blocks
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    ]


def largest(weight: Tensor, share: float, among: Tensor | None = None) -> Tensor:
    """Mask of the weights of largest magnitude; ties go to the lower index.

    Args:
        weight: Of any shape.
        share: Of the whole matrix that stays; rounded down.
        among: One where a weight may stay; None means everywhere.

    Returns:
        One where a weight stays, zero elsewhere; shape and type of `weight`.
    """
    size = weight.detach().abs()
    if among is not None:
        size = size.masked_fill(among == 0, -1.0)
    count = int(share * weight.numel() + 1e-9)
    order = size.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros_like(size).flatten()
    mask[order[:count]] = 1
    return mask.view_as(weight)
