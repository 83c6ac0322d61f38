"""What models see of a photo, cut once for all questions about it, and forgotten with the photo."""

from __future__ import annotations

import threading
import weakref

import numpy as np
from PIL import Image

from nbcore.preprocessing import preprocess, to_array

Cut = tuple[Image.Image, np.ndarray]
"""RGB [S, S], and float32 [3, S, S] in [0, 1]."""


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
        """
        key = id(image), img_size, crop_pct
        with self._lock:
            held = self._known.get(key)
        if held is not None and held[0]() is image:
            return held[1]
        crop = preprocess(image, img_size, crop_pct)
        cut = crop, to_array(crop)
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
