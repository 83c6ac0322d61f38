"""A service that keeps its attributions of example photos: everybody's first view is computed once.

Only examples are remembered, so nothing of a visitor's photo outlives the answer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from PIL import Image

from app import gallery
from app.registry import ModelRegistry
from app.service import AttributionMap, Cells, Service
from app.settings import Settings
from app.task import Task

SIZE = 10
"""Answers kept; one of three variants takes about 4 MB."""


class RememberingService(Service):
    """As `Service`, but the same question about an example is answered from memory."""

    def __init__(self, registry: ModelRegistry, settings: Settings) -> None:
        super().__init__(registry, settings)
        self._kept: OrderedDict[tuple[Any, ...], Cells[AttributionMap]] = OrderedDict()
        self._lock = threading.Lock()

    def attribute(
        self,
        image: Image.Image,
        variants: Sequence[str] | None = None,
        method: str = "integrated_gradients",
        target: str = "base",
        *,
        before_retraining: bool = False,
        task: Task | None = None,
    ) -> Cells[AttributionMap]:
        """As `Service.attribute`, which holds the arguments and errors."""
        asked = self.default_variants() if variants is None else tuple(variants)
        # What is refused since is part of the key, for its cells must go.
        key = (
            gallery.digest(image),
            asked,
            method,
            target,
            before_retraining,
            tuple(self.refused()),
        )
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = super().attribute(
            image, asked, method, target, before_retraining=before_retraining, task=task
        )
        # A failure may pass, so it is not kept.
        if not found.failures and gallery.find(image):
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > SIZE:
                    self._kept.popitem(last=False)
        return found
