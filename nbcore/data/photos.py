"""Photos lying in files or archives -> one uint8 array, decoded by several processes.

Imports no torch: where processes are spawned rather than forked, each worker imports this module.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from nbcore.preprocessing import preprocess, to_rgb

logger = logging.getLogger(__name__)

_CHUNK = 32
_NAMED = 10
_MAX_UNREADABLE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Photo:
    """Where the encoded bytes of one labelled photo lie."""

    name: str
    """Stable name inside the data set, such as "val/n01440764/x.JPEG"."""
    target: int
    path: Path
    """The photo's file, or the archive that holds its bytes."""
    offset: int = 0
    """First byte in `path`."""
    size_bytes: int = -1
    """Number of bytes; -1 means to the end of the file."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """One decoded split."""

    images: np.ndarray
    """uint8 [n, C, H, W], C = 3 (RGB) or 1 (grey)."""
    targets: np.ndarray
    """int64 [n]."""
    names: tuple[str, ...]
    num_resized: int = 0
    """How many photos had another size than the stored one and were resized and cropped."""


def decode_photos(
    photos: Sequence[Photo],
    *,
    img_size: int,
    crop_pct: float = 1.0,
    workers: int | None = None,
    desc: str = "decoding",
) -> tuple[Arrays, list[str]]:
    """The photos that can be read, in their order, and a sentence for each of the others.

    Args:
        photos: What to read.
        img_size: Side of the decoded images in pixels.
        crop_pct: As in `preprocess`.
        workers: Processes; None means one per core, at most 16.
        desc: Label of the progress bar.

    Returns:
        Images [m, 3, img_size, img_size] with m <= len(photos), and "NAME: reason" for each
        unreadable photo.
    """
    chunks = [photos[start : start + _CHUNK] for start in range(0, len(photos), _CHUNK)]
    workers = max(1, min(workers or min(_num_cores(), 16), len(chunks)))
    images = np.empty((len(photos), 3, img_size, img_size), np.uint8)
    readable: list[Photo] = []
    unreadable: list[str] = []
    num_resized = 0
    with tqdm(total=len(photos), desc=desc, unit="img", disable=None) as progress:
        for chunk, done in zip(
            chunks, _decode_chunks(chunks, img_size, crop_pct, workers), strict=True
        ):
            images[len(readable) : len(readable) + len(done.images)] = done.images
            readable += [photo for i, photo in enumerate(chunk) if i not in done.errors]
            unreadable += [f"{chunk[i].name}: {error}" for i, error in done.errors.items()]
            num_resized += done.num_resized
            progress.update(len(chunk))
    arrays = Arrays(
        images=images[: len(readable)],
        targets=np.array([photo.target for photo in readable], np.int64),
        names=tuple(photo.name for photo in readable),
        num_resized=num_resized,
    )
    return arrays, unreadable


def judge_unreadable(unreadable: Sequence[str], num_photos: int, where: Path) -> None:
    """Logs a warning that names the photos left out.

    Raises:
        ValueError: If more than 1 % of the photos are unreadable: then something is wrong with the
            whole set.
    """
    if not unreadable:
        return
    shown = "; ".join(unreadable[:_NAMED])
    if len(unreadable) > _NAMED:
        shown += f"; and {len(unreadable) - _NAMED} more"
    message = f"{len(unreadable)} of {num_photos} photos in {where} cannot be read: {shown}"
    if len(unreadable) > _MAX_UNREADABLE_SHARE * num_photos:
        raise ValueError(f"{message}. At most 1 % may be left out; repair or remove these files")
    logger.warning("%s. They are left out", message)


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """What a worker sends back: readable images, and errors by position in the chunk."""

    images: np.ndarray
    errors: dict[int, str]
    num_resized: int


def _decode_chunks(
    chunks: Sequence[Sequence[Photo]], img_size: int, crop_pct: float, workers: int
) -> Iterator[_Decoded]:
    """The chunks decoded, in order."""
    sizes, crops = [img_size] * len(chunks), [crop_pct] * len(chunks)
    if workers == 1:
        yield from map(_decode_chunk, chunks, sizes, crops)
        return
    context = multiprocessing.get_context()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_decode_chunk, chunks, sizes, crops)


def _decode_chunk(photos: Sequence[Photo], img_size: int, crop_pct: float) -> _Decoded:
    images: list[np.ndarray] = []
    errors: dict[int, str] = {}
    num_resized = 0
    for i, photo in enumerate(photos):
        try:
            image = read_photo(photo)
            images.append(np.asarray(preprocess(image, img_size, crop_pct)).transpose(2, 0, 1))
        # Pillow's decoders answer damaged files with any of these.
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            errors[i] = " ".join(str(error).split()) or type(error).__name__
        else:
            num_resized += image.size != (img_size, img_size)
    stack = np.stack(images) if images else np.empty((0, 3, img_size, img_size), np.uint8)
    return _Decoded(images=stack, errors=errors, num_resized=num_resized)


def read_photo(photo: Photo) -> Image.Image:
    """The decoded RGB photo at its own size, turned as its EXIF orientation says.

    Raises:
        OSError: If the bytes are missing or no picture (Pillow raises a few other types for some
            damage).
    """
    with Image.open(io.BytesIO(read_bytes(photo))) as image:
        return to_rgb(image)


def read_bytes(photo: Photo) -> bytes:
    """The encoded photo."""
    with photo.path.open("rb") as file:
        file.seek(photo.offset)
        return file.read(photo.size_bytes)


def is_image_name(name: str) -> bool:
    """True if Pillow knows the extension and the file is not hidden (macOS archives hold such)."""
    path = PurePosixPath(name)
    return not path.name.startswith(".") and path.suffix.lower() in Image.registered_extensions()


def _num_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
