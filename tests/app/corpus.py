"""Files that people, and those who mean harm, send as photos."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.app.serving import example_path

HEIC = Path(__file__).parent / "reference" / "orange.heic"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One file."""

    name: str
    data: bytes
    words: str | None = None
    """Part of the sentence that answers it; None where it is a picture like any other."""


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(example_path()) as image:
        return _encoded(image.resize((96, 64)), "JPEG", exif=exif)


@functools.cache
def corpus() -> tuple[Sent, ...]:
    """All of them."""
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    png, jpeg = _encoded(noise, "PNG"), _encoded(noise, "JPEG")
    deep = Image.fromarray((np.arange(64 * 64) * 16 % 65536).astype(np.uint16).reshape(64, 64))
    frames = [noise, Image.new("RGB", noise.size, "red")]
    corrupt = bytearray(png)
    corrupt[len(png) // 2] ^= 0xFF
    return (
        Sent(name="corrupt.png", data=bytes(corrupt), words="PNG file is damaged"),
        Sent(name="truncated.png", data=png[: len(png) // 2], words="PNG file is damaged"),
        Sent(name="truncated.jpg", data=jpeg[: len(jpeg) // 2], words="JPEG file is damaged"),
        Sent(
            name="bomb.png",
            data=_encoded(Image.new("1", (13_000, 13_000)), "PNG"),
            words="169.0 megapixels",
        ),
        Sent(name="empty.jpg", data=b"", words="not a picture"),
        Sent(name="text.jpg", data=b"<script>alert(1)</script>", words="not a picture"),
        Sent(name="drawing.svg", data=b"<svg xmlns='http://www.w3.org/2000/svg'/>", words="not a"),
        Sent(name="page.eps", data=b"%!PS-Adobe-3.0 EPSF-3.0\n", words="not a picture"),
        Sent(name="png-in-truth.jpg", data=png),
        Sent(name="no-suffix", data=jpeg),
        Sent(name="printed.jpg", data=_encoded(noise.convert("CMYK"), "JPEG")),
        Sent(name="palette.png", data=_encoded(noise.convert("P"), "PNG", transparency=3)),
        Sent(name="dot.png", data=_encoded(Image.new("RGB", (1, 1), "teal"), "PNG")),
        Sent(name="line.png", data=_encoded(Image.new("RGB", (5000, 2), "teal"), "PNG")),
        Sent(
            name="animated.gif",
            data=_encoded(noise, "GIF", save_all=True, append_images=frames[1:]),
        ),
        Sent(name="sixteen-bit.png", data=_encoded(deep, "PNG")),
        Sent(name="phone.heic", data=HEIC.read_bytes()),
        Sent(name="cut.heic", data=HEIC.read_bytes()[:300], words="not a picture"),
        *(Sent(name=f"turned-{k}.jpg", data=_turned(k)) for k in range(1, 9)),
    )
