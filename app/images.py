"""The one place where an upload becomes a trusted RGB image."""

from __future__ import annotations

import functools
import io
import struct
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
    if isinstance(source, Image.Image):
        return _decode(source, max_pixels)
    image = _open(_read(source, max_bytes), max_pixels)
    with image:
        return _decode(image, max_pixels)


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
        _check_pixels(_largest_embedded(data), max_pixels)
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


def _largest_embedded(data: bytes) -> tuple[int, int]:
    """Width and height of the largest PNG or JPEG 2000 picture inside an icon file, or (0, 0)."""
    sizes = [(0, 0)]
    for header, gap in EMBEDDED_HEADERS:
        start = data.find(header)
        while start >= 0:
            position = start + len(header) + gap
            if position + 8 <= len(data):
                sizes.append(struct.unpack_from(">II", data, position))
            start = data.find(header, start + 1)
    return max(sizes, key=lambda size: size[0] * size[1])


def _decode(image: Image.Image, max_pixels: int) -> Image.Image:
    _check_pixels(image.size, max_pixels)
    try:
        image.load()
        _check_pixels(image.size, max_pixels)
        upright = _upright(image)
        rgb = _to_rgb(upright)
        return Image.frombytes("RGB", rgb.size, rgb.tobytes())
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # A photo with broken metadata is still a photo.
        return image
    turn = ORIENTATIONS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 [H, W].

    16-bit types fill 0 to 65535. Wider types do not say their range: 0 to 1 (fractions only), 0 to
    255 and 0 to 65535 are taken for what they look like, anything else is stretched from its least
    to its greatest value.
    """
    grey = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.itemsize == 2:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1 and values.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 255.0 if high <= 255 else 65535.0
    return np.rint((grey - low) * (255.0 / max(high - low, 1e-300))).astype(np.uint8)
