"""The training loop. It knows pruner and mitigation only through their protocols.

Everything that a step depends on is in `nbcore.state`, the record of it in `nbcore.history`.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nbcore.augment import Draws, PartDraws, augment, mix
from nbcore.config import TrainConfig
from nbcore.data import Dataset
from nbcore.distributed import ALONE, Processes
from nbcore.history import end_epoch, last_top1, record_loads
from nbcore.mitigation import Mitigation, StepOutputs
from nbcore.pruning import Pruner, check_fade
from nbcore.state import TrainState, new_state, save_state
from nbcore.vit import PrunableViT

STATISTICS_BATCHES = 4

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainResult:
    """A trained model and the record of its training."""

    model: PrunableViT
    """The averaged model, in evaluation mode."""
    keep: Tensor
    """Units that were kept [U]."""
    history: list[dict[str, Any]]
    """Records of step, epoch, loss since the record before, lr, macs_ratio, kept units and loads
    per site, and what the host adds: one per epoch, or at the steps that `TrainConfig.record_every`
    says; where the validation split is looked at, also top-1 on it and how many steps were left out
    since."""


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Full batches of an epoch; a smaller set is one batch."""
    return max(1, num_images // batch_size)


def train(
    model: PrunableViT,
    data: Dataset,
    config: TrainConfig,
    *,
    seed: int,
    device: torch.device,
    mitigation: Mitigation,
    pruner: Pruner | None = None,
    dense_macs: int | None = None,
    state_path: Path | None = None,
    title: str | None = "train",
    processes: Processes = ALONE,
) -> TrainResult:
    """Train a model, pruning it on the way if a pruner is given.

    Args:
        model: On `device`; dense. It is trained in place.
        data: Uint8 images; moved to `device` once.
        config: Stages, optimiser, augmentation.
        seed: Of data order, augmentation and dropout.
        device: Where to train.
        mitigation: Use `NoMitigation()` for none.
        pruner: Host, or None for dense training.
        dense_macs: MACs that count as 1.0 in the history; the model's own if None.
        state_path: Where the resumable state lives; None keeps none. Deleted by the caller when
            all is safe.
        title: Shown beside the progress bar; None shows none.
        processes: Those that train this model together, each calling this with the same arguments.

    Raises:
        ValueError: If host and mitigation cannot be combined, units return too late for their gates
            to open, or processes cannot share a batch.
        RuntimeError: If more than a tenth of an epoch's gradients are not finite.
    """
    train_images, train_targets = data.train.images.to(device), data.train.targets.to(device)
    batch_size = min(config.batch_size, len(train_images))
    per_epoch = steps_per_epoch(len(train_images), batch_size)
    total = per_epoch * config.total_epochs
    if pruner is not None:
        if mitigation.regrows and pruner.compacts:
            check_fade(pruner.budget, mitigation.fade_steps, total)
        mitigation.watch(pruner.gate)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        model.to(memory_format=torch.channels_last)
    state = new_state(model, config, seed, device, pruner, mitigation, processes)
    rows = processes.share(batch_size, device)
    draws: Draws = state.generator
    if rows is not None:
        draws = PartDraws(generator=state.generator, batch_size=batch_size, rows=rows)

    def picks() -> tuple[Tensor, ...]:
        chosen = torch.randperm(
            len(train_images), generator=state.statistics_generator, device=device
        )
        return chosen[: STATISTICS_BATCHES * batch_size].split(batch_size)

    def images_of(positions: Tensor) -> Tensor:
        side = config.epochs[-1][0]
        return augment(train_images[positions], side, config, state.statistics_generator)

    def labelled_batches() -> list[tuple[Tensor, Tensor]]:
        return [
            (images_of(p), soft_targets(train_targets[p], model.num_classes, config))
            for p in picks()
        ]

    mitigation.attach(model, lambda: [images_of(p) for p in picks()])
    if pruner is not None:
        pruner.attach(labelled_batches)
        if (quota := mitigation.quota()) is not None:
            pruner.set_quota(quota)
    if state_path is not None and processes.of_first(state_path.exists):
        state.load_state_dict(torch.load(state_path, map_location=device, weights_only=True))
        logger.info("%s: resumed at epoch %d of %d", title, state.epoch, config.total_epochs)
    sides = [side for side, epochs in config.epochs for _ in range(epochs)]
    hide = title is None or not processes.is_first
    with tqdm(
        total=config.total_epochs, initial=state.epoch, desc=title, unit="epoch", disable=hide
    ) as bar:
        while state.epoch < config.total_epochs:
            began = time.perf_counter()
            order = torch.randperm(len(train_images), generator=state.generator, device=device)
            for positions in order[: per_epoch * batch_size].split(batch_size):
                if rows is not None:
                    positions = positions[rows]
                x = augment(train_images[positions], sides[state.epoch], config, draws)
                if device.type == "cuda":
                    x = x.contiguous(memory_format=torch.channels_last)
                _step(state, x, train_targets[positions], config, total, per_epoch)
                if config.record_every and state.step % config.record_every == 0:
                    record_loads(state, data, device, dense_macs)
            state.epoch += 1
            end_epoch(state, data, config, device, dense_macs, per_epoch, title)
            if not hide:
                speed = per_epoch * batch_size / (time.perf_counter() - began)
                bar.update()
                loss = f"{state.history[-1]['loss']:.3f}" if state.history else "-"
                bar.set_postfix(loss=loss, img_s=f"{speed:.0f}", top1=last_top1(state))
            if state_path is not None and (
                state.epoch % config.save_every == 0 or state.epoch == config.total_epochs
            ):
                save_state(state, state_path)
    keep = pruner.finalize() if pruner else state.masking.keep
    result = (state.ema.module if state.ema else model).eval()
    result.set_keep(keep)
    return TrainResult(model=result, keep=keep, history=state.history)


def soft_targets(targets: Tensor, num_classes: int, config: TrainConfig) -> Tensor:
    """Smoothed one-hot targets: int64 [B] -> [B, K]."""
    soft = F.one_hot(targets, num_classes).float()
    return soft * (1 - config.smoothing) + config.smoothing / num_classes


def _step(
    state: TrainState,
    images: Tensor,
    targets: Tensor,
    config: TrainConfig,
    total: int,
    per_epoch: int,
) -> None:
    """One optimiser step; left out if its gradients are not finite."""
    model, device, pruner = state.model, images.device, state.pruner
    images, soft = mix(
        images, soft_targets(targets, model.num_classes, config), config, state.mix_generator
    )
    leaf = gate = None
    if pruner is not None:
        gate = pruner.gate()
        if gate is not None:
            gate = state.processes.with_averaged_gradient(gate)
        if pruner.wants_unit_gradients:
            leaf = torch.ones(len(images), model.num_units, device=device, requires_grad=True)
            gate = leaf if gate is None else leaf * gate
    gate, replace_mask = state.masking.gate(gate)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits, blocks = state.forward(images, gate, replace_mask)
    loss = F.cross_entropy(logits.float(), soft)
    terms = [
        state.mitigation.loss_term(StepOutputs(images=images, logits=logits, blocks=blocks)),
        pruner.loss_term() if pruner else None,
    ]
    full = loss + sum(term for term in terms if term is not None)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, total, per_epoch, config)
    state.optimizer.zero_grad(set_to_none=True)
    full.backward()
    state.processes.average_gradients_(model)
    if pruner is not None:
        per_image = None if leaf is None or leaf.grad is None else leaf.grad * len(images)
        pruner.after_backward(None if per_image is None else state.processes.gather(per_image))
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    broken = ~torch.isfinite(norm)
    _optimizer_step(state.optimizer, broken)
    state.step += 1
    state.masking.after_optimizer_step()
    new_keep = _choose(pruner, state) if pruner else None
    if new_keep is not None:
        if not torch.equal(new_keep, state.masking.keep):
            _change_keep(state, new_keep)
        _restart_average(state)
    state.mitigation.after_step(state.step)
    if state.ema is not None:
        state.ema_step += 1
        state.ema.update(model, step=state.ema_step)
    state.skipped += broken
    state.unrecorded += ~broken
    state.loss += torch.where(broken, 0.0, loss.detach())


