"""What a training step depends on, written to disk as training goes on.

Whatever is in `TrainState` is enough for a stopped training to continue as if nothing had happened
(bit for bit on a CPU).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from nbcore.config import TrainConfig
from nbcore.distributed import Processes
from nbcore.graphed import GraphedTraining
from nbcore.masking import Masking
from nbcore.mitigation import Mitigation
from nbcore.pruning import Pruner
from nbcore.vit import Parts, PrunableViT, Tokens, compiled_parts, unmerge

SEED_STRIDE = 1_000_003
"""Between the seeds of processes that train together."""

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, tuple[Tensor, ...]]]
"""(images, gate, whether the gate replaces the mask) -> logits, block outputs."""


def training_forward(model: PrunableViT, *, with_blocks: bool, compiled: bool) -> Forward:
    """The forward pass of training steps of a model.

    Args:
        model: To be trained.
        with_blocks: Whether block outputs are wanted.
        compiled: Whether stem and blocks are compiled. What is compiled serves all blocks of equal
            width, and all models of a process. Where nothing is gated or merged, a CUDA graph runs
            them.
    """
    parts = compiled_parts() if compiled else Parts()
    prefix = model.num_prefix_tokens
    graphed = None
    if compiled and not with_blocks and model.merge is None:
        graphed = GraphedTraining(model, lambda images: model(images, parts=parts))

    def forward(
        images: Tensor, gate: Tensor | None, replace_mask: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if graphed is not None and gate is None and not model.masked:
            return graphed(images), ()
        blocks: list[Tensor] = []

        def block_tap(block: int, output: Tensor, tokens: Tokens) -> None:
            blocks.append(unmerge(output[:, prefix:], tokens))

        tap = block_tap if with_blocks else None
        logits = model(images, gate, block_tap=tap, replace_mask=replace_mask, parts=parts)
        return logits, tuple(blocks)

    return forward


@dataclass(kw_only=True)
class TrainState:
    """What a step depends on."""

    model: PrunableViT
    forward: Forward
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    mix_generator: torch.Generator
    statistics_generator: torch.Generator
    pruner: Pruner | None
    mitigation: Mitigation
    masking: Masking
    processes: Processes
    loss: Tensor
    """Sum of the losses since the last record."""
    skipped: Tensor
    """Steps of this epoch that were left out because gradients were not finite."""
    unrecorded: Tensor
    """Steps with finite gradients since the last record."""
    epoch: int = 0
    step: int = 0
    ema_step: int = 0
    left_out: int = 0
    """Skipped steps since the last record that tells of them."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        cuda = self.generator.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "mix_generator": self.mix_generator.get_state(),
            "statistics_generator": self.statistics_generator.get_state(),
            "torch_rng": self.processes.from_all(torch.get_rng_state()),
            "cuda_rng": self.processes.from_all(torch.cuda.get_rng_state()) if cuda else None,
            "pruner": self.pruner.state_dict() if self.pruner else {},
            "mitigation": self.mitigation.state_dict(),
            "masking": self.masking.state_dict(),
            "counters": [self.epoch, self.step, self.ema_step, self.left_out],
            "sums": [self.loss, self.unrecorded],
            "history": json.dumps(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.mix_generator.set_state(state["mix_generator"].cpu())
        self.statistics_generator.set_state(state["statistics_generator"].cpu())
        rank, saved = self.processes.rank, len(state["torch_rng"])
        if saved == self.processes.count:
            torch.set_rng_state(state["torch_rng"][rank].cpu())
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank].cpu())
        else:
            logger.warning(
                "%d processes go on with what %d began: dropout and stochastic depth are drawn "
                "anew",
                self.processes.count, saved,
            )  # fmt: skip
        if self.pruner:
            self.pruner.load_state_dict(state["pruner"])
            self.masking.load_state_dict(state["masking"])
        self.mitigation.load_state_dict(state["mitigation"])
        self.epoch, self.step, self.ema_step, self.left_out = state["counters"]
        self.loss, self.unrecorded = (value.to(self.loss.device) for value in state["sums"])
        self.history = json.loads(state["history"])


def save_state(state: TrainState, path: Path) -> None:
    """Write the state so that readers see the old one or the new one; by the first process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    content = state.state_dict()
    if state.processes.is_first:
        torch.save(content, temporary)
        temporary.replace(path)


class WeightAverage(ModelEmaV3):
    """timm's average of weights, which looks its tensors up once instead of at every step."""

    _floats: tuple[list[Tensor], list[Tensor]] | None = None
    _others: tuple[tuple[Tensor, Tensor], ...] = ()

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        if self._floats is None:
            pairs = [
                *zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
            ]
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            self._floats = [mine for mine, _ in floats], [theirs for _, theirs in floats]
            self._others = tuple(pair for pair in pairs if not pair[0].is_floating_point())
        torch._foreach_lerp_(*self._floats, weight=1.0 - decay)
        for mine, theirs in self._others:
            mine.copy_(theirs)


def new_state(
    model: PrunableViT,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    pruner: Pruner | None,
    mitigation: Mitigation,
    processes: Processes,
) -> TrainState:
    """The state before the first step of a training; see `train` for the arguments."""
    # Each process drops other features and paths.
    torch.manual_seed(seed + SEED_STRIDE * processes.rank)
    groups = param_groups_weight_decay(
        model,
        config.weight_decay,
        no_weight_decay_list=[f"vit.{n}" for n in model.vit.no_weight_decay()],
    )
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=device.type == "cuda")
    ema = None
    if config.ema_decay:
        ema = WeightAverage(model, decay=config.ema_decay, use_warmup=True)
    if pruner is not None:
        mitigation.check_host(pruner)
        if mitigation.regrows:
            pruner.allow_regrowth(mitigation.margin, mitigation.returns)
        model.set_keep(torch.ones(model.num_units, device=device))
    forward = training_forward(
        model, with_blocks=mitigation.wants_blocks, compiled=device.type == "cuda"
    )
    count = torch.zeros((), dtype=torch.int64, device=device)
    return TrainState(
        model=model.train(),
        forward=forward,
        ema=ema,
        optimizer=optimizer,
        generator=torch.Generator(device).manual_seed(seed),
        mix_generator=torch.Generator().manual_seed(seed),
        statistics_generator=torch.Generator(device).manual_seed(seed + 1),
        pruner=pruner,
        mitigation=mitigation,
        masking=Masking(
            model,
            dormant=pruner is not None and pruner.regrows,
            fade_steps=mitigation.fade_steps,
        ),
        processes=processes,
        loss=torch.zeros((), device=device),
        skipped=count.clone(),
        unrecorded=count.clone(),
    )
