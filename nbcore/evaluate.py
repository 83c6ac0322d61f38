"""How good a model is: yields metrics, so that what is measured can grow without touching who
measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nbcore.data import Split
from nbcore.preprocessing import as_input

Predict = Callable[[Tensor], Tensor]
"""uint8 images [B, 3, S, S] -> logits [B, K]."""


def predict_logits(
    predict: Predict, images: Tensor, *, batch_size: int = 64, title: str | None = None
) -> Tensor:
    """Logits of all images [n, K] on the CPU; a progress bar if `title` is given."""
    batches = tqdm(images.split(batch_size), desc=title, unit="batch", disable=title is None)
    return torch.cat([predict(batch).float().cpu() for batch in batches])


def evaluate(logits: Tensor, targets: Tensor) -> Iterator[tuple[str, Any]]:
    """Metrics of a model on a split.

    Args:
        logits: [n, K].
        targets: [n].

    Yields:
        (name, value): top1 in 0..1, top1_ci95 [low, high] (Wilson), loss in nats, num_images.
    """
    from scipy.stats import binomtest

    right = int((logits.argmax(1) == targets.cpu()).sum())
    interval = binomtest(right, len(targets)).proportion_ci(0.95, method="wilson")
    yield "top1", right / len(targets)
    yield "top1_ci95", [float(interval.low), float(interval.high)]
    yield "loss", F.cross_entropy(logits.double(), targets.cpu()).item()
    yield "num_images", len(targets)


def torch_predict(model: nn.Module, device: torch.device) -> Predict:
    """A predictor that runs a torch model in single precision."""

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        return model(as_input(images.to(device)))

    return predict


def split_accuracy(
    model: nn.Module, split: Split, device: torch.device, *, batch_size: int = 256
) -> float:
    """Share of a split that a model gets right, in evaluation mode; the model's mode is
    restored."""
    training = model.training
    model.eval()
    logits = predict_logits(torch_predict(model, device), split.images, batch_size=batch_size)
    model.train(training)
    return (logits.argmax(1) == split.targets.cpu()).double().mean().item()
