"""What is added to a host to relieve pruning: the protocol, its events, and composition with
"+"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nbcore.config import Merge
from nbcore.registry import Registry
from nbcore.vit import PrunableViT

Batches = Callable[[], Sequence[Tensor]]
"""Gives a few batches of training images [B, 3, S, S] as the model sees them now, on its device."""


class Mitigation:
    """A mitigation that does nothing; subclasses override what they need.

    Each method names the moment at which the training loop calls it, so any mitigation works with
    any host.
    """

    def merge(self) -> Merge | None:
        """Token merging that becomes part of the model, or None. Called before the model is
        built."""
        return None

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        """Called once, before the first step."""

    def on_keep_changing(self) -> None:
        """Called once per change of masks, before any site is touched: the place to take
        statistics."""

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        """Called for every site whose mask changes, before the lost units' weights are set to zero.

        Args:
            site: Index of the site.
            lost: Units that leave now, positions within the site.
            regained: Units that return now.
            kept: Units that stay or return.
        """

    def loss_term(self, images: Tensor, logits: Tensor) -> Tensor | None:
        """Addition to the loss of this step, or None."""
        return None

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


MITIGATIONS: Registry[Callable[..., Mitigation]] = Registry("mitigation")


class Composition(Mitigation):
    """Several mitigations, called in the order given."""

    def __init__(self, parts: Sequence[Mitigation]) -> None:
        self.parts = tuple(parts)

    def merge(self) -> Merge | None:
        merges = [merge for part in self.parts if (merge := part.merge()) is not None]
        if len(merges) > 1:
            raise ValueError("only one mitigation of a composition may merge tokens")
        return merges[0] if merges else None

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        for part in self.parts:
            part.attach(model, batches)

    def on_keep_changing(self) -> None:
        for part in self.parts:
            part.on_keep_changing()

    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        for part in self.parts:
            part.on_keep_changed(site, lost, regained, kept)

    def loss_term(self, images: Tensor, logits: Tensor) -> Tensor | None:
        terms = [
            term for part in self.parts if (term := part.loss_term(images, logits)) is not None
        ]
        return torch.stack(terms).sum() if terms else None

    def after_step(self, step: int) -> None:
        for part in self.parts:
            part.after_step(step)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def create_mitigation(name: str, options: Mapping[str, Mapping[str, Any]]) -> Mitigation:
    """Build a mitigation from its name, parts joined by "+".

    Args:
        name: E.g. "handoff" or "token_merging+handoff".
        options: Keyword arguments by part.

    Raises:
        ValueError: If a part is unknown or repeated, or options name a part that is not used.
    """
    parts = name.split("+")
    if len(set(parts)) != len(parts):
        raise ValueError(f"mitigation {name!r} names a part twice")
    unused = set(options) - set(parts)
    if unused:
        raise ValueError(
            f"mitigation {name!r} got options for {sorted(unused)}, which it does not use"
        )
    built = [MITIGATIONS[part](**options.get(part, {})) for part in parts]
    return built[0] if len(built) == 1 else Composition(built)
