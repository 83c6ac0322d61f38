"""One model and one compiled forward pass for each structure, lent to one training after another.

Compiling takes longer than a run of a small model; loading other weights into a compiled model
takes no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nbcore.config import Merge
from nbcore.train import Forward, training_forward
from nbcore.vit import PrunableViT, with_merge


class ModelPool:
    """Models by structure.

    Args:
        device: Where they live; compiled on CUDA only.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            # All structures count as recompilations of one function; past the limit torch would
            # silently run the rest uncompiled.
            torch._dynamo.config.recompile_limit = 128
        self._models: dict[str, PrunableViT] = {}
        self._forwards: dict[tuple[str, bool], Forward] = {}

    def lend(
        self,
        kind: str,
        build: Callable[[], PrunableViT],
        state: Mapping[str, Tensor],
        *,
        merge: Merge | None = None,
        with_blocks: bool = False,
    ) -> tuple[PrunableViT, Forward]:
        """A model as good as new that holds given weights, and its forward pass for `train`.

        Args:
            kind: Says what `build` builds; one kind is built once.
            build: Makes the model.
            state: Weights to start from.
            merge: Token merging of the model.
            with_blocks: Whether the forward pass gives the blocks' outputs.
        """
        kind = f"{kind}/{merge}"
        if kind not in self._models or not _is_untouched(self._models[kind], state):
            self._models[kind] = with_merge(build(), merge).to(self.device)
            for key in [key for key in self._forwards if key[0] == kind]:
                del self._forwards[key]
        model = self._models[kind]
        model.load_state_dict(state)
        model.keep.fill_(1.0)
        model.masked = False
        model.requires_grad_(True).train()
        model.zero_grad(set_to_none=True)
        key = (kind, with_blocks)
        if key not in self._forwards:
            self._forwards[key] = training_forward(
                model, with_blocks=with_blocks, compiled=self.device.type == "cuda"
            )
        return model, self._forwards[key]


def _is_untouched(model: PrunableViT, state: Mapping[str, Tensor]) -> bool:
    """Whether a training left nothing behind on a model but other numbers."""
    hooks = any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        for module in model.modules()
    )
    return not hooks and model.state_dict().keys() == state.keys()
