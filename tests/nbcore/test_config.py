"""Configurations refuse what cannot be run, when they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from nbcore.config import Arch, DataConfig, Merge, ModelConfig, PruneConfig, TrainConfig
from tests.nbcore.runs import DENSE, toy_child

ARCH = Arch(name="vit", num_heads=(2, 1), hidden_features=(8, 16), head_dim=4)
TRAIN = TrainConfig(epochs=((32, 2), (64, 3)))
PRUNE = PruneConfig(pruner="taylor", macs_ratio=0.5)
DATA = DataConfig(dataset="shapes", img_size=32)
MODEL = ModelConfig(name="vit")

REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (Merge(block=1, r=1), {"block": 0}, "merge.block must be >= 1, got 0"),
    (Merge(block=1, r=1), {"r": 0}, "merge.r must be >= 1, got 0"),
    (ARCH, {"num_heads": (2,)}, "num_heads lists 1 blocks, hidden_features 2"),
    (ARCH, {"num_heads": (2, 0)}, "at least one head"),
    (ARCH, {"num_heads": (), "hidden_features": ()}, "at least one head"),
    (DATA, {"img_size": 0}, "img_size must be positive, got 0"),
    (DATA, {"crop_pct": 0.0}, r"crop_pct must lie in \(0, 1\], got 0.0"),
    (DATA, {"crop_pct": 1.01}, "crop_pct"),
    (DATA, {"validation_share": 0.0}, "validation_share"),
    (DATA, {"validation_share": 0.51}, "validation_share"),
    (MODEL, {"pretrained": True, "weights": "a.pt"}, "either pretrained or weights"),
    (TRAIN, {"epochs": ()}, "epochs needs"),
    (TRAIN, {"epochs": ((32, 0),)}, "epochs needs"),
    (TRAIN, {"epochs": ((0, 1),)}, "epochs needs"),
    (TRAIN, {"batch_size": 0}, "batch_size must be positive, got 0"),
    (TRAIN, {"lr": 0.0}, "lr must be positive"),
    (TRAIN, {"warmup_epochs": -1.0}, "warmup_epochs must be >= 0"),
    (TRAIN, {"smoothing": 1.0}, r"smoothing must lie in \[0, 1\), got 1.0"),
    (TRAIN, {"ema_decay": 1.0}, "ema_decay"),
    (TRAIN, {"crop_scale": (0.5, 0.4)}, "crop_scale"),
    (TRAIN, {"crop_scale": (0.0, 0.4)}, "crop_scale"),
    (TRAIN, {"eval_every": 0}, "eval_every must be >= 1, got 0"),
    (TRAIN, {"save_every": 0}, "save_every must be >= 1, got 0"),
    (PRUNE, {"macs_ratio": 1.0}, r"macs_ratio must lie in \(0, 1\), got 1.0"),
    (PRUNE, {"macs_ratio": 0.0}, "macs_ratio"),
    (PRUNE, {"start": 0.6}, "start=0.6, end=0.6"),
    (PRUNE, {"end": 1.1}, "end=1.1"),
    (PRUNE, {"start": -0.1}, "start=-0.1"),
    (PRUNE, {"updates": 0}, "updates must be >= 1"),
]


@pytest.mark.parametrize(
    ("good", "change", "text"), REFUSED, ids=[f"{type(g).__name__}-{c}" for g, c, _ in REFUSED]
)
def test_impossible_value_is_refused(good: Any, change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(good, **change)


@pytest.mark.parametrize(
    ("good", "change"),
    [
        (DATA, {"crop_pct": 1.0, "validation_share": 0.5}),
        (TRAIN, {"crop_scale": (1.0, 1.0), "ema_decay": 0.0, "smoothing": 0.0}),
        (PRUNE, {"start": 0.99, "end": 1.0}),
    ],
)
def test_limits_themselves_are_allowed(good: Any, change: dict[str, Any]) -> None:
    changed = replace(good, **change)
    assert {name: getattr(changed, name) for name in change} == change


def test_total_epochs_adds_the_stages() -> None:
    assert TRAIN.total_epochs == 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(DENSE, base="other"),
        lambda: toy_child(base=None),
        lambda: toy_child(prune=None),
    ],
)
def test_base_and_pruning_go_together(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="a pruned run needs `base` and `prune`"):
        make()


def test_configurations_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        TRAIN.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("bad", ["", "../evil", ".hidden", "-a", "a/b", "a b", "ä", "+a"])
def test_an_impossible_id_is_refused_before_anything_is_trained(bad: str) -> None:
    with pytest.raises(ValueError, match="an id holds only letters"):
        replace(DENSE, id=bad)
    assert replace(DENSE, id="a-b_c.d+e").id == "a-b_c.d+e"
