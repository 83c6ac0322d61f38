"""The training loop. It knows pruner and mitigation only through their protocols.

Everything that a step depends on is in `_State`, which is written to disk as training goes on: a
stopped run continues as if nothing had happened (bit for bit on a CPU).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from nbcore.augment import Draws, PartDraws, augment, mix
from nbcore.burden import MeteredViT, calibrate, sum_to_sites
from nbcore.config import TrainConfig
from nbcore.data import Dataset
from nbcore.distributed import ALONE, Processes
from nbcore.evaluate import split_accuracy
from nbcore.macs import macs_of
from nbcore.masking import Masking
from nbcore.mitigation import Mitigation, StepOutputs
from nbcore.pruning import Pruner
from nbcore.vit import Parts, PrunableViT, Tokens, compiled_parts, unmerge

LOAD_IMAGES = 128
SEED_STRIDE = 1_000_003
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
    per site: one per epoch, or at the steps that `TrainConfig.record_every` says; where the
    validation split is looked at, also top-1 on it and how many steps were left out since."""


Forward = Callable[[Tensor, Tensor | None, bool], tuple[Tensor, tuple[Tensor, ...]]]
"""(images, gate, whether the gate replaces the mask) -> logits, block outputs."""


def training_forward(model: PrunableViT, *, with_blocks: bool, compiled: bool) -> Forward:
    """The forward pass of training steps of a model.

    Args:
        model: To be trained.
        with_blocks: Whether block outputs are wanted.
        compiled: Whether stem and blocks are compiled. One graph serves all blocks of equal width,
            and all models of a process.
    """
    parts = compiled_parts() if compiled else Parts()
    prefix = model.num_prefix_tokens

    def forward(
        images: Tensor, gate: Tensor | None, replace_mask: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        blocks: list[Tensor] = []

        def block_tap(block: int, output: Tensor, tokens: Tokens) -> None:
            blocks.append(unmerge(output[:, prefix:], tokens))

        tap = block_tap if with_blocks else None
        logits = model(images, gate, block_tap=tap, replace_mask=replace_mask, parts=parts)
        return logits, tuple(blocks)

    return forward


@dataclass(kw_only=True)
class _State:
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
    forward: Forward | None = None,
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
        forward: From `training_forward` of this model; by default compiled on CUDA only.
        title: Shown beside the progress bar; None shows none.
        processes: Those that train this model together, each calling this with the same arguments.

    Raises:
        ValueError: If host and mitigation cannot be combined, or processes cannot share a batch.
        RuntimeError: If more than a tenth of an epoch's gradients are not finite.
    """
    train_images, train_targets = data.train.images.to(device), data.train.targets.to(device)
    batch_size = min(config.batch_size, len(train_images))
    per_epoch = steps_per_epoch(len(train_images), batch_size)
    total = per_epoch * config.total_epochs
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        model.to(memory_format=torch.channels_last)
    state = _new_state(model, config, seed, device, pruner, mitigation, forward, processes)
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
                    _record(state, data, device, dense_macs)
            state.epoch += 1
            _end_epoch(state, data, config, device, dense_macs, per_epoch, title)
            if not hide:
                speed = per_epoch * batch_size / (time.perf_counter() - began)
                bar.update()
                loss = f"{state.history[-1]['loss']:.3f}" if state.history else "-"
                bar.set_postfix(loss=loss, img_s=f"{speed:.0f}", top1=_last_top1(state))
            if state_path is not None and (
                state.epoch % config.save_every == 0 or state.epoch == config.total_epochs
            ):
                _save(state, state_path)
    keep = pruner.finalize() if pruner else state.masking.keep
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
    forward: Forward | None,
    processes: Processes,
) -> _State:
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
            pruner.allow_regrowth(mitigation.margin)
        model.set_keep(torch.ones(model.num_units, device=device))
    if forward is None:
        forward = training_forward(
            model, with_blocks=mitigation.wants_blocks, compiled=device.type == "cuda"
        )
    count = torch.zeros((), dtype=torch.int64, device=device)
    return _State(
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


def soft_targets(targets: Tensor, num_classes: int, config: TrainConfig) -> Tensor:
    """Smoothed one-hot targets: int64 [B] -> [B, K]."""
    soft = F.one_hot(targets, num_classes).float()
    return soft * (1 - config.smoothing) + config.smoothing / num_classes


def _step(
    state: _State,
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


def _choose(pruner: Pruner, state: _State) -> Tensor | None:
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
def _change_keep(state: _State, keep: Tensor) -> None:
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


def _restart_average(state: _State) -> None:
    """Without what the weights were before something was removed."""
    if state.ema is not None:
        state.ema.module.load_state_dict(state.model.state_dict())
        state.ema_step = 0


def _end_epoch(
    state: _State,
    data: Dataset,
    config: TrainConfig,
    device: torch.device,
    dense_macs: int | None,
    per_epoch: int,
    title: str | None,
) -> None:
    # What a mitigation changes by itself may be rounded differently in each process.
    state.processes.follow_first_(list(state.model.parameters()))
    skipped = int(state.skipped)
    state.skipped.zero_()
    if skipped > max(1, per_epoch // 10) or skipped == per_epoch:
        raise RuntimeError(
            f"{title or 'training'}: gradients of {skipped} of {per_epoch} steps in epoch "
            f"{state.epoch} were not finite; lower `lr` (now {config.lr})"
        )
    state.left_out += skipped
    looks = state.epoch % config.eval_every == 0 or state.epoch == config.total_epochs
    if config.record_every is not None and not looks:
        return
    if not state.history or state.history[-1]["step"] != state.step:
        _record(state, data, device, dense_macs)
    record = state.history[-1]
    record["skipped_steps"], state.left_out = state.left_out, 0
    if looks:
        averaged = state.ema.module if state.ema else state.model
        if state.pruner is not None:
            averaged.set_keep(_open_gates(state, state.pruner))
        record["validation_top1"] = split_accuracy(averaged, data.validation, device)
        if state.pruner is not None:
            averaged.set_keep(state.masking.strength)


def _open_gates(state: _State, pruner: Pruner) -> Tensor:
    """What the gates of this moment are, the host's learned ones included [U]."""
    learned = pruner.gate()
    strength = state.masking.strength
    return strength if learned is None else strength * learned.detach()[0]


def _record(state: _State, data: Dataset, device: torch.device, dense_macs: int | None) -> None:
    """Append a record to the history and start the next mean of the loss."""
    state.processes.average_([state.loss])
    macs = macs_of(state.model)
    kept = [int(state.masking.keep[s.units].sum()) for s in state.model.sites]
    whole = dense_macs or macs.total([s.num_units for s in state.model.sites])
    state.history.append(
        {
            "step": state.step,
            "epoch": state.epoch,
            "loss": state.loss.item() / max(1, int(state.unrecorded)),
            "lr": state.optimizer.param_groups[0]["lr"],
            "macs_ratio": macs.total(kept) / whole,
            "kept": kept,
            "loads": site_loads(state.model, data, device),
        }
    )
    state.loss.zero_()
    state.unrecorded.zero_()


@torch.no_grad()
def site_loads(model: PrunableViT, data: Dataset, device: torch.device) -> list[float]:
    """Load of each site on the first validation photos, centred on their own means."""
    images = data.validation.images[:LOAD_IMAGES].to(device).float() / 255
    training = model.training
    means = calibrate(model, [images])
    _, unit_load, _, _, *_ = MeteredViT(model, means)(images)
    model.train(training)
    sites = sum_to_sites(unit_load * (model.keep > 0), [s.num_units for s in model.sites])
    return [round(value, 5) for value in sites.pow(2).mean(0).sqrt().tolist()]


def _last_top1(state: _State) -> str:
    known = [r["validation_top1"] for r in state.history if "validation_top1" in r]
    return f"{known[-1]:.3f}" if known else "-"


def _save(state: _State, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    content = state.state_dict()
    if state.processes.is_first:
        torch.save(content, temporary)
        temporary.replace(path)
