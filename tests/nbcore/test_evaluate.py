"""Metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nbcore.data import Split
from nbcore.evaluate import evaluate, predict_logits, split_accuracy, torch_predict
from tests.nbcore.tiny import tiny


def test_metrics_of_four_images_by_hand() -> None:
    logits = torch.tensor([[2.0, 0], [0, 0.5], [3, 1], [0, 1]])
    metrics = dict(evaluate(logits, torch.tensor([0, 1, 1, 1])))
    assert metrics["top1"] == 0.75
    assert metrics["num_images"] == 4
    # -log softmax of the right class: log(1 + e^-d), d = 2, 0.5, -2, 1.
    losses = [math.log1p(math.exp(-d)) for d in (2, 0.5, -2, 1)]
    assert metrics["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    # Wilson: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964, n = 4, p = 3/4.
    z, n, p = 1.959964, 4, 0.75
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    wanted = [(p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert metrics["top1_ci95"] == pytest.approx(wanted, rel=1e-5)


def test_the_loss_of_a_sure_mistake_is_finite() -> None:
    metrics = dict(evaluate(torch.tensor([[200.0, 0]]), torch.tensor([1])))
    assert metrics["loss"] == pytest.approx(200)


def test_batches_give_what_one_batch_gives() -> None:
    images = torch.arange(5 * 3 * 4).reshape(5, 3, 2, 2).to(torch.uint8)
    wanted = images.flatten(1).float() @ torch.ones(12, 2)
    found = predict_logits(
        lambda batch: batch.flatten(1).float() @ torch.ones(12, 2), images, batch_size=2
    )
    assert torch.equal(found, wanted)


def test_accuracy_is_taken_in_evaluation_mode_and_gives_the_mode_back() -> None:
    model = tiny(proj_drop_rate=0.9).float()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
    predict = torch_predict(model, torch.device("cpu"))
    best = predict_logits(predict, images).argmax(1)
    # Nine of twelve targets are what the model says.
    targets = torch.where(torch.arange(12) < 9, best, (best + 1) % 5)
    split = Split(images=images, targets=targets, names=tuple("abcdefghijkl"))
    model.train()
    assert split_accuracy(model, split, torch.device("cpu"), batch_size=5) == 0.75
    assert model.training
    assert model.vit.training
    model.eval()
    split_accuracy(model, split, torch.device("cpu"))
    assert not model.training
