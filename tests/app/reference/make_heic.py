"""Makes `orange.heic`, which the app's own decoder cannot write: pip install pillow-heif; run here.

64 x 48 pixels, left half orange, right half blue.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from pillow_heif import register_heif_opener  # type: ignore[import-not-found]

if __name__ == "__main__":
    register_heif_opener()
    image = Image.new("RGB", (64, 48), (30, 60, 200))
    image.paste((240, 120, 20), (0, 0, 32, 48))
    image.save(Path(__file__).with_name("orange.heic"), quality=90)
