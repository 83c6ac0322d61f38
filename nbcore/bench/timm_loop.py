"""timm's training loop, put together from timm's public parts in the order of its train.py.

The wheel does not ship train.py, so its steps are rebuilt here: dataset of files, loader with
transforms in worker processes and prefetch to the device, `create_optimizer_v2`, bfloat16 autocast,
`ModelEmaV3`, `SoftTargetCrossEntropy`, cosine schedule per update, gradient clipping, and the loss
read after every step. Validation, logging and checkpoints are left out, which is in timm's favour.

Source:
    https://github.com/huggingface/pytorch-image-models/blob/main/train.py. Differs in: the model is
    handed over instead of created by name, so that both loops train the same one.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader
from timm.data.readers import add_img_extensions
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from nbcore.bench.own_loop import bench_config
from nbcore.bench.task import EnoughError, Measurement, Stopwatch, TrainTask
from nbcore.config import TrainConfig
from nbcore.vit import create_dense

LOADER_EPOCHS = 2


@dataclass(frozen=True, kw_only=True)
class TimmOptions:
    """Choices that train.py leaves to its user and that bear on speed."""

    torchcompile: bool = True
    """`--torchcompile` (on CUDA; elsewhere compilation is left out on both sides)."""
    channels_last: bool = True
    """`--channels-last`."""
    fused: bool = True
    """`--opt-kwargs fused=True` (on CUDA)."""
    multi_epochs: bool = True
    """`--use-multi-epochs-loader`: workers go on over the end of an epoch."""
    prefetcher: bool = True
    """Mixing in the workers and normalisation on the device; otherwise `--no-prefetcher`, where
    mixing is on the device."""

    @property
    def flags(self) -> str:
        """What to add to train.py's command line."""
        chosen = {
            "--torchcompile": self.torchcompile,
            "--channels-last": self.channels_last,
            "--opt-kwargs fused=True": self.fused,
            "--use-multi-epochs-loader": self.multi_epochs,
            "--no-prefetcher": not self.prefetcher,
        }
        return " ".join(flag for flag, on in chosen.items() if on)


TIMM: dict[str, TimmOptions] = {
    "timm": TimmOptions(torchcompile=False, channels_last=False, fused=False, multi_epochs=False),
    "timm-compile": TimmOptions(multi_epochs=False),
    "timm-multi-epochs": TimmOptions(),
    "timm-mix-on-device": TimmOptions(prefetcher=False),
}
"""Settings tried, from train.py's defaults to the fastest we know of."""


def command_line(task: TrainTask, options: TimmOptions) -> str:
    """The command that would run the same training with timm's train.py, the model aside."""
    run = bench_config(task.img_size, task.batch_size)
    config = run.train
    low, high = config.crop_scale
    return (
        f"python train.py --data-dir DIR --model {run.model.name} --img-size {task.img_size} "
        f"-b {task.batch_size} -j {task.workers} --pin-mem --amp --amp-dtype bfloat16 --opt adamw "
        f"--lr {config.lr} --weight-decay {config.weight_decay} --clip-grad {config.clip_grad} "
        f"--sched cosine --sched-on-updates --model-ema --model-ema-decay {config.ema_decay} "
        f"--model-ema-warmup --scale {low} {high} --color-jitter {config.jitter} "
        f"--hflip {_flip(config)} --train-interpolation bilinear --mixup {config.mixup} "
        f"--cutmix {config.cutmix} --smoothing {config.smoothing} {options.flags}"
    ).rstrip()


def _flip(config: TrainConfig) -> float:
    return 0.5 if config.flip else 0.0


def time_timm_loop(task: TrainTask, options: TimmOptions) -> Measurement:
    """Train as train.py does until enough epochs were timed; notes the speed of the loader
    alone."""
    device = torch.device(task.device)
    cuda = device.type == "cuda"
    run = bench_config(task.img_size, task.batch_size)
    config = run.train
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    loader, mix, num_classes = _create_data(task, config, options, device)
    net = create_dense(run.model, img_size=task.img_size, num_classes=num_classes).vit.to(device)
    if options.channels_last:
        net.to(memory_format=torch.channels_last)
    fused = {"fused": True} if options.fused and cuda else {}
    optimizer = create_optimizer_v2(
        net, opt="adamw", lr=config.lr, weight_decay=config.weight_decay, **fused
    )
    average = ModelEmaV3(net, decay=config.ema_decay, use_warmup=True)
    compiled = options.torchcompile and cuda
    model: nn.Module = torch.compile(net, backend="inductor") if compiled else net  # type: ignore[assignment]
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.total_epochs,
        warmup_epochs=int(config.warmup_epochs),
        min_lr=config.final_lr,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    loss_fn = SoftTargetCrossEntropy().to(device)
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=cuda)
    stopwatch = Stopwatch(device, task.seconds)
    updates = 0
    with contextlib.suppress(EnoughError):
        for _ in itertools.count():
            model.train()
            losses = AverageMeter()
            for images, targets in loader:
                if not options.prefetcher:
                    images, targets = mix(images.to(device), targets.to(device))
                if options.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                with autocast():
                    loss = loss_fn(model(images), targets)
                loss.backward()
                dispatch_clip_grad(model.parameters(), value=config.clip_grad, mode="norm")
                optimizer.step()
                losses.update(loss.item(), len(images))
                updates += 1
                optimizer.zero_grad()
                average.update(model, step=updates)
                schedule.step_update(num_updates=updates, metric=losses.avg)
            stopwatch.lap(len(loader) * task.batch_size)
    speed = _loader_speed(loader, len(loader) * task.batch_size)
    return stopwatch.measurement(compiled=compiled, notes={"loader_img_s": speed})


def _create_data(
    task: TrainTask, config: TrainConfig, options: TimmOptions, device: torch.device
) -> tuple[Any, Any, int]:
    """timm's loader, its mixing on the device, and the number of classes."""
    add_img_extensions(".webp")
    dataset = create_dataset(
        "", root=task.photos, split="train", is_training=True, batch_size=task.batch_size
    )
    num_classes = len([path for path in (Path(task.photos) / "train").iterdir() if path.is_dir()])
    mixing = {
        "mixup_alpha": config.mixup,
        "cutmix_alpha": config.cutmix,
        "label_smoothing": config.smoothing,
        "num_classes": num_classes,
    }
    loader = create_loader(
        dataset,
        input_size=(3, task.img_size, task.img_size),
        batch_size=task.batch_size,
        is_training=True,
        use_prefetcher=options.prefetcher,
        scale=config.crop_scale,
        ratio=(3 / 4, 4 / 3),
        hflip=_flip(config),
        color_jitter=config.jitter,
        re_prob=0.0,
        interpolation="bilinear",
        num_workers=task.workers,
        collate_fn=FastCollateMixup(**mixing) if options.prefetcher else None,
        pin_memory=device.type == "cuda",
        device=device,
        use_multi_epochs_loader=options.multi_epochs,
    )
    return loader, Mixup(**mixing), num_classes


def _loader_speed(loader: Any, num_images: int) -> float:
    """Images per second of the loader when nothing waits for it, after what it had in stock."""
    for _ in range(LOADER_EPOCHS):
        _drain(loader)
    began = time.perf_counter()
    for _ in range(LOADER_EPOCHS):
        _drain(loader)
    return LOADER_EPOCHS * num_images / (time.perf_counter() - began)


def _drain(loader: Any) -> None:
    batch: tuple[Tensor, Tensor]
    for batch in loader:
        last = batch
    if last[0].device.type == "cuda":
        torch.cuda.synchronize(last[0].device)
