"""What one process of the training bench is asked to do, and the watch it does it by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

OURS = "nbcore"
RECIPE = "imagenette-vit-tiny"
"""Whose dense model and augmentation are trained."""
WARM_UP_EPOCHS = 2
"""Compilation, first reads from disk and what loaders have in stock fall into these."""
FEWEST_WINDOWS = 3


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """One contender in one process."""

    contender: str
    """`OURS`, or a name from `TIMM`."""
    device: str
    dataset: str
    """As `load_dataset` takes it."""
    data_dir: str
    """Where our loop reads its prepared photos, or the image folder itself."""
    photos: str
    """Image folder whose `train/<class>/` timm's loader reads."""
    img_size: int
    batch_size: int
    workers: int
    """Processes that decode and augment for timm."""
    seconds: float
    """How long to measure once all is warm."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one process found."""

    windows: tuple[float, ...]
    """Images per second of each epoch after warming up."""
    first_epoch_s: float
    """Duration of the first epoch, compilation included."""
    peak_memory_bytes: int | None
    """Most memory held on the card; None elsewhere."""
    compiled: bool
    notes: Mapping[str, float] = field(default_factory=dict)


class EnoughError(Exception):
    """Ends a training that was run to be timed."""


class Stopwatch:
    """Images per second, epoch by epoch."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device = device
        self.seconds = seconds
        self.laps: list[tuple[int, float]] = []
        self._since = self._now()

    def lap(self, num_images: int) -> None:
        """End an epoch of so many images.

        Raises:
            EnoughError: Once there are enough epochs.
        """
        now = self._now()
        self.laps.append((num_images, now - self._since))
        self._since = now
        measured = self.laps[WARM_UP_EPOCHS:]
        if len(measured) >= FEWEST_WINDOWS and sum(t for _, t in measured) >= self.seconds:
            raise EnoughError

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def measurement(
        self, *, compiled: bool, notes: Mapping[str, float] | None = None
    ) -> Measurement:
        cuda = self.device.type == "cuda"
        return Measurement(
            windows=tuple(count / seconds for count, seconds in self.laps[WARM_UP_EPOCHS:]),
            first_epoch_s=self.laps[0][1],
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device) if cuda else None,
            compiled=compiled,
            notes=notes or {},
        )
