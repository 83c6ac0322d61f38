"""The one place where an upload becomes a trusted RGB image."""

from __future__ import annotations

import functools
import io
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pi_heif
from PIL import ExifTags, Image, UnidentifiedImageError

from app.errors import UserError

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000

# EPS hands the file to Ghostscript, a program of its own; no upload may start one.
REFUSED_FORMATS = frozenset({"EPS"})
# Icons hold whole pictures whose size their own header need not tell, and Pillow decodes them while
# it opens the file.
ICON_HEADERS = (b"icns", b"\x00\x00\x01\x00")
# (what stands before width and height, bytes between): PNG, JPEG 2000 in its box, JPEG 2000 bare.
EMBEDDED_HEADERS = (
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", 0),
    (b"ihdr", 0),
    (b"\xff\x4f\xff\x51", 4),
)

ROWS = 64
"""In one strip of a picture as it becomes RGB: a small file may hold 40 megapixels, of which each
copy takes 160 MB."""
DECODING = threading.BoundedSemaphore(2)
"""Photos that are decoded at the same time, for the same reason; the others wait."""

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

UNREADABLE = (
    "This file is not a picture that can be read here; save it as JPEG, PNG or WebP and try again."
)


def load_image(
    source: str | Path | bytes | Image.Image | None,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """An upload as a person sees it: 8-bit RGB, upright, alpha on white, first frame, no metadata.

    The content decides what a file is, not its name. Sizes are checked before anything is decoded.

    Args:
        source: Path or bytes of a file in any format that Pillow reads, or a Pillow image.
        max_bytes: Largest file.
        max_pixels: Largest width times height.

    Raises:
        UserError: If there is no such picture, it is too large, or it cannot be read; nothing else
            is raised.
    """
    with DECODING:
        if isinstance(source, Image.Image):
            rgb, turn = _decode(source, max_pixels)
        else:
            # Nothing here holds the file's own pixels any longer once it is turned.
            rgb, turn = _decode(_open(_read(source, max_bytes), max_pixels), max_pixels)
        return rgb if turn is None else rgb.transpose(turn)


def _read(source: str | Path | bytes | None, max_bytes: int) -> bytes:
    if source is None or not source:
        raise UserError("No photo was given; upload one, paste one or pick an example.")
    if not isinstance(source, str | Path | bytes):
        raise UserError(f"A photo must be a file or a picture, not {type(source).__name__}.")
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > max_bytes:
            raise UserError(
                f"This file has {size / 1e6:.1f} MB; send one of at most {max_bytes / 1e6:g} MB."
            )
        return source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, ValueError):
        raise UserError("The photo's file cannot be read; upload it again.") from None


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if data.startswith(ICON_HEADERS):
        for size in _embedded(data):
            _check_pixels(size, max_pixels)
    _register_heif()
    Image.init()
    formats = [name for name in Image.ID if name not in REFUSED_FORMATS]
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise UserError(UNREADABLE) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(_too_many_pixels("far more", max_pixels)) from None
    except Exception as error:
        raise UserError(_damaged("file")) from error
    return image


@functools.cache
def _register_heif() -> None:
    """Teach Pillow what phones save photos in; its decoder turns them upright itself."""
    pi_heif.register_heif_opener(thumbnails=False)


def _embedded(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of every PNG and JPEG 2000 picture inside an icon file."""
    for header, gap in EMBEDDED_HEADERS:
        start = data.find(header)
        while start >= 0:
            position = start + len(header) + gap
            if position + 8 <= len(data):
                yield struct.unpack_from(">II", data, position)
            start = data.find(header, start + 1)


def _decode(image: Image.Image, max_pixels: int) -> tuple[Image.Image, Image.Transpose | None]:
    """A picture as RGB, and how it is yet to be turned."""
    _check_pixels(image.size, max_pixels)
    try:
        image.load()
        _check_pixels(image.size, max_pixels)
        return _to_rgb(image), _turn(image)
    except UserError:
        raise
    except Exception as error:
        kind = f"{image.format} file" if image.format else "picture"
        raise UserError(_damaged(kind)) from error


def _damaged(kind: str) -> str:
    return (
        f"This {kind} is damaged, cut short or of a kind that cannot be decoded here; "
        "send it again, or save it anew as JPEG or PNG."
    )


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise UserError(
            _too_many_pixels(f"{width} x {height} = {width * height / 1e6:.1f}", max_pixels)
        )


def _too_many_pixels(found: str, max_pixels: int) -> str:
    return (
        f"This photo has {found} megapixels; send one of at most {max_pixels / 1e6:g} megapixels."
    )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A photo with broken metadata is still a photo.
        return None
    return ORIENTATIONS.get(orientation)


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """First row and pixels of each part of a picture, from top to bottom."""
    for top in range(0, image.height, ROWS):
        yield top, image.crop((0, top, image.width, min(top + ROWS, image.height)))


def _to_rgb(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    wide = image.mode == "F" or image.mode.startswith("I")
    ends = _range(image) if wide else (0.0, 255.0)
    for top, strip in strips(image):
        rgb.paste(_to_8_bit(strip, *ends) if wide else _on_white(strip), (0, top))
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """Which grey values of more than 8 bits are black and white.

    16-bit types fill 0 to 65535. Wider types do not say their range: 0 to 1 (fractions only), 0 to
    255 and 0 to 65535 are taken for what they look like, anything else is stretched from its least
    to its greatest value.
    """
    if ";16" in image.mode:
        return 0.0, 65535.0
    ends = [
        (values.min(), values.max()) for values in (_values(strip) for _, strip in strips(image))
    ]
    low, high = float(min(low for low, _ in ends)), float(max(high for _, high in ends))
    if low >= 0 and high <= 1 and image.mode == "F":
        return 0.0, 1.0
    if low >= 0 and high <= 65535:
        return 0.0, 255.0 if high <= 255 else 65535.0
    return low, high


def _to_8_bit(image: Image.Image, low: float, high: float) -> Image.Image:
    grey = _values(image)
    grey -= low
    grey *= 255.0 / max(high - low, 1e-300)
    return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


def _values(image: Image.Image) -> np.ndarray:
    """Grey values as float64 [H, W], those that are no finite numbers as 0."""
    values = np.asarray(image).astype(np.float64)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