def _optimizer_step(optimizer: torch.optim.Optimizer, broken: Tensor) -> None:
    """Step unless gradients are not finite; on CUDA the fused optimiser decides without waiting
    for the device."""
    if broken.device.type == "cuda":
        # The interface through which torch.amp.GradScaler tells fused optimisers to skip.
        optimizer.grad_scale, optimizer.found_inf = None, broken.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(broken):
        optimizer.step()


def learning_rate(step: int, total: int, per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to `final_lr` at the last step."""
    warmup = min(int(config.warmup_epochs * per_epoch), total - 1)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (
        1 + math.cos(math.pi * progress)
    )


def _choose(pruner: Pruner, state: TrainState) -> Tensor | None:
    """What the host keeps after this step, the same in all processes: should rounding make them
    disagree, the first one decides."""
    keep = pruner.after_step(state.step)
    if keep is None or state.processes.count == 1:
        return keep
    choices = state.processes.gather(keep[None])
    if bool((choices != choices[0]).any()):
        logger.info("step %d: processes chose different units, the first decides", state.step)
        pruner.load_state_dict(state.processes.of_first(pruner.state_dict))
    return choices[0]


@torch.no_grad()
def _change_keep(state: TrainState, keep: Tensor) -> None:
    """Tell the mitigation, then change the mask."""
    old, keep = state.masking.keep, keep.to(state.masking.keep.device)
    state.mitigation.on_keep_changing(state.pruner.gate() if state.pruner else None)
    for index, site in enumerate(state.model.sites):
        before, after = old[site.units], keep[site.units]
        if torch.equal(before, after):
            continue
        lost, regained = (before & ~after).nonzero()[:, 0], (after & ~before).nonzero()[:, 0]
        state.mitigation.on_keep_changed(index, lost, regained, after.nonzero()[:, 0])
    state.processes.follow_first_(list(state.model.parameters()))
    state.masking.change(keep, state.optimizer)


def _restart_average(state: TrainState) -> None:
    """Without what the weights were before something was removed."""
    if state.ema is not None:
        state.ema.module.load_state_dict(state.model.state_dict())
        state.ema_step = 0
