"""Host `vit_slim`: gates on all units learn under an L1 penalty; one cut by their size, then
retraining.

At the cut the gates are multiplied into the weights that write what they gate (`proj`, `fc2`), so
the function of the kept units does not change and nothing of the gates is left. Where a mitigation
lets units return, the cut is made again at every refresh step, gates go on learning until the last
one (a missing unit's gate by the gradient that passes straight through it), and are multiplied in
then.

Source:
    Chavan et al., "Vision Transformer Slimming", arXiv:2201.00814, and its code: penalties 2e-4
    (attention) and 5e-5 (MLP) on the sum of |gate|, gates start at one, one threshold per kind over
    all layers.
    Differs in: a gate per head on its output, not per channel on its queries, keys and values;
    no gates on patches; gates are ranked by size where the source ranks by signed value, and kept
    by value where it sets them to one at the cut; no weight decay on gates; the share of the
    training until the cut is the budget's, and gates learn at a rate that fits it: the source's
    5e-4 per step would not bring a gate from one to zero in less than two thousand steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.pruning.base import PRUNERS, BasePruner, Quota
from nbcore.pruning.budget import Budget, allocate
from nbcore.vit import PrunableViT

PENALTIES = {"heads": 2e-4, "neurons": 5e-5}
TRAVEL = 2.0
"""How far a gate can move until the cut: from one to zero in half of the time."""


@PRUNERS.register("vit_slim")
class ViTSlimPruner(BasePruner):
    folds = True

    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        device = model.keep.device
        self.gates = torch.ones(1, model.num_units, device=device, requires_grad=True)
        self.learner = torch.optim.Adam([self.gates], lr=TRAVEL / budget.steps[-1])
        self.penalties = torch.cat(
            [torch.full((s.num_units,), PENALTIES[s.kind], device=device) for s in model.sites]
        )
        self.folded = False

    def set_quota(self, quota: Quota) -> None:
        raise ValueError(
            "host vit_slim cuts once, by gates that were learned for all sites together; there is "
            "no next removal that a quota could share out"
        )

    def gate(self) -> Tensor | None:
        # Ones after the cut, and not None: the compiled forward pass would be compiled again.
        return self.gates

    def loss_term(self) -> Tensor | None:
        return None if self.folded else (self.penalties * self.gates.abs()).sum()

    def after_backward(self, gate_gradient: Tensor | None) -> None:
        gradient = self.gates.grad
        assert gradient is not None
        # A step with broken gradients is left out by the trainer, and one NaN would stay for ever.
        self.gates.grad = torch.where(torch.isfinite(gradient).all(), gradient, 0.0)

    def after_step(self, step: int) -> Tensor | None:
        if not self.folded:
            self.learner.step()
        self.learner.zero_grad()
        cuts = (self.budget.steps[-1], *(self.budget.refresh if self.regrows else ()))
        if step not in cuts:
            return None
        size = self.gates.detach()[0].abs()
        size += self.margin * size * self.keep
        allowed = int(self.budget.macs_ratio * self.budget.dense_macs)
        alive = self.candidates(size, step)
        keep = allocate(size, alive, self.model.sites, self.budget.macs, allowed)
        present = self.keep
        changed = self.change(keep)
        if step == cuts[-1]:
            self._fold(present | self.keep)
            return self.keep
        return changed

    @torch.no_grad()
    def _fold(self, present: Tensor) -> None:
        """Multiply the gates of units into their write weights; all gates are ones then.

        Args:
            present: Units that are kept or leave now, whose work a mitigation may be about to give
                away; those that rest are left as they lie [U].
        """
        factors = torch.where(present, self.gates[0], 1.0)
        for index, site in enumerate(self.model.sites):
            weight, _, owner = next(self.model.unit_parameters(index))
            weight.mul_(factors[site.units][owner].to(weight))
        self.gates.fill_(1.0)
        self.folded = True

    def finalize(self) -> Tensor:
        if not self.folded:
            raise ValueError(
                "training ended before the budget was met: the cut of host vit_slim is at step "
                f"{self.budget.steps[-1]}"
            )
        return super().finalize()

    def state_dict(self) -> dict[str, Any]:
        learned = {"gates": self.gates.detach(), "learner": self.learner.state_dict()}
        return super().state_dict() | learned | {"folded": self.folded}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.gates.copy_(state["gates"])
        self.learner.load_state_dict(state["learner"])
        self.folded = state["folded"]
