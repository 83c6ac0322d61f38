"""Forward and backward passes as CUDA graphs: the device gets them in one go.

A small model's step is bound by the thousands of kernels that a processor has to launch one by one;
a graph launches them all at once. What is computed stays the same. A graph belongs to one shape of
its input; the stages of a training have one each, so only the last one is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP_RUNS = 3
"""Runs before a graph is captured, in which code is compiled and convolutions are chosen."""

logger = logging.getLogger(__name__)


class _Pass(nn.Module):
    """A function of images with the parameters that it reads, for one graph."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        # Casts cached outside the graph would be stale in its replays.
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            return self.function(images)


class GraphedTraining:
    """A model's half-precision forward and backward pass; the model's mode and parameters must not
    be exchanged in between, their values may.

    Before a graph is captured the pass is run a few times on the batch at hand: running statistics
    of BatchNorm see that batch more often than others.
    """

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        """Capture nothing yet.

        Args:
            model: Holds the parameters that get gradients.
            function: Images [B, 3, S, S] -> outputs, by that model.
        """
        self._model = model
        self._function = function
        self._shape: torch.Size | None = None
        self._run: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Outputs with gradients; overwritten by the next call."""
        if images.shape != self._shape:
            self._run = None  # Its memory first.
            self._run = self._captured(images)
            self._shape = images.shape
        assert self._run is not None
        return self._run(images)

    def _captured(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        plain = _Pass(self._model, self._function)
        try:
            sample = torch.empty_like(images).copy_(images)
            # The caller's own autocast, which may cache casts, ends here.
            with torch.autocast(images.device.type, enabled=False):
                graphed: Any = torch.cuda.make_graphed_callables(
                    _Pass(self._model, self._function),
                    (sample,),
                    num_warmup_iters=WARM_UP_RUNS,
                    allow_unused_input=True,
                )
                return graphed
        except (RuntimeError, AssertionError) as error:
            logger.warning("no CUDA graph, steps are slower: %s", " ".join(str(error).split()))
            return plain


class GraphedAnswers:
    """A frozen network's half-precision answers."""

    def __init__(self, network: nn.Module) -> None:
        """Capture nothing yet.

        Args:
            network: In evaluation mode, without gradients; images [B, 3, S, S] -> logits [B, K].
        """
        self._network = network
        self._shape: torch.Size | None = None
        self._graph: Any = None
        self._input = self._output = torch.empty(0)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Answers; overwritten by the next call."""
        if images.shape != self._shape:
            self._capture(images)
            self._shape = images.shape
        self._input.copy_(images)
        self._graph.replay()
        return self._output

    def _capture(self, images: Tensor) -> None:
        self._graph = None  # Its memory first.
        self._input = torch.empty_like(images).copy_(images)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._answers()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._answers()
        self._graph = graph

    def _answers(self) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return self._network(self._input)
