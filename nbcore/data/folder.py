"""Any image folder: DIR/{train,val,test}/<class>/..., or just DIR/<class>/..."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nbcore.data.base import DATASETS, Dataset, Split, View
from nbcore.data.photos import Photo, decode_photos, is_image_name, judge_unreadable
from nbcore.data.splits import hold_out, take_turns

logger = logging.getLogger(__name__)

_IMG_SIZE = 224
_TEST_SHARE = 0.2


@DATASETS.register("folder")
def load_folder(data_dir: Path | None, view: View) -> Dataset:
    """The photos of an image folder; classes are the folder names in alphabetical order.

    With `train`, `val` and `test`, these are the three splits (validation_share then goes unused,
    which is logged). With one of `val` and `test`, that one is for reporting and the validation
    split is carved from `train`. With neither, or with class folders only, a fifth of each class is
    held out for reporting first.

    Raises:
        ValueError: If there is no such folder, a class is empty or unknown to `train`, or over 1 %
            of the photos cannot be read.
    """
    if data_dir is None or not data_dir.is_dir():
        raise ValueError(
            f"folder needs an image folder, got {data_dir}; give one with train/<class>/*.jpg "
            "and test/<class>/*.jpg, or <class>/*.jpg, as --data DIR"
        )
    classes, listed = _list_splits(data_dir, view.validation_share)
    img_size = view.img_size or _IMG_SIZE
    splits: dict[str, Split] = {}
    unreadable: list[str] = []
    num_photos = 0
    for split, photos in listed.items():
        chosen = [photos[i] for i in take_turns(_targets(photos), view.limit)]
        arrays, errors = decode_photos(
            chosen,
            img_size=img_size,
            crop_pct=1.0 if split == "train" else view.crop_pct,
            workers=view.workers,
            desc=f"folder {split}",
        )
        num_photos += len(chosen)
        unreadable += errors
        splits[split] = Split(
            images=torch.from_numpy(arrays.images),
            targets=torch.from_numpy(arrays.targets),
            names=arrays.names,
        )
    judge_unreadable(unreadable, num_photos, data_dir)
    return Dataset(name="folder", classes=classes, img_size=img_size, **splits)


def _list_splits(
    data_dir: Path, validation_share: float
) -> tuple[tuple[str, ...], dict[str, list[Photo]]]:
    """Class names, and the photos of "train", "validation" and "test"."""
    given = [split for split in ("train", "val", "test") if (data_dir / split).is_dir()]
    if given and "train" not in given:
        raise ValueError(f"{data_dir} has {' and '.join(given)} but no train folder")
    train_dir = data_dir / "train" if given else data_dir
    classes = tuple(_subfolders(train_dir))
    if len(classes) < 2:
        raise ValueError(
            f"{train_dir} needs a folder of photos for each of at least 2 classes, "
            f"found {len(classes)}"
        )
    train = _list_photos(train_dir, classes, data_dir)
    empty = [name for i, name in enumerate(classes) if i not in Counter(p.target for p in train)]
    if empty:
        raise ValueError(f"no photos in {train_dir} for {', '.join(empty)}; remove these folders")
    reporting = next((split for split in ("test", "val") if split in given), None)
    if reporting:
        test = _list_photos(data_dir / reporting, classes, data_dir)
    else:
        train, test = _carve(train, _TEST_SHARE, "folder/test")
    if not test:
        raise ValueError(
            f"no photos for reporting in {data_dir}; add some or remove the empty folder"
        )
    if len(given) == 3:
        logger.info(
            "validation photos are those in %s, validation_share is ignored", data_dir / "val"
        )
        validation = _list_photos(data_dir / "val", classes, data_dir)
    else:
        train, validation = _carve(train, validation_share, "folder/validation")
    return classes, {"train": train, "validation": validation, "test": test}


def _list_photos(split_dir: Path, classes: Sequence[str], data_dir: Path) -> list[Photo]:
    """All image files below the class folders of one split, by class and name."""
    unknown = sorted(set(_subfolders(split_dir)) - set(classes))
    if unknown:
        raise ValueError(
            f"{split_dir} has classes that train lacks: {', '.join(unknown)}; "
            f"known are {', '.join(classes)}"
        )
    return [
        Photo(name=path.relative_to(data_dir).as_posix(), target=target, path=path)
        for target, name in enumerate(classes)
        for path in sorted((split_dir / name).rglob("*"))
        if path.is_file() and is_image_name(path.name)
    ]


def _subfolders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _carve(photos: Sequence[Photo], share: float, salt: str) -> tuple[list[Photo], list[Photo]]:
    """The photos that stay and those held out."""
    kept, held = hold_out([photo.name for photo in photos], _targets(photos), share, salt=salt)
    return [photos[i] for i in kept], [photos[i] for i in held]


def _targets(photos: Sequence[Photo]) -> np.ndarray:
    return np.array([photo.target for photo in photos], np.int64)
