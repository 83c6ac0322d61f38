"""What is added to a host to relieve pruning: the protocol, its events, and composition with
"+"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbcore.config import Merge
from nbcore.mitigation.teacher import Teacher
from nbcore.pruning import PRUNERS, Pruner, Quota
from nbcore.pruning.base import PrunerFactory
from nbcore.registry import Registry
from nbcore.vit import PrunableViT

Batches = Callable[[], Sequence[Tensor]]
"""Gives a few batches of training images [B, 3, S, S] on the model's device, augmented but never
mixed, at the side of the last stage."""

Gate = Callable[[], Tensor | None]
"""Gives the host's learned factors on contributions [1, U] as they are now, or None for ones."""


@dataclass(frozen=True, kw_only=True)
class StepOutputs:
    """What a training step computed, for additions to its loss."""

    images: Tensor
    """As the model saw them, mixed [B, 3, S, S] in [0, 1]."""
    logits: Tensor
    """[B, K]; half precision where the device trains in it."""
    blocks: tuple[Tensor, ...] = ()
    """Output of every block at the original patches, un-merged [B, P, D], if `wants_blocks`."""


class Mitigation:
    """A mitigation that does nothing; subclasses override what they need.

    Each method names the moment at which the training loop calls it, so any mitigation works with
    any host.
    """

    wants_blocks = False
    """True if `loss_term` needs the output of every block."""
    regrows = False
    """True if removed units may return; the host then chooses among all units
    (`Pruner.allow_regrowth`). All parts of a composition know it."""
    fade_steps = 0
    """Steps over which the gate of a returning unit opens; all parts of a composition know it."""
    margin = 0.0
    """By how much of its own size the score of a kept unit is raised when units may return."""
    returns: float | None = None
    """How many units may return at the first choice, as a share of those kept; None: no limit."""
    stands_for: tuple[str, ...] = ()
    """Names of the parts that a name is short for."""

    def check_host(self, host: Pruner | PrunerFactory) -> None:
        """Refuse a host that this cannot be combined with. Called before anything else.

        Raises:
            ValueError: With the reason and with what would work.
        """

    def quota(self) -> Quota | None:
        """How removals are to be shared between sites (`Pruner.set_quota`), or None. Called after
        `attach`."""
        return None

    def merge(self) -> Merge | None:
        """Token merging that becomes part of the model, or None. Called before the model is
        built."""
        return None

    def watch(self, gate: Gate) -> None:
        """Called once if there is a host, before `attach`."""

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        """Called once, before the first step."""

    def on_keep_changing(self, gate: Tensor | None) -> None:
        """Called once per change of masks, before any site is touched: the place to take
        statistics.

        Args:
            gate: The host's learned factors on contributions [1, U], or None for ones.
        """

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        """Called for every site whose mask changes, before the lost units' weights are set to zero.

        Args:
            site: Index of the site.
            lost: Units that leave now, positions within the site.
            regained: Units that return now.
            kept: Units that stay or return.
        """

    def loss_term(self, outputs: StepOutputs) -> Tensor | None:
        """Addition to the loss of this step, or None."""
        return None

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


MITIGATIONS: Registry[Callable[..., Mitigation]] = Registry("mitigation")


class Taught(Mitigation):
    """A mitigation that compares the model in training with a teacher."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        self.teacher.attach(model)

    def after_step(self, step: int) -> None:
        self.teacher.forget()

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])


class Composition(Mitigation):
    """Several mitigations, called in the order given.

    Parts that are taught by the model at the fork share one teacher, which answers once per step.
    """

    def __init__(self, parts: Sequence[Mitigation]) -> None:
        self.parts = tuple(parts)
        self.wants_blocks = any(part.wants_blocks for part in parts)
        self.regrows = any(part.regrows for part in parts)
        self.fade_steps = max(part.fade_steps for part in parts)
        self.margin = max(part.margin for part in parts)
        limits = [part.returns for part in parts if part.returns is not None]
        self.returns = min(limits, default=None)
        for part in parts:
            part.regrows, part.fade_steps = self.regrows, self.fade_steps
        taught = [p for p in parts if isinstance(p, Taught) and p.teacher.given is None]
        if len(taught) > 1:
            shared = Teacher(with_blocks=any(part.teacher.with_blocks for part in taught))
            for part in taught:
                part.teacher = shared

    def check_host(self, host: Pruner | PrunerFactory) -> None:
        for part in self.parts:
            part.check_host(host)

    def quota(self) -> Quota | None:
        quotas = [quota for part in self.parts if (quota := part.quota()) is not None]
        if len(quotas) > 1:
            raise ValueError("only one mitigation of a composition may share out removals")
        return quotas[0] if quotas else None

    def merge(self) -> Merge | None:
        merges = [merge for part in self.parts if (merge := part.merge()) is not None]
        if len(merges) > 1:
            raise ValueError("only one mitigation of a composition may merge tokens")
        return merges[0] if merges else None

    def watch(self, gate: Gate) -> None:
        for part in self.parts:
            part.watch(gate)

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        for part in self.parts:
            part.attach(model, batches)

    def on_keep_changing(self, gate: Tensor | None) -> None:
        for part in self.parts:
            part.on_keep_changing(gate)

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        for part in self.parts:
            part.on_keep_changed(site, lost, regained, kept)

    def loss_term(self, outputs: StepOutputs) -> Tensor | None:
        terms = [term for part in self.parts if (term := part.loss_term(outputs)) is not None]
        return torch.stack(terms).sum() if terms else None

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def refuse(
    mitigation: str,
    host: Pruner | PrunerFactory,
    fits: Callable[[Pruner | PrunerFactory], bool],
    fault: str,
    reason: str,
) -> None:
    """Refuse hosts that do not fit, and name those that do.

    Args:
        mitigation: Its name.
        host: That it is to be combined with.
        fits: Whether a host may be.
        fault: What the others do, after "a host that".
        reason: Why that does not do.

    Raises:
        ValueError: If the host does not fit.
    """
    if not fits(host):
        fitting = ", ".join(name for name in PRUNERS if fits(PRUNERS[name]))
        others = ", ".join(name for name in PRUNERS if not fits(PRUNERS[name]))
        raise ValueError(
            f"mitigation {mitigation} cannot be combined with a host that {fault} ({others}): "
            f"{reason}; it works with {fitting}"
        )


def needs_units(mitigation: str, host: Pruner | PrunerFactory, reason: str) -> None:
    """Refuse hosts that remove single weights and no units; see `refuse`."""
    fault = "removes single weights and no units"
    refuse(mitigation, host, lambda other: other.compacts, fault, reason)
