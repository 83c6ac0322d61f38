"""Which units take part in a training, and what becomes of the parameters of those that do not.

Two kinds of removal. By default removed units are *zeroed*: their weights are held at exactly zero,
so nothing can move them and nothing flows back from them. Where units may return they are
*dormant*: their weights rest untouched behind a closed gate, and a unit that returns goes on from
them. Either way their gradients are exactly zero and their moments in the optimiser are cleared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbcore.vit import PrunableViT


class Masking:
    """The mask of a model in training, and its hold on the parameters of removed units."""

    def __init__(self, model: PrunableViT, *, dormant: bool, fade_steps: int = 0) -> None:
        """Start with all units kept.

        Args:
            model: Its gates are closed and opened.
            dormant: True if removed units keep their weights, since they may return.
            fade_steps: Steps over which a returning unit's gate opens; 0 opens it at once.
        """
        self.model = model
        self.dormant = dormant
        self.fade_steps = fade_steps
        self.keep = torch.ones(model.num_units, dtype=torch.bool, device=model.keep.device)
        self.strength = torch.ones(model.num_units, device=model.keep.device)
        """What the gates are at: 0 for removed units, below 1 while a unit fades in [U]."""
        self.fading = False
        self._parameters: list[Tensor] = []
        self._masks: list[Tensor] = []
        self._resting: list[Tensor] = []

    @torch.no_grad()
    def change(self, keep: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Close and open gates, and clear the moments of every unit that is removed."""
        returning = keep & ~self.keep
        if self.fade_steps and bool(returning.any()):
            self.fading = True
        else:
            self.strength[returning] = 1.0
        self.strength[~keep] = 0.0
        old = self._masks
        self._set(keep)
        for index, (parameter, mask) in enumerate(zip(self._parameters, self._masks, strict=True)):
            for name, moment in optimizer.state.get(parameter, {}).items():
                if not name.startswith("exp_avg"):
                    continue
                moment.mul_(mask)
                if name == "exp_avg_sq" and old:
                    # From zero a returning unit would take 3 to 6 times AdamW's usual step for a
                    # hundred steps, since bias correction counts the steps of the whole training.
                    stays = mask * old[index]
                    typical = (moment * stays).sum() / stays.sum().clamp_min(1.0)
                    moment.add_((mask - stays) * typical)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """Undo whatever the optimiser did to removed units, and open fading gates further."""
        self.hold()
        if self.fading:
            self.strength.add_(self.keep / self.fade_steps).clamp_(max=1.0)
            self.model.set_keep(self.strength)
            self.fading = bool((self.strength[self.keep] < 1).any())

    @torch.no_grad()
    def hold(self) -> None:
        """Put removed units' parameters to exactly zero, or where they rest."""
        if self._parameters:
            torch._foreach_mul_(self._parameters, self._masks)
        if self._resting:
            torch._foreach_add_(self._parameters, self._resting)  # type: ignore[call-overload,arg-type]

    def gate(self, unit_gate: Tensor | None) -> tuple[Tensor | None, bool]:
        """The gate for a forward pass and whether it replaces the mask.

        Dormant units' gates are closed but let a gradient through to `unit_gate`, which tells what
        a unit's return would change.

        Args:
            unit_gate: Factors [B, U] or [1, U], or None.
        """
        if unit_gate is None or not self.dormant:
            return unit_gate, False
        through = (unit_gate - unit_gate.detach()) * (1 - self.strength)
        return unit_gate * self.strength + through, True

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self.keep, "strength": self.strength, "fading": self.fading}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved mask; the model's parameters must be loaded before."""
        self.strength.copy_(state["strength"])
        self.fading = state["fading"]
        self._set(state["keep"].to(self.keep.device))

    @torch.no_grad()
    def _set(self, keep: Tensor) -> None:
        self.keep = keep.clone()
        self._parameters, self._masks, self._resting = [], [], []
        for index, site in enumerate(self.model.sites):
            kept = keep[site.units].float()
            for parameter, dim, owner in self.model.unit_parameters(index):
                mask = kept[owner]
                mask = mask if parameter.ndim == 1 else mask.unsqueeze(1 - dim)
                self._parameters.append(parameter)
                self._masks.append(mask.expand_as(parameter).contiguous())
                if self.dormant:
                    self._resting.append(parameter.detach() * (1 - self._masks[-1]))
        self.hold()
        self.model.set_keep(self.strength)
