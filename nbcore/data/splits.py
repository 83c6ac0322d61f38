"""Decoded arrays -> a Dataset: carve the validation split, limit, fit to size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from nbcore.data.base import Dataset, Split, View
from nbcore.data.photos import Arrays
from nbcore.preprocessing import preprocess


def hold_out(
    names: Sequence[str], targets: np.ndarray, share: float, *, salt: str
) -> tuple[np.ndarray, np.ndarray]:
    """Positions that stay and positions held out, stratified and independent of any run's seed.

    Within a class the images with the smallest hash of salt and name (without extension) are held
    out: round(share · n) of n, at least one if share > 0, and never all. So the choice depends on
    neither the order nor the format of the files, and a larger share only adds to a smaller one.

    Args:
        names: Name of each image.
        targets: Class of each image [n].
        share: Share to hold out, in [0, 1).
        salt: Distinguishes data sets and kinds of splits.

    Returns:
        kept, held: Disjoint, ascending int64 positions that together are all of 0..n-1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must lie in [0, 1), got {share}")
    ranks = [hashlib.sha256(f"{salt}/{_stem(name)}".encode()).digest() for name in names]
    held = np.zeros(len(names), bool)
    for target in np.unique(targets):
        members = sorted(
            np.flatnonzero(targets == target).tolist(), key=lambda i: (ranks[i], names[i])
        )
        count = min(max(round(share * len(members)), int(share > 0)), len(members) - 1)
        held[members[:count]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def take_turns(targets: np.ndarray, limit: int | None) -> np.ndarray:
    """Ascending positions of at most `limit` images: each class's first, then its second, ..."""
    if limit is None or limit >= len(targets):
        return np.arange(len(targets))
    turn = np.empty(len(targets), np.int64)
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        turn[members] = np.arange(len(members))
    return np.sort(np.lexsort((targets, turn))[:limit])


def assemble(
    name: str, classes: tuple[str, ...], train: Arrays, test: Arrays, view: View
) -> Dataset:
    """The data set that `view` asks for, its validation split carved from `train`."""
    if view.img_size is None:
        raise ValueError(f"{name}: img_size is not chosen")
    kept, held = hold_out(
        train.names, train.targets, view.validation_share, salt=f"{name}/validation"
    )
    return Dataset(
        name=name,
        classes=classes,
        train=make_split(train, kept, view, crop_pct=1.0),
        validation=make_split(train, held, view, crop_pct=view.crop_pct),
        test=make_split(test, np.arange(len(test.targets)), view, crop_pct=view.crop_pct),
        img_size=view.img_size,
    )


def make_split(arrays: Arrays, positions: np.ndarray, view: View, *, crop_pct: float) -> Split:
    """The chosen images as tensors of the size in `view`."""
    positions = positions[take_turns(arrays.targets[positions], view.limit)]
    # Selecting copies; the whole array is left mapped from disk.
    whole = len(positions) == len(arrays.targets)
    images = arrays.images if whole else arrays.images[positions]
    return Split(
        images=torch.from_numpy(_fit(images, view.img_size or images.shape[-1], crop_pct)),
        targets=torch.from_numpy(arrays.targets[positions]),
        names=tuple(arrays.names[i] for i in positions),
    )


def spread(split: Split, limit: int) -> Split:
    """At most `limit` images, evenly spaced over a split."""
    count = min(limit, len(split.names))
    picks = torch.linspace(0, len(split.names) - 1, count).round().long()
    return Split(
        images=split.images[picks],
        targets=split.targets[picks],
        names=tuple(split.names[i] for i in picks.tolist()),
    )


def _fit(images: np.ndarray, img_size: int, crop_pct: float) -> np.ndarray:
    """Images [n, 1 or 3, H, W] as [n, 3, img_size, img_size]; the same array if nothing changes."""
    if images.shape[1] == 1:
        images = images.repeat(3, axis=1)
    if images.shape[2:] == (img_size, img_size) and crop_pct == 1:
        return images
    fitted = np.empty((len(images), 3, img_size, img_size), np.uint8)

    def fit(i: int) -> None:
        image = Image.fromarray(np.ascontiguousarray(images[i].transpose(1, 2, 0)))
        fitted[i] = np.asarray(preprocess(image, img_size, crop_pct)).transpose(2, 0, 1)

    # Pillow resizes without holding the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        list(pool.map(fit, range(len(images))))
    return fitted


def _stem(name: str) -> str:
    """The name without the extension of its last part."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.rpartition('.')[0] or file}"
