"""Imagenette from its tars or from an image folder."""

from __future__ import annotations

import logging
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from nbcore.data.photos import Arrays, Photo, decode_photos, is_image_name, judge_unreadable
from nbcore.data.source import Source, sha256_of_lines, verified_sha256

logger = logging.getLogger(__name__)

IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Synset -> class name, in the order of the targets."""
_IMAGENETTE_OFFICIAL = {"train": 9469, "val": 3925}
_IMAGENETTE_FOLDERS = ("imagenette", "imagenette2-320", "imagenette2", "imagenette2-160")


def open_imagenette(source_dir: Path) -> Source:
    """Imagenette's tars or image folder `<split>/<synset>/<name>`, in source_dir or one below it.

    Photos of another size than asked for are resized by their shorter side and cropped to the
    centre, train photos too.

    Raises:
        ValueError: If neither is there, a tar is damaged, or a split lacks a class.
    """
    folders = [source_dir, *(source_dir / name for name in _IMAGENETTE_FOLDERS)]
    for folder in folders:
        tars = sorted(folder.glob("*.tar"))
        if tars:
            checksum = sha256_of_lines(f"{tar.name} {verified_sha256(tar)}" for tar in tars)
            members = [member for tar in tars for member in _tar_members(tar)]
            break
        if (folder / "train").is_dir():
            members = _files(folder)
            checksum = sha256_of_lines(f"{m.name} {m.size_bytes}" for m in members)
            break
    else:
        raise ValueError(
            f"no Imagenette in {source_dir}: expected *.tar files or folders train/ and val/ "
            "(a .tgz has to be unpacked first)"
        )
    splits = {split: _imagenette_split(members, split, folder) for split in ("train", "val")}

    def decode(img_size: int, workers: int | None) -> dict[str, Arrays]:
        train, bad_train = decode_photos(
            splits["train"], img_size=img_size, workers=workers, desc="imagenette train"
        )
        test, bad_test = decode_photos(
            splits["val"], img_size=img_size, workers=workers, desc="imagenette val"
        )
        num_photos = len(splits["train"]) + len(splits["val"])
        judge_unreadable(bad_train + bad_test, num_photos, folder)
        return {"train": train, "test": test}

    return Source(
        classes=tuple(IMAGENETTE.values()),
        checksum=checksum,
        decode=decode,
        photos={photo.name: photo for photo in splits["val"]},
    )


def _imagenette_split(members: Sequence[Photo], split: str, folder: Path) -> list[Photo]:
    """The photos of one official split with their targets, by class and name."""
    synsets = list(IMAGENETTE)
    photos = []
    for member in members:
        parts = PurePosixPath(member.name).parts[-3:]
        if len(parts) < 3 or parts[0] != split or not is_image_name(parts[2]):
            continue
        if parts[1] not in IMAGENETTE:
            raise ValueError(
                f"{member.path}: {member.name} is in none of the ten Imagenette classes"
            )
        photos.append(
            Photo(
                name="/".join(parts),
                target=synsets.index(parts[1]),
                path=member.path,
                offset=member.offset,
                size_bytes=member.size_bytes,
            )
        )
    counts = Counter(photo.target for photo in photos)
    missing = [f"{s} ({n})" for i, (s, n) in enumerate(IMAGENETTE.items()) if not counts[i]]
    if missing:
        raise ValueError(
            f"{folder} has no {split} photos of {', '.join(missing)}: is a file missing?"
        )
    if len(photos) != _IMAGENETTE_OFFICIAL[split]:
        logger.warning(
            "%s has %d %s photos, the official data set has %d",
            folder, len(photos), split, _IMAGENETTE_OFFICIAL[split],
        )  # fmt: skip
    return sorted(photos, key=lambda photo: (photo.target, photo.name))


def _tar_members(path: Path) -> list[Photo]:
    """The regular files of an uncompressed tar, without targets."""
    size_bytes = path.stat().st_size
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.offset_data + info.size > size_bytes:
                    raise tarfile.ReadError(f"it ends inside {info.name}")
                if info.isreg():
                    members.append(
                        Photo(
                            name=info.name,
                            target=-1,
                            path=path,
                            offset=info.offset_data,
                            size_bytes=info.size,
                        )
                    )
    except tarfile.TarError as error:
        raise ValueError(f"{path} is damaged or no uncompressed tar: {error}") from error
    return members


def _files(folder: Path) -> list[Photo]:
    """All files below a folder with names relative to it, without targets."""
    return [
        Photo(
            name=path.relative_to(folder).as_posix(),
            target=-1,
            path=path,
            size_bytes=path.stat().st_size,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
