"""A convolutional teacher for a dense model that starts from random weights.

A Vision Transformer has to learn from few photos what a convolution knows by construction; a
convolutional network trained on the same photos hands it over through its answers to the same
augmented pictures. The teacher is a means: it is trained in the run, kept beside its resumable
state, and neither shipped nor measured.

Source:
    Touvron et al., "Training data-efficient image transformers & distillation through attention",
    arXiv:2012.12877 (a convolutional teacher); Beyer et al., "Knowledge distillation: A good
    teacher is patient and consistent", arXiv:2106.05237 (both see the very same picture). Differs
    in: soft targets without a distillation token.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from tqdm import tqdm

from nbcore.augment import Draws, PartDraws, augment, mix
from nbcore.config import TeacherConfig
from nbcore.data import Dataset
from nbcore.distributed import ALONE, Processes
from nbcore.evaluate import split_accuracy
from nbcore.graphed import GraphedTraining
from nbcore.state import SEED_STRIDE, WeightAverage
from nbcore.train import learning_rate, soft_targets, steps_per_epoch

logger = logging.getLogger(__name__)


class TeacherNet(nn.Module):
    """A timm network that takes images [B, 3, S, S] in [0, 1] and gives logits [B, K]."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, kwargs: dict[str, Any], num_classes: int, max_side: int) -> None:
        """Build it at random.

        Args:
            name: A timm network.
            kwargs: Overrides of timm's arguments.
            num_classes: K.
            max_side: Larger images are shrunk to this side in pixels, the one it was trained at:
                it knows objects of that size, and answers faster.
        """
        super().__init__()
        self.max_side = max_side
        self.net = timm.create_model(name, num_classes=num_classes, **kwargs)
        settings = self.net.pretrained_cfg
        self.register_buffer("mean", torch.tensor(settings["mean"]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings["std"]).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] > self.max_side:
            images = F.interpolate(images, size=self.max_side, mode="bilinear", antialias=True)
        return self.net((images - self.mean) / self.std)

    def folded(self) -> TeacherNet:
        """A frozen copy in evaluation mode whose BatchNorms are part of their convolutions."""
        twin = copy.deepcopy(self).eval()
        twin.net = fuse(twin.net)
        return twin.requires_grad_(False)


def train_teacher(
    config: TeacherConfig,
    data: Dataset,
    *,
    seed: int,
    device: torch.device,
    state_path: Path | None = None,
    title: str = "teacher",
    processes: Processes = ALONE,
) -> TeacherNet:
    """Train the teacher, or read it where it was trained before.

    Args:
        config: Network and training.
        data: Uint8 images; moved to `device` once.
        seed: Of initial weights, data order and augmentation.
        device: Where to train.
        state_path: Where the resumable state lives, and afterwards the teacher; None keeps none.
        title: Shown beside the progress bar.
        processes: Those that train it together, each calling this with the same arguments.

    Returns:
        The averaged network, frozen, in evaluation mode, BatchNorm folded.
    """
    train = config.train
    images, targets = data.train.images.to(device), data.train.targets.to(device)
    batch_size = min(train.batch_size, len(images))
    per_epoch = steps_per_epoch(len(images), batch_size)
    total = per_epoch * train.total_epochs
    torch.manual_seed(seed)
    model = TeacherNet(
        config.name, dict(config.kwargs), len(data.classes), max(side for side, _ in train.epochs)
    ).to(device)
    model.to(memory_format=torch.channels_last).train()
    groups = param_groups_weight_decay(model, train.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=train.lr, fused=device.type == "cuda")
    ema = WeightAverage(model, decay=train.ema_decay, use_warmup=True)
    generator = torch.Generator(device).manual_seed(seed)
    mix_generator = torch.Generator().manual_seed(seed)
    rows = processes.share(batch_size, device)
    draws: Draws = generator
    if rows is not None:
        draws = PartDraws(generator=generator, batch_size=batch_size, rows=rows)
        # Each process drops other features and paths.
        torch.manual_seed(seed + SEED_STRIDE * processes.rank)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    done = 0
    if state_path is not None and processes.of_first(state_path.exists):
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"].cpu())
        mix_generator.set_state(state["mix_generator"].cpu())
        done = state["epoch"]
    forward: Callable[[Tensor], Tensor] = model
    if device.type == "cuda":
        forward = GraphedTraining(model, model)
    sides = [side for side, epochs in train.epochs for _ in range(epochs)]
    hide = not processes.is_first
    with tqdm(total=len(sides), initial=done, desc=title, unit="epoch", disable=hide) as bar:
        for epoch in range(done, len(sides)):
            order = torch.randperm(len(images), generator=generator, device=device)
            for i, picks in enumerate(order[: per_epoch * batch_size].split(batch_size)):
                step = epoch * per_epoch + i
                if rows is not None:
                    picks = picks[rows]
                x = augment(images[picks], sides[epoch], train, draws)
                soft = soft_targets(targets[picks], len(data.classes), train)
                x, soft = mix(x, soft, train, mix_generator)
                x = x.contiguous(memory_format=torch.channels_last)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, total, per_epoch, train)
                optimizer.zero_grad(set_to_none=True)
                logits = forward(x)
                F.cross_entropy(logits.float(), soft).backward()
                processes.average_gradients_(model)
                nn.utils.clip_grad_norm_(model.parameters(), train.clip_grad)
                optimizer.step()
                ema.update(model, step=step + 1)
            bar.update()
            last = epoch + 1 == len(sides)
            if last or (epoch + 1) % train.eval_every == 0:
                top1 = split_accuracy(ema.module, data.validation, device)
                bar.set_postfix(top1=f"{top1:.3f}")
                logger.info("%s: epoch %d, validation top-1 %.4f", title, epoch + 1, top1)
            save = last or (epoch + 1) % train.save_every == 0
            if state_path is not None and save and processes.is_first:
                _save(state_path, model, ema, optimizer, generator, mix_generator, epoch + 1)
    teacher = ema.module.folded()
    if device.type == "cuda":
        # Its biases and activations are most of its time unless they are fused.
        teacher.net = torch.compile(
            teacher.net.to(memory_format=torch.channels_last), dynamic=False
        )
    return teacher


def _save(
    path: Path,
    model: TeacherNet,
    ema: WeightAverage,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    mix_generator: torch.Generator,
    epoch: int,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "ema": ema.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "mix_generator": mix_generator.get_state(),
            "epoch": epoch,
        },
        temporary,
    )
    temporary.replace(path)
