"""A run's configuration and data -> a trained, pruned and compact model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcore import checkpoint
from nbcore.burden import MeteredViT
from nbcore.checkpoint import Variant
from nbcore.compact import compact, kept_units
from nbcore.config import RunConfig
from nbcore.data import Dataset
from nbcore.distributed import ALONE, Processes
from nbcore.macs import macs_of
from nbcore.mitigation import Mitigation, create_mitigation
from nbcore.mitigation.distillation import Distillation
from nbcore.pruning import PRUNERS, plan_budget
from nbcore.teacher import train_teacher
from nbcore.train import TrainResult, steps_per_epoch, train
from nbcore.vit import PrunableViT, create_dense, with_merge


@dataclass(frozen=True, kw_only=True)
class Base:
    """The dense variant that a pruned run forks from."""

    variant: Variant
    metered: MeteredViT


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a training left."""

    model: PrunableViT
    """Compact, in evaluation mode."""
    kept: tuple[Tensor, ...]
    """Per site the indices of the survivors in the dense base, on the CPU."""
    result: TrainResult
    """The masked model and the history."""


def read_base(config: RunConfig, out: Path) -> Base | None:
    """The dense base of a pruned run, re-hashed; None for a dense run.

    Raises:
        CheckpointError: If it was not trained or is damaged.
    """
    if config.base is None:
        return None
    variant = checkpoint.read_trained(out, config.base)
    checkpoint.verify_trained(out, variant)
    return Base(variant=variant, metered=checkpoint.load_model(out, variant))


def fit(
    config: RunConfig,
    data: Dataset,
    base: Base | None,
    device: torch.device,
    state_path: Path,
    processes: Processes = ALONE,
) -> Fitted:
    """Train a run's model, and compact it.

    Args:
        config: The run.
        data: Its data set.
        base: What a pruned run forks from, left as it is; None for a dense run.
        device: Where to train.
        state_path: File of the resumable state.
        processes: Those that train it together, each calling this with the same arguments.
    """
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {
        "seed": config.seed,
        "device": device,
        "state_path": state_path,
        "title": config.id,
        "processes": processes,
    }
    if base is None:
        result = _train_dense(config, data, options)
    else:
        result = _train_pruned(config, data, base, options)
    kept = tuple(units.cpu() for units in kept_units(result.model, result.keep))
    return Fitted(model=compact(result.model, result.keep), kept=kept, result=result)


def _train_dense(config: RunConfig, data: Dataset, options: dict[str, Any]) -> TrainResult:
    model = create_dense(config.model, img_size=config.data.img_size, num_classes=len(data.classes))
    mitigation = _teaching(config, data, options)
    return train(model.to(options["device"]), data, config.train, mitigation=mitigation, **options)


def _train_pruned(
    config: RunConfig, data: Dataset, base: Base, options: dict[str, Any]
) -> TrainResult:
    prune = config.prune
    assert prune is not None
    mitigation = create_mitigation(prune.mitigation, prune.mitigation_options)
    start = copy.deepcopy(base.metered.model)
    model = with_merge(start, mitigation.merge()).requires_grad_(True).to(options["device"])
    per_epoch = steps_per_epoch(len(data.train.names), config.train.batch_size)
    budget = plan_budget(
        macs_of(model),
        dense_macs=base.variant.macs,
        macs_ratio=prune.macs_ratio,
        total_steps=per_epoch * config.train.total_epochs,
        start=prune.start,
        end=prune.end,
        updates=prune.updates,
        freeze=prune.freeze,
    )
    pruner = PRUNERS[prune.pruner](model, budget, torch.Generator().manual_seed(config.seed))
    return train(
        model,
        data,
        config.train,
        mitigation=mitigation,
        pruner=pruner,
        dense_macs=budget.dense_macs,
        **options,
    )


def _teaching(config: RunConfig, data: Dataset, options: dict[str, Any]) -> Mitigation:
    """What a dense model learns from beside the labels: its teacher's answers, or nothing."""
    if config.teacher is None:
        return create_mitigation("none", {})
    state_path = options["state_path"]
    own = {
        "state_path": state_path.with_name(f"teacher-{state_path.name}"),
        "title": f"{config.id}: teacher {config.teacher.name}",
    }
    teacher = train_teacher(config.teacher, data, **options | own)
    return Distillation(
        teacher=teacher, weight=config.teacher.weight, temperature=config.teacher.temperature
    )
