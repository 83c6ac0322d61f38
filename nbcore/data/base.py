"""What a data set is, the table of them, and the one way to load one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nbcore.registry import Registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled images."""

    images: Tensor
    """uint8 [n, 3, H, W], RGB, on the CPU."""
    targets: Tensor
    """int64 [n], indices into the data set's classes."""
    names: tuple[str, ...]
    """A stable name per image, such as "val/n01440764/x.JPEG" or "test/00012"."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set in memory."""

    name: str
    classes: tuple[str, ...]
    """Human class names, by target."""
    train: Split
    """Training images without the validation split."""
    validation: Split
    """Carved from the training set, the same in every run: for choices."""
    test: Split
    """For reporting only."""
    img_size: int
    """Side of all images in pixels."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What of a data set is wanted, and at what size."""

    img_size: int | None = None
    """Side of the images; None means the data set's own."""
    crop_pct: float = 1.0
    """For validation and test images, as in `preprocess`; training images keep the widest, 1."""
    validation_share: float = 0.05
    """Share of each class of the training set that is held out, in [0, 0.5]."""
    limit: int | None = None
    """Most images per split, classes taking turns; None means all."""
    workers: int | None = None
    """Decoding processes; None means one per core, at most 16."""

    def __post_init__(self) -> None:
        if self.img_size is not None and self.img_size < 1:
            raise ValueError(f"img_size must be at least 1, got {self.img_size}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct must lie in (0, 1], got {self.crop_pct}")
        if not 0 <= self.validation_share <= 0.5:
            raise ValueError(f"validation_share must lie in [0, 0.5], got {self.validation_share}")
        for field in ("limit", "workers"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} must be at least 1, got {value}")


# (data_dir: Path | None, view: View, **options) -> Dataset
Loader = Callable[..., Dataset]

DATASETS: Registry[Loader] = Registry("dataset")


def load_dataset(
    name: str,
    data_dir: Path | None,
    *,
    img_size: int | None = None,
    crop_pct: float = 1.0,
    validation_share: float = 0.05,
    limit: int | None = None,
    workers: int | None = None,
    **options: Any,
) -> Dataset:
    """A data set with its fixed validation split.

    Args:
        name: A name from `DATASETS`.
        data_dir: Where `prepare` wrote; for `folder` the image folder itself; ignored by `shapes`.
        img_size: Side of the images; None means the data set's own.
        crop_pct: How validation and test images are cropped, as in `preprocess`. Training images
            keep the widest centre crop, as the trainer crops them at random.
        validation_share: Share of each class of the training set held out for choices, in [0, 0.5].
        limit: Most images per split, classes taking turns; None means all.
        workers: Decoding processes; None means one per core, at most 16.
        **options: What only this data set takes: `n_train`, `n_test` and `seed` of `shapes`.

    Raises:
        ValueError: If the name is unknown, an argument is out of range, or the data are missing or
            damaged; the message says which command prepares them.
    """
    loader = DATASETS[name]
    view = View(
        img_size=img_size,
        crop_pct=crop_pct,
        validation_share=validation_share,
        limit=limit,
        workers=workers,
    )
    dataset = loader(data_dir, view, **options)
    logger.info(
        "%s: %d training, %d validation and %d test images of %d px",
        name, len(dataset.train.names), len(dataset.validation.names), len(dataset.test.names),
        dataset.img_size,
    )  # fmt: skip
    return dataset
