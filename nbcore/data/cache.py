"""Decoded data sets on disk: plain .npy arrays, mapped into memory when read, complete or absent.

A folder DATA/NAME/SIZE holds `train-images.npy`, `train-targets.npy`, `train-names.json`, the same
for `test`, and `meta.json`. It is written beside its place and renamed, so a folder with that name
is a finished one. What an interrupted run leaves behind ends in `.partial` and may be deleted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nbcore.data.photos import Arrays

SPLITS = ("train", "test")
_FORMAT = 1


def write_cache(
    folder: Path, splits: Mapping[str, Arrays], *, classes: tuple[str, ...], source: str
) -> None:
    """Writes decoded splits, replacing the folder at once if it exists.

    Args:
        folder: DATA/NAME/SIZE.
        splits: "train" and "test".
        classes: Human class names, by target.
        source: Checksum of what was decoded.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(
        tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent)
    )
    try:
        new = partial / "new"
        new.mkdir()
        for split in SPLITS:
            arrays = splits[split]
            np.save(new / f"{split}-images.npy", arrays.images)
            np.save(new / f"{split}-targets.npy", arrays.targets)
            (new / f"{split}-names.json").write_text(json.dumps(arrays.names), encoding="utf-8")
        meta = {
            "format": _FORMAT,
            "source": source,
            "classes": classes,
            "num_images": {split: len(splits[split].targets) for split in SPLITS},
            "num_resized": {split: splits[split].num_resized for split in SPLITS},
            "image_shape": {split: splits[split].images.shape[1:] for split in SPLITS},
        }
        (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(partial / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_cache(folder: Path) -> tuple[dict[str, Arrays], tuple[str, ...]]:
    """The splits, their images mapped from disk (copy on write), and the class names.

    Raises:
        ValueError: If a file is missing, cut short or disagrees with meta.json.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["format"] != _FORMAT:
            raise ValueError(f"its format is {meta['format']}, this version reads {_FORMAT}")
        classes = tuple(meta["classes"])
        return {split: _read_split(folder, split, meta) for split in SPLITS}, classes
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"the prepared data in {folder} cannot be used ({error}); delete that folder and "
            "prepare it again"
        ) from error


def is_current(folder: Path, source: str) -> bool:
    """True if the folder holds a readable cache decoded from that very source."""
    try:
        read_cache(folder)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(meta.get("source") == source)


def cached_sizes(folder: Path) -> list[int]:
    """The image sizes prepared under DATA/NAME, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _read_split(folder: Path, split: str, meta: Mapping[str, Any]) -> Arrays:
    # Copy on write, as torch warns about tensors over read-only memory.
    images = np.load(folder / f"{split}-images.npy", mmap_mode="c")
    targets = np.load(folder / f"{split}-targets.npy")
    names = tuple(json.loads((folder / f"{split}-names.json").read_text(encoding="utf-8")))
    expected = (meta["num_images"][split], *meta["image_shape"][split])
    if images.shape != expected or images.dtype != np.uint8:
        raise ValueError(
            f"{split}-images.npy is {images.dtype} {images.shape}, meta.json says uint8 {expected}"
        )
    if len(targets) != len(images) or len(names) != len(images):
        raise ValueError(
            f"{split} has {len(images)} images, {len(targets)} targets and {len(names)} names"
        )
    if len(targets) and not 0 <= targets.min() <= targets.max() < len(meta["classes"]):
        raise ValueError(
            f"{split} targets reach {targets.max()}, there are {len(meta['classes'])} classes"
        )
    return Arrays(
        images=images, targets=targets, names=names, num_resized=meta["num_resized"][split]
    )
