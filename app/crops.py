"""What models see of a photo, cut once for all questions about it, and forgotten with the photo."""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import numpy as np
from PIL import Image

from nbcore.preprocessing import as_values, preprocess, to_bytes

CUT = "cut"
"""Says in a crop's `info` how it was cut. Such a picture is all that its models see, so that the
photo may go."""


class Cut(NamedTuple):
    """What models see."""

    image: Image.Image
    """RGB [S, S]."""
    values: np.ndarray
    """float32 [3, S, S] in [0, 1]."""
    raw: np.ndarray
    """The same as uint8."""


class Crops:
    """Keeps the crops of photos that are in use; safe to share between threads.

    A comparison asks for the same crop at each of its steps, and a photo of 12 megapixels takes
    longer to cut than all models to answer.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, float], tuple[weakref.ref[Image.Image], Cut]] = {}
        self._lock = threading.RLock()

    def of(self, image: Image.Image, img_size: int, crop_pct: float) -> Cut:
        """The centre of a photo as `preprocess` cuts it; nobody may write into it.

        Args:
            image: Kept unchanged as long as it is in use.
            img_size: Side in pixels.
            crop_pct: Share of the shorter side that the crop keeps.

        Raises:
            ValueError: If it is itself a crop that was cut in another way.
        """
        if (cut_as := image.info.get(CUT)) not in (None, (img_size, crop_pct)):
            raise ValueError(f"this crop was cut by {cut_as}, not by {(img_size, crop_pct)}")
        key = id(image), img_size, crop_pct
        with self._lock:
            held = self._known.get(key)
        if held is not None and held[0]() is image:
            return held[1]
        crop = preprocess(image, img_size, crop_pct) if cut_as is None else image
        crop.info[CUT] = img_size, crop_pct
        raw = to_bytes(crop)
        cut = Cut(crop, as_values(raw), raw)
        if crop is not image:
            # Called while the photo is taken down, so its number cannot be another's yet.
            alive = weakref.ref(image, lambda _: self._forget(key))
            with self._lock:
                self._known[key] = alive, cut
        return cut

    def _forget(self, key: tuple[int, int, float]) -> None:
        with self._lock:
            self._known.pop(key, None)


CROPS = Crops()
