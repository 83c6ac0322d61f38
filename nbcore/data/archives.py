"""CIFAR-10 and MNIST from NumPy archives or torchvision's files, and torchvision's downloads."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from nbcore.data.photos import Arrays
from nbcore.data.source import Source, sha256_of_lines, verified_sha256

# What numpy answers a damaged archive with.
_DAMAGED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def open_cifar10(source_dir: Path) -> Source:
    """CIFAR-10 from `train.npz` and `test.npz` (JPEG streams) or from torchvision's folder."""
    folder = _archive_folder(source_dir, "cifar10")
    if folder is None:
        return _open_torchvision("CIFAR10", source_dir)
    files = {split: folder / f"{split}.npz" for split in ("train", "test")}
    checksum = sha256_of_lines(verified_sha256(file) for file in files.values())
    with _npz(files["train"]) as archive:
        classes = tuple(str(name) for name in _member(archive, files["train"], "classes"))

    def decode(_img_size: int, _workers: int | None) -> dict[str, Arrays]:
        return {split: _decode_jpeg_stream(file, split) for split, file in files.items()}

    return Source(classes=classes, checksum=checksum, decode=decode)


def open_mnist(source_dir: Path) -> Source:
    """MNIST from `train.npz` and `test.npz` (grey images) or from torchvision's folder."""
    folder = _archive_folder(source_dir, "mnist")
    if folder is None:
        return _open_torchvision("MNIST", source_dir)
    files = {split: folder / f"{split}.npz" for split in ("train", "test")}
    checksum = sha256_of_lines(verified_sha256(file) for file in files.values())

    def decode(_img_size: int, _workers: int | None) -> dict[str, Arrays]:
        splits = {}
        for split, file in files.items():
            with _npz(file) as archive:
                images = _member(archive, file, "images")
                splits[split] = _arrays(images, _member(archive, file, "labels"), split, file)
        return splits

    return Source(classes=tuple("0123456789"), checksum=checksum, decode=decode)


def download(torchvision_name: str, root: Path) -> Path:
    """The folder into which torchvision fetched a data set; what is there is not fetched again.

    Raises:
        ValueError: If torchvision cannot fetch it, as without a network.
    """
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    make = getattr(datasets, torchvision_name)
    try:
        if torchvision_name == "Imagenette":
            for split in ("train", "val"):
                make(root, split=split, size="320px", download=True)
        else:
            for train in (True, False):
                make(root, train=train, download=True)
    # Without a network, urllib raises OSError and torchvision RuntimeError.
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"torchvision could not download {torchvision_name} to {root} ({error}); "
            "fetch it elsewhere and give its folder as --source"
        ) from error
    return root


def _open_torchvision(torchvision_name: str, source_dir: Path) -> Source:
    """The arrays of torchvision's CIFAR10 or MNIST, which it has checked."""
    from torchvision import datasets

    make = getattr(datasets, torchvision_name)
    try:
        sets = {"train": make(source_dir, train=True), "test": make(source_dir, train=False)}
    except RuntimeError as error:
        raise ValueError(
            f"no {torchvision_name} in {source_dir}: expected train.npz and test.npz, or the "
            f"folder that torchvision downloads (torchvision says: {error})"
        ) from error
    splits = {
        split: _arrays(np.asarray(data.data), np.asarray(data.targets), split, source_dir)
        for split, data in sets.items()
    }
    digest = hashlib.sha256()
    for arrays in splits.values():
        digest.update(arrays.images.tobytes())
    classes = tuple(name.split(" - ")[0] for name in sets["train"].classes)
    return Source(classes=classes, checksum=digest.hexdigest(), decode=lambda *_: splits)


def _archive_folder(source_dir: Path, name: str) -> Path | None:
    """source_dir or source_dir/name, whichever holds train.npz."""
    for folder in (source_dir, source_dir / name):
        if (folder / "train.npz").is_file():
            return folder
    return None


def _npz(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"{path} is no readable NumPy archive: {error}") from error


def _member(archive: Mapping[str, np.ndarray], path: Path, name: str) -> np.ndarray:
    try:
        return archive[name]
    except (KeyError, *_DAMAGED) as error:
        raise ValueError(f"{path} has no readable array '{name}': {error}") from error


def _decode_jpeg_stream(path: Path, split: str) -> Arrays:
    """The images of an archive of JPEG files lying one after the other."""
    with _npz(path) as archive:
        data, offsets, labels = (_member(archive, path, n) for n in ("data", "offsets", "labels"))
    if (
        len(offsets) != len(labels) + 1
        or offsets[0] != 0
        or (np.diff(offsets) <= 0).any()
        or offsets[-1] != len(data)
    ):
        raise ValueError(
            f"{path}: offsets must be {len(labels) + 1} rising numbers from 0 to the size of data, "
            f"{len(data)}"
        )
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for i in tqdm(range(len(labels)), desc=f"cifar10 {split}", unit="img", disable=None):
        encoded = data[offsets[i] : offsets[i + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
                images[i] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: image {i} cannot be decoded: {error}") from error
    return _arrays(images, labels, split, path)


def _arrays(images: np.ndarray, labels: np.ndarray, split: str, where: Path) -> Arrays:
    """Images [n, H, W] or [n, H, W, 3] with channels in front, named by their position."""
    if images.dtype != np.uint8 or len(images) != len(labels):
        raise ValueError(
            f"{where}: expected as many uint8 images as labels, got {images.dtype} {images.shape} "
            f"and {len(labels)}"
        )
    if not len(labels) or not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(f"{where}: expected labels from 0 to 9, got {np.unique(labels)[:20]}")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Arrays(
        images=np.ascontiguousarray(images),
        targets=labels.astype(np.int64),
        names=tuple(f"{split}/{i:05d}" for i in range(len(labels))),
    )
