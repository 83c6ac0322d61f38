"""Small trainings on generated shapes, and the means to watch them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nbcore.config import DataConfig, Merge, ModelConfig, PruneConfig, RunConfig, TrainConfig
from nbcore.data import Dataset, load_dataset
from nbcore.macs import macs_of
from nbcore.mitigation import Mitigation, create_mitigation
from nbcore.pruning import PRUNERS, Budget, Pruner, removal_steps
from nbcore.train import TrainResult, steps_per_epoch, train
from nbcore.vit import PrunableViT, create_dense, with_merge

CPU = torch.device("cpu")
MODEL = ModelConfig(
    name="vit_tiny_patch16_224",
    kwargs={
        "class_token": False,
        "global_pool": "avg",
        "depth": 2,
        "num_heads": 4,
        "embed_dim": 32,
        "patch_size": 8,
        "drop_path_rate": 0.1,
    },
    stem="conv",
)
TRAIN = TrainConfig(
    epochs=((16, 1), (32, 3)),
    batch_size=16,
    lr=1e-2,
    warmup_epochs=1,
    weight_decay=0.5,
    ema_decay=0.9,
    eval_every=2,
    save_every=1,
)
DATA = DataConfig(dataset="shapes", img_size=32)
# Gentler: what is left of strong weight decay is too faint to be compared in single precision.
GENTLE = replace(TRAIN, lr=3e-3, weight_decay=0.05)
DENSE = RunConfig(
    id="toy-dense", data=DATA, model=MODEL, train=GENTLE, calibration_images=16, measure_images=16
)
NUM_TRAIN, NUM_TEST = 72, 18


def shapes(*_: Any, **options: Any) -> Dataset:
    """A few shapes of the side asked for, whatever data set is named."""
    return _shapes(**options)


@cache
def _shapes(**options: Any) -> Dataset:
    return load_dataset("shapes", None, n_train=NUM_TRAIN, n_test=NUM_TEST, **options)


def dense_model(seed: int = 0, model: ModelConfig = MODEL) -> PrunableViT:
    torch.manual_seed(seed)
    return create_dense(model, img_size=32, num_classes=6)


def toy_child(mitigation: str = "none", **changes: Any) -> RunConfig:
    """A pruned run that forks from `DENSE`."""
    prune = PruneConfig(pruner="taylor", macs_ratio=0.5, mitigation=mitigation, updates=3)
    known: dict[str, Any] = {"id": f"toy-taylor-m50-{mitigation}", "base": DENSE.id, "prune": prune}
    fields = {key: getattr(DENSE, key) for key in ("data", "model", "train")}
    sizes = {"calibration_images": 16, "measure_images": 16}
    return RunConfig(**(fields | sizes | known | changes))


def budget_for(
    model: PrunableViT, config: TrainConfig, data: Dataset, ratio: float = 0.5
) -> Budget:
    """Three removals in the first 60 % of a training; dense MACs are those without merging."""
    per_epoch = steps_per_epoch(len(data.train.names), config.batch_size)
    plain = macs_of(with_merge(model, None))
    return Budget(
        macs=macs_of(model),
        dense_macs=plain.total([site.num_units for site in model.sites]),
        macs_ratio=ratio,
        steps=removal_steps(per_epoch * config.total_epochs, 0.0, 0.6, 3),
    )


def train_pruned(
    data: Dataset,
    config: TrainConfig = TRAIN,
    *,
    pruner: str | Callable[..., Pruner] = "taylor",
    mitigation: str | Mitigation = "none",
    merge: Merge | None = None,
    **options: Any,
) -> tuple[TrainResult, Budget]:
    """A pruned training from random weights."""
    model = with_merge(dense_model(), merge)
    budget = budget_for(model, config, data)
    factory = PRUNERS[pruner] if isinstance(pruner, str) else pruner
    host = factory(model, budget, torch.Generator().manual_seed(0))
    if isinstance(mitigation, str):
        mitigation = create_mitigation(mitigation, {})
    result = train(
        model,
        data,
        config,
        seed=0,
        device=CPU,
        mitigation=mitigation,
        pruner=host,
        dense_macs=budget.dense_macs,
        **options,
    )
    return result, budget


def weights_of(result: TrainResult) -> dict[str, Tensor]:
    """Everything a training decides: the averaged weights, statistics and the mask."""
    return result.model.state_dict() | {"keep": result.keep}


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
