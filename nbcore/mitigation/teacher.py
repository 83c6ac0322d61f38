"""What a model in training is compared with: itself at the fork, before anything was removed.

The copy is frozen, has no token merging and shares no tensor with the model in training. On CUDA it
runs in compiled parts, which all models of a process share, and in the training's half precision.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbcore.graphed import GraphedAnswers
from nbcore.vit import Parts, PrunableViT, Tokens, compiled_parts, with_merge


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """What the teacher says of a batch; no gradients."""

    logits: Tensor
    """[B, K]."""
    blocks: tuple[Tensor, ...] = ()
    """Output of every block, patches only [B, P, D], if `with_blocks`."""


class Teacher:
    """The model at the fork, or a given one."""

    def __init__(self, given: nn.Module | None = None, *, with_blocks: bool = False) -> None:
        """Choose the teacher.

        Args:
            given: Images [B, 3, S, S] in [0, 1] -> logits [B, K], used as it is; None means the
                model that is attached, as it is at that moment.
            with_blocks: Also give the output of every block.

        Raises:
            ValueError: If the given module is in training mode.
        """
        if given is not None and given.training:
            raise ValueError(
                "the teacher is in training mode, so its answers would depend on chance and on the "
                "batch; call teacher.eval() first"
            )
        self.given = given
        self.with_blocks = with_blocks
        self._graphed: GraphedAnswers | None = None
        self._fork: PrunableViT | None = None
        self._images: Tensor | None = None
        self._outputs: TeacherOutputs | None = None

    def attach(self, model: PrunableViT) -> None:
        """Keep a copy of the model."""
        self.forget()
        if self.given is None:
            self._fork = copy.deepcopy(with_merge(model, None)).eval().requires_grad_(False)
            # Open gates are left out: they change no bit and cost time.
            self._fork.masked = bool((model.keep != 1).any())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> TeacherOutputs:
        """Outputs for a batch; computed once, however many parts of a mitigation ask."""
        if self._outputs is None or self._images is not images:
            device = images.device.type
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                self._outputs = self._compute(images)
            self._images = images
        return self._outputs

    def _compute(self, images: Tensor) -> TeacherOutputs:
        if self.given is not None:
            if images.is_cuda and self._graphed is None:
                self._graphed = GraphedAnswers(self.given)
            return TeacherOutputs(logits=(self._graphed or self.given)(images))
        assert self._fork is not None, "attach comes first"
        blocks: list[Tensor] = []
        prefix = self._fork.num_prefix_tokens

        def block_tap(block: int, output: Tensor, tokens: Tokens) -> None:
            blocks.append(output[:, prefix:])

        parts = compiled_parts() if images.is_cuda else Parts()
        tap = block_tap if self.with_blocks else None
        logits = self._fork(images, block_tap=tap, parts=parts)
        return TeacherOutputs(logits=logits, blocks=tuple(blocks))

    def forget(self) -> None:
        """Let go of the last batch."""
        self._images = self._outputs = None

    def state_dict(self) -> dict[str, Any]:
        """Weights of the copy; a given teacher has to be given again."""
        return {} if self._fork is None else self._fork.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._fork is not None:
            self._fork.load_state_dict(state)
