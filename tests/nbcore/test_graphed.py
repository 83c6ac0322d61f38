"""Without a GPU there is no graph to capture: what remains is that the steps are right."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from nbcore.graphed import GraphedTraining


def test_where_no_graph_can_be_captured_the_pass_runs_as_it_is_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    calls: list[torch.Size] = []

    def function(images: torch.Tensor) -> torch.Tensor:
        calls.append(images.shape)
        return model(images)

    forward = GraphedTraining(model, function)
    images = torch.rand(4, 3, 2, 2)
    with caplog.at_level(logging.WARNING):
        forward(images).float().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
    torch.testing.assert_close(forward(images), expected)
    # The sum's gradient of weight [k, i] is the sum of images[:, i], in bfloat16.
    torch.testing.assert_close(
        model[1].weight.grad, images.flatten(1).sum(0).expand(5, 12), rtol=2e-2, atol=1e-2
    )
    assert "no CUDA graph" in caplog.text
    assert len(calls) == 2
