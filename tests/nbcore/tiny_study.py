"""The smallest study that has everything: two seeds, one host, three mitigations, seconds long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nbcore.config import DataConfig, PruneConfig, TrainConfig
from nbcore.study.experiment import Laboratory
from nbcore.study.grid import DENSE_PLUS, TWIN, Arm, Block, StudyConfig, Wave
from nbcore.study.runner import Progress, run_study
from tests.nbcore.runs import MODEL

TRAIN = TrainConfig(
    epochs=((32, 2),), batch_size=16, lr=3e-3, warmup_epochs=0, ema_decay=0.9, crop_scale=(0.7, 1.0)
)


def tiny_study(**changes: Any) -> StudyConfig:
    blocks = (
        Block(hosts=("taylor",), mitigations=("none", "handoff", "token_merging"), ratios=(0.5,)),
        Block(hosts=(DENSE_PLUS,), mitigations=("handoff", "token_merging"), ratios=(1.0,)),
        Block(hosts=(TWIN,), mitigations=("none",), ratios=(0.5,)),
    )
    study = StudyConfig(
        name="tiny",
        data=DataConfig(dataset="shapes", img_size=32, validation_share=0.25),
        data_options={"n_train": 72, "n_test": 18},
        model=MODEL,
        dense=TRAIN,
        arm=replace(TRAIN, lr=1e-3),
        prune=PruneConfig(pruner="taylor", macs_ratio=0.5, updates=2),
        mitigation_options={"token_merging": {"block": 1, "r": 4}},
        waves=(Wave(seeds=(0, 1), blocks=blocks),),
        measure_images=18,
        calibration_images=18,
    )
    return replace(study, **changes)


def arm(pruner: str = "taylor", mitigation: str = "none", ratio: float = 0.5, seed: int = 0) -> Arm:
    return Arm(pruner=pruner, mitigation=mitigation, target_macs_ratio=ratio, seed=seed)


def laboratory(work: Path, **changes: Any) -> Laboratory:
    return Laboratory(tiny_study(**changes), None, work, torch.device("cpu"))


def run_here(study: StudyConfig, folder: Path, **options: Any) -> Progress:
    """Run a study on the CPU with one worker, results in folder/out."""
    known: dict[str, Any] = {"data_dir": None, "devices": ["cpu"], "workers": 1}
    paths = {"out": folder / "out", "work_dir": folder / "work"}
    return run_study(study, **(paths | known | options))
