"""A picture as a model sees it: RGB, shorter side resized, centre crop, values in [0, 1].

Training data, the exported files' checks and the page all come through here, so what was measured
is what is served.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

# 5000 x 2 pixels resized to a shorter side of 224 would be 560,000 pixels wide.
_MAX_ASPECT = 16


def preprocess(image: Image.Image, img_size: int, crop_pct: float = 1.0) -> Image.Image:
    """The centre of a picture at the size that a model takes.

    RGB, shorter side to round(img_size / crop_pct) with PIL's bicubic filter, centre crop. The same
    bits as torchvision's `Resize` and `CenterCrop` on a PIL image, but for pictures over 16 times
    longer than wide: their ends, which no crop reaches, go first. A picture of the right size comes
    back with its own pixels if crop_pct is 1.

    Args:
        image: Any picture that Pillow converts to RGB; alpha and EXIF orientation are `to_rgb`'s
            business.
        img_size: Side of the square result in pixels.
        crop_pct: Share of the resized shorter side that the crop keeps, in (0, 1].

    Returns:
        RGB picture of img_size x img_size pixels.

    Raises:
        ValueError: If img_size or crop_pct is out of range, or the picture has no pixels.
    """
    if img_size < 1:
        raise ValueError(f"img_size must be at least 1, got {img_size}")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must lie in (0, 1], got {crop_pct}")
    if min(image.size) < 1:
        raise ValueError(f"a picture needs at least one pixel, got {image.width} x {image.height}")
    # Converting copies, also where there is nothing to convert.
    image = _without_far_ends(image if image.mode == "RGB" else image.convert("RGB"))
    shorter = round(img_size / crop_pct)
    # Truncation, not rounding, as in torchvision and timm.
    longer = int(shorter * max(image.size) / min(image.size))
    size = (shorter, longer) if image.width <= image.height else (longer, shorter)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left = round((image.width - img_size) / 2)
    top = round((image.height - img_size) / 2)
    return image.crop((left, top, left + img_size, top + img_size))


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The picture with its longer side cut, evenly at both ends, to 16 times the shorter."""
    width, height = image.size
    excess = max(width, height) - _MAX_ASPECT * min(width, height)
    if excess <= 0:
        return image
    cut = excess // 2
    if width > height:
        return image.crop((cut, 0, width - cut, height))
    return image.crop((0, cut, width, height - cut))


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as a person sees it: EXIF turned, 16-bit grey scaled to 8, alpha on white, RGB.

    Without this, Pillow's `convert("RGB")` leaves phone photos on their side, clips 16-bit grey to
    white and shows whatever colours lie hidden under transparent pixels.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_array(image: Image.Image) -> np.ndarray:
    """A picture's values as float32 in [0, 1], RGB, [3, H, W]: each 8-bit value divided by 255."""
    return as_values(to_bytes(image))


def to_bytes(image: Image.Image) -> np.ndarray:
    """A picture's values as they are, uint8, RGB, [3, H, W]."""
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def as_values(images: np.ndarray) -> np.ndarray:
    """Images in float32 in [0, 1], of any shape: as they are, or uint8 values divided by 255."""
    if images.dtype != np.uint8:
        return images
    return np.divide(images, np.float32(255), dtype=np.float32)


def as_input(images: Tensor) -> Tensor:
    """The same for many: uint8 images [B, 3, S, S] as float32 in [0, 1]."""
    return images.float() / 255
