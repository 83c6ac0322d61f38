"""Photos packed small, and only those on which every variant still gives the same answer.

A photo from the pack is opened in the app and asked about again, so packing must not change what
it is shown for. Best is the original file, then a lossless one; what has to be compressed anew is
held against the answers, since flips are where answers are tight: of Imagenette's most telling
photos 12 % change an answer of seven models as JPEG of quality 90, 46 % as WebP of quality 82.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nbcore.answers import PhotoPack
from nbcore.data.photos import Photo, read_bytes
from nbcore.flips.credits import Credit
from nbcore.preprocessing import preprocess, to_rgb

LOSSLESS_UP_TO = 64
"""Pixels: up to here, a lossless file is as small as a lossy one."""
QUALITY = 90
"""JPEG without subsampled colours: 17 kB for a photo of 224 px."""
LARGEST_ORIGINAL_BYTES = 40_000
SPARE = 1.3
"""Candidates for each place, since some change an answer when they are packed."""
MOST_CHANGE = 0.05
"""Of any probability: a photo that changes more is left out."""

Ask = Callable[[Sequence[Image.Image]], np.ndarray]
"""m photos -> probabilities of all variants [V, m, K]."""


def pack_photos(
    candidates: Sequence[int],
    images: Tensor,
    probs: np.ndarray,
    predicted: np.ndarray,
    *,
    ask: Ask,
    originals: Mapping[int, Photo],
    limit: int,
    credit: Credit,
) -> PhotoPack:
    """The first candidates that keep their answers when packed.

    Args:
        candidates: Positions among the images, the most telling first.
        images: uint8 [n, 3, S, S].
        probs: What all variants said of them [V, n, K].
        predicted: Their top classes [V, n].
        ask: Asks all variants.
        originals: Encoded files by position, where there are any.
        limit: Most photos.
        credit: What is said beside them.
    """
    chosen = list(candidates)[: round(limit * SPARE)]
    files = [encode(images[position], originals.get(position)) for position in chosen]
    photos = [_decoded(file) for file in files]
    changes = np.zeros(len(chosen))
    same = np.ones(len(chosen), bool)
    pairs = zip(photos, chosen, strict=True)
    lossy = [i for i, (photo, at) in enumerate(pairs) if not _is_exact(photo, images[at])]
    if lossy:
        again, places = ask([photos[i] for i in lossy]), [chosen[i] for i in lossy]
        changes[lossy] = abs(again - probs[:, places]).max((0, 2))
        same[lossy] = (again.argmax(-1) == predicted[:, places]).all(0)
    kept = np.flatnonzero(same & (changes <= MOST_CHANGE))[:limit].tolist()
    data = [np.frombuffer(files[i], np.uint8) for i in kept]
    return PhotoPack(
        positions=np.array([chosen[i] for i in kept], np.int32),
        data=np.concatenate([np.empty(0, np.uint8), *data]),
        offsets=np.cumsum([0, *(len(file) for file in data)], dtype=np.int64),
        largest_change=float(changes[kept].max(initial=0.0)),
        source=credit.source,
        licence=credit.licence,
    )


def encode(image: Tensor, original: Photo | None = None) -> bytes:
    """A photo as a small file: its original if that holds these very pixels, else WebP or JPEG.

    Args:
        image: uint8 [3, S, S].
        original: Where its original file lies.
    """
    if original is not None:
        file = read_bytes(original)
        if len(file) <= LARGEST_ORIGINAL_BYTES and _is_exact(_decoded(file), image):
            return file
    side, found = image.shape[-1], io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    if side <= LOSSLESS_UP_TO:
        picture.save(found, "WEBP", lossless=True, quality=100, method=6)
    else:
        picture.save(found, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return found.getvalue()


def _decoded(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as image:
        return to_rgb(image)


def _is_exact(photo: Image.Image, image: Tensor) -> bool:
    """Whether a photo, cropped as for a model, is the image uint8 [3, S, S] bit for bit."""
    pixels = np.asarray(preprocess(photo, image.shape[-1])).transpose(2, 0, 1)
    return torch.equal(torch.from_numpy(np.array(pixels)), image)
