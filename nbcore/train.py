"""The training loop. It knows pruner and mitigation only through their protocols.

Everything that a step depends on is in `_State`, which is written to disk as training goes on: a
stopped run continues as if nothing had happened (bit for bit on a CPU).
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from nbcore.augment import augment, mix
from nbcore.burden import MeteredViT, calibrate, sum_to_sites
from nbcore.config import TrainConfig
from nbcore.data import Dataset
from nbcore.evaluate import split_accuracy
from nbcore.macs import macs_of
from nbcore.mitigation import Mitigation
from nbcore.pruning import Pruner
from nbcore.vit import PrunableViT

LOAD_IMAGES = 128
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
    """One record per epoch: step, epoch, loss, lr, macs_ratio, loads per site, and top-1 on the
    validation split."""


@dataclass(kw_only=True)
class _State:
    """What a step depends on."""

    model: PrunableViT
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    mix_generator: torch.Generator
    statistics_generator: torch.Generator
    pruner: Pruner | None
    mitigation: Mitigation
    keep: Tensor
    skipped: Tensor
    """Steps of this epoch that were left out because gradients were not finite."""
    masks: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    """Parameters of pruned sites with ones where the unit is kept; empty while nothing is
    removed."""
    epoch: int = 0
    step: int = 0
    ema_step: int = 0
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
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if cuda else None,
            "pruner": self.pruner.state_dict() if self.pruner else {},
            "mitigation": self.mitigation.state_dict(),
            "keep": self.keep,
            "counters": [self.epoch, self.step, self.ema_step],
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
        torch.set_rng_state(state["torch_rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())
        if self.pruner:
            self.pruner.load_state_dict(state["pruner"])
        self.mitigation.load_state_dict(state["mitigation"])
        self.keep = state["keep"].to(self.keep.device)
        self.epoch, self.step, self.ema_step = state["counters"]
        self.history = json.loads(state["history"])


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
    compile_model: bool | None = None,
    title: str = "train",
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
        compile_model: Whether to use torch.compile; default on CUDA only.
        title: Shown beside the progress bar.
    """
    train_images, train_targets = data.train.images.to(device), data.train.targets.to(device)
    batch_size = min(config.batch_size, len(train_images))
    per_epoch = steps_per_epoch(len(train_images), batch_size)
    total = per_epoch * config.total_epochs
    state = _new_state(model, config, seed, device, pruner, mitigation)

    def calibration_batches() -> list[Tensor]:
        side = config.epochs[-1][0]
        chosen = torch.randperm(
            len(train_images), generator=state.statistics_generator, device=device
        )
        picks = chosen[: STATISTICS_BATCHES * batch_size].split(batch_size)
        return [augment(train_images[p], side, config, state.statistics_generator) for p in picks]

    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        model.to(memory_format=torch.channels_last)
    mitigation.attach(model, calibration_batches)
    if state_path is not None and state_path.exists():
        state.load_state_dict(torch.load(state_path, map_location=device, weights_only=True))
        if pruner is not None:
            _set_keep(state, state.keep)
        logger.info("%s: resumed at epoch %d of %d", title, state.epoch, config.total_epochs)
    if compile_model is None:
        compile_model = device.type == "cuda"
    forward = torch.compile(model, dynamic=False) if compile_model else model
    sides = [side for side, epochs in config.epochs for _ in range(epochs)]
    with tqdm(total=config.total_epochs, initial=state.epoch, desc=title, unit="epoch") as bar:
        while state.epoch < config.total_epochs:
            began = time.perf_counter()
            order = torch.randperm(len(train_images), generator=state.generator, device=device)
            loss = torch.zeros((), device=device)
            for picks in order[: per_epoch * batch_size].split(batch_size):
                x = augment(train_images[picks], sides[state.epoch], config, state.generator)
                if device.type == "cuda":
                    x = x.contiguous(memory_format=torch.channels_last)
                loss += _step(state, forward, x, train_targets[picks], config, total, per_epoch)
            state.epoch += 1
            skipped = int(state.skipped)
            state.skipped.zero_()
            if skipped > max(1, per_epoch // 10) or skipped == per_epoch:
                raise RuntimeError(
                    f"{title}: gradients of {skipped} of {per_epoch} steps in epoch {state.epoch} "
                    "were not finite; "
                    f"lower `lr` (now {config.lr})"
                )
            mean_loss = loss.item() / (per_epoch - skipped)
            speed = per_epoch * batch_size / (time.perf_counter() - began)
            _log_epoch(state, data, config, device, mean_loss, skipped, dense_macs)
            bar.update()
            bar.set_postfix(loss=f"{mean_loss:.3f}", img_s=f"{speed:.0f}", top1=_last_top1(state))
            if state_path is not None and (
                state.epoch % config.save_every == 0 or state.epoch == config.total_epochs
            ):
                _save(state, state_path)
    keep = pruner.finalize() if pruner else state.keep
    result = (state.ema.module if state.ema else model).eval()
    result.set_keep(keep)
    return TrainResult(model=result, keep=keep, history=state.history)


def _new_state(
    model: PrunableViT,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    pruner: Pruner | None,
    mitigation: Mitigation,
) -> _State:
    torch.manual_seed(seed)
    groups = param_groups_weight_decay(
        model,
        config.weight_decay,
        no_weight_decay_list=[f"vit.{n}" for n in model.vit.no_weight_decay()],
    )
    optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=device.type == "cuda")
    ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    if pruner is not None:
        model.set_keep(torch.ones(model.num_units, device=device))
    return _State(
        model=model.train(),
        ema=ema,
        optimizer=optimizer,
        generator=torch.Generator(device).manual_seed(seed),
        mix_generator=torch.Generator().manual_seed(seed),
        statistics_generator=torch.Generator(device).manual_seed(seed + 1),
        pruner=pruner,
        mitigation=mitigation,
        keep=torch.ones(model.num_units, dtype=torch.bool, device=device),
        skipped=torch.zeros((), dtype=torch.int64, device=device),
    )


