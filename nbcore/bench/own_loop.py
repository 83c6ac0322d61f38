"""Our training loop, timed from within: the very function that trains every variant."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from nbcore.bench.task import RECIPE, EnoughError, Measurement, Stopwatch, TrainTask
from nbcore.config import RunConfig
from nbcore.data import load_dataset
from nbcore.mitigation import Mitigation
from nbcore.recipes import RECIPES
from nbcore.train import steps_per_epoch, train
from nbcore.vit import create_dense

ENDLESS = 10_000


class Lap(Mitigation):
    """Calls the stopwatch after the last step of every epoch; the next epoch's time then holds what
    the loop records at an epoch's end."""

    def __init__(self, stopwatch: Stopwatch, per_epoch: int, batch_size: int) -> None:
        self.stopwatch = stopwatch
        self.per_epoch = per_epoch
        self.batch_size = batch_size

    def after_step(self, step: int) -> None:
        if step % self.per_epoch == 0:
            self.stopwatch.lap(self.per_epoch * self.batch_size)


def bench_config(img_size: int, batch_size: int) -> RunConfig:
    """The recipe's dense run at one size, with augmentation that both loops know, and without looks
    at the validation split."""
    dense = RECIPES[RECIPE]()[0]
    config = replace(
        dense.train,
        epochs=((img_size, ENDLESS),),
        batch_size=batch_size,
        erasing=0.0,
        three_augment=False,
        eval_every=ENDLESS,
    )
    return replace(dense, data=replace(dense.data, img_size=img_size), train=config)


def time_own_loop(task: TrainTask) -> Measurement:
    """Train with `nbcore.train.train` until enough epochs were timed."""
    device = torch.device(task.device)
    run = bench_config(task.img_size, task.batch_size)
    data = load_dataset(task.dataset, Path(task.data_dir), img_size=task.img_size)
    model = create_dense(run.model, img_size=task.img_size, num_classes=len(data.classes))
    per_epoch = steps_per_epoch(len(data.train.names), task.batch_size)
    stopwatch = Stopwatch(device, task.seconds)
    with contextlib.suppress(EnoughError):
        train(
            model.to(device),
            data,
            run.train,
            seed=0,
            device=device,
            mitigation=Lap(stopwatch, per_epoch, task.batch_size),
            title=None,
        )
    return stopwatch.measurement(compiled=device.type == "cuda")
