"""The record of a training: loss, budget and loads as it goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from nbcore.burden import MeteredViT, calibrate, sum_to_sites
from nbcore.config import TrainConfig
from nbcore.data import Dataset
from nbcore.evaluate import split_accuracy
from nbcore.macs import macs_of
from nbcore.pruning import Pruner
from nbcore.state import TrainState
from nbcore.vit import PrunableViT

LOAD_IMAGES = 128


def end_epoch(
    state: TrainState,
    data: Dataset,
    config: TrainConfig,
    device: torch.device,
    dense_macs: int | None,
    per_epoch: int,
    title: str | None,
) -> None:
    """Check the epoch's gradients and record what is due.

    Raises:
        RuntimeError: If too many of them were not finite.
    """
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
        record_loads(state, data, device, dense_macs)
    record = state.history[-1]
    record["skipped_steps"], state.left_out = state.left_out, 0
    if looks:
        averaged = state.ema.module if state.ema else state.model
        if state.pruner is not None:
            averaged.set_keep(_open_gates(state, state.pruner))
        record["validation_top1"] = split_accuracy(averaged, data.validation, device)
        if state.pruner is not None:
            averaged.set_keep(state.masking.strength)


def _open_gates(state: TrainState, pruner: Pruner) -> Tensor:
    """What the gates of this moment are, the host's learned ones included [U]."""
    learned = pruner.gate()
    strength = state.masking.strength
    return strength if learned is None else strength * learned.detach()[0]


def record_loads(
    state: TrainState, data: Dataset, device: torch.device, dense_macs: int | None
) -> None:
    """Append a record to the history and start the next mean of the loss."""
    state.processes.average_([state.loss])
    macs = macs_of(state.model)
    kept = [int(state.masking.keep[s.units].sum()) for s in state.model.sites]
    whole = dense_macs or macs.total([s.num_units for s in state.model.sites])
    gate = state.pruner.gate() if state.pruner else None
    state.history.append(
        {
            "step": state.step,
            "epoch": state.epoch,
            "loss": state.loss.item() / max(1, int(state.unrecorded)),
            "lr": state.optimizer.param_groups[0]["lr"],
            "macs_ratio": macs.total(kept) / whole,
            "kept": kept,
            "loads": site_loads(state.model, data, device, gate),
        }
        | (state.pruner.record() if state.pruner else {})
    )
    state.loss.zero_()
    state.unrecorded.zero_()


@torch.no_grad()
def site_loads(
    model: PrunableViT, data: Dataset, device: torch.device, gate: Tensor | None = None
) -> list[float]:
    """Load of each site on the first validation photos, centred on their own means.

    The root mean square of the single photos' loads, each over that photo's own stream. The burden
    report (`nbcore.measure`) divides sums over all photos instead, so the two differ a little.

    Args:
        model: In training; its mode is restored.
        data: Its data set.
        device: Where the model is.
        gate: The host's learned factors on contributions [1, U], or None for ones.
    """
    images = data.validation.images[:LOAD_IMAGES].to(device).float() / 255
    training, strength = model.training, model.keep.clone()
    if gate is not None:
        model.set_keep(strength * gate[0])
    means = calibrate(model, [images])
    _, unit_load, _, _, *_ = MeteredViT(model, means)(images)
    model.train(training)
    if gate is not None:
        model.set_keep(strength)
    sites = sum_to_sites(unit_load * (strength > 0), [s.num_units for s in model.sites])
    return [round(value, 5) for value in sites.pow(2).mean(0).sqrt().tolist()]


def last_top1(state: TrainState) -> str:
    """The last look at the validation split, for display."""
    known = [r["validation_top1"] for r in state.history if "validation_top1" in r]
    return f"{known[-1]:.3f}" if known else "-"