def _step(
    state: _State,
    forward: nn.Module | Any,
    images: Tensor,
    targets: Tensor,
    config: TrainConfig,
    total: int,
    per_epoch: int,
) -> Tensor:
    """One optimiser step; returns the detached loss, 0 where the step was left out."""
    model, device = state.model, images.device
    soft = F.one_hot(targets, model.num_classes).float()
    soft = soft * (1 - config.smoothing) + config.smoothing / model.num_classes
    images, soft = mix(images, soft, config, state.mix_generator)
    gate = None
    if state.pruner is not None and state.pruner.wants_unit_gradients:
        gate = torch.ones(len(images), model.num_units, device=device, requires_grad=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = forward(images, gate)
    loss = F.cross_entropy(logits.float(), soft)
    terms = [
        state.mitigation.loss_term(images, logits),
        state.pruner.loss_term() if state.pruner else None,
    ]
    full = loss + sum(term for term in terms if term is not None)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, total, per_epoch, config)
    state.optimizer.zero_grad(set_to_none=True)
    full.backward()
    if state.pruner is not None:
        state.pruner.after_backward(
            None if gate is None or gate.grad is None else gate.grad * len(images)
        )
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
    broken = ~torch.isfinite(norm)
    _optimizer_step(state.optimizer, broken)
    state.skipped += broken
    state.step += 1
    _zero_removed(state)
    new_keep = state.pruner.after_step(state.step) if state.pruner else None
    if new_keep is not None and not torch.equal(new_keep, state.keep):
        _change_keep(state, new_keep)
    state.mitigation.after_step(state.step)
    if state.ema is not None:
        state.ema_step += 1
        state.ema.update(model, step=state.ema_step)
    return torch.where(broken, 0.0, loss.detach())


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


@torch.no_grad()
def _change_keep(state: _State, keep: Tensor) -> None:
    """Tell the mitigation, then remove: mask, zero weights and moments, restart the average."""
    keep = keep.to(state.keep.device)
    state.mitigation.on_keep_changing()
    for index, site in enumerate(state.model.sites):
        old, new = state.keep[site.units], keep[site.units]
        if torch.equal(old, new):
            continue
        lost, regained = (old & ~new).nonzero()[:, 0], (new & ~old).nonzero()[:, 0]
        state.mitigation.on_keep_changed(index, lost, regained, new.nonzero()[:, 0])
    _set_keep(state, keep)
    for parameter, mask in state.masks:
        for name, moment in state.optimizer.state.get(parameter, {}).items():
            if name.startswith("exp_avg"):
                moment.mul_(mask)
    if state.ema is not None:
        state.ema.module.load_state_dict(state.model.state_dict())
        state.ema_step = 0


def _set_keep(state: _State, keep: Tensor) -> None:
    """Mask model and average, and zero the weights of removed units."""
    state.keep = keep.clone()
    state.masks = []
    for index, site in enumerate(state.model.sites):
        kept = keep[site.units].float()
        for parameter, dim, owner in state.model.unit_parameters(index):
            mask = kept[owner]
            state.masks.append(
                (parameter, mask if parameter.ndim == 1 else mask.unsqueeze(1 - dim))
            )
    _zero_removed(state)
    for model in (state.model, state.ema.module if state.ema else None):
        if model is not None:
            model.set_keep(keep)


@torch.no_grad()
def _zero_removed(state: _State) -> None:
    """Hold the weights of removed units at exactly zero, whatever the optimiser did."""
    for parameter, mask in state.masks:
        parameter.mul_(mask)


def _log_epoch(
    state: _State,
    data: Dataset,
    config: TrainConfig,
    device: torch.device,
    loss: float,
    skipped: int,
    dense_macs: int | None,
) -> None:
    macs = macs_of(state.model)
    kept = [int(state.keep[s.units].sum()) for s in state.model.sites]
    whole = dense_macs or macs.total([s.num_units for s in state.model.sites])
    record: dict[str, Any] = {
        "step": state.step,
        "epoch": state.epoch,
        "loss": loss,
        "skipped_steps": skipped,
        "lr": state.optimizer.param_groups[0]["lr"],
        "macs_ratio": macs.total(kept) / whole,
        "loads": site_loads(state.model, data, device),
    }
    if state.epoch % config.eval_every == 0 or state.epoch == config.total_epochs:
        averaged = state.ema.module if state.ema else state.model
        record["validation_top1"] = split_accuracy(averaged, data.validation, device)
    state.history.append(record)


@torch.no_grad()
def site_loads(model: PrunableViT, data: Dataset, device: torch.device) -> list[float]:
    """Load of each site on the first validation photos, centred on their own means."""
    images = data.validation.images[:LOAD_IMAGES].to(device).float() / 255
    training = model.training
    means = calibrate(model, [images])
    _, unit_load, _, _, *_ = MeteredViT(model, means)(images)
    model.train(training)
    sites = sum_to_sites(unit_load * model.keep, [s.num_units for s in model.sites])
    return [round(value, 5) for value in sites.pow(2).mean(0).sqrt().tolist()]


def _last_top1(state: _State) -> str:
    known = [r["validation_top1"] for r in state.history if "validation_top1" in r]
    return f"{known[-1]:.3f}" if known else "-"


def _save(state: _State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state.state_dict(), temporary)
    temporary.replace(path)
