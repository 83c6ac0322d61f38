"""A photo is cut once, and what was cut goes with it."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from PIL import Image

from app import crops
from app.crops import Crops
from app.gallery import digest, reduced
from nbcore.preprocessing import preprocess, to_array
from tests.app.serving import example_path


def photo() -> Image.Image:
    with Image.open(example_path()) as image:
        return image.convert("RGB").resize((400, 300))


def test_a_crop_is_that_of_preprocess_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, float]] = []

    def count(image: Image.Image, img_size: int, crop_pct: float) -> Image.Image:
        made.append((img_size, crop_pct))
        return preprocess(image, img_size, crop_pct)

    monkeypatch.setattr(crops, "preprocess", count)
    kept, image = Crops(), photo()
    crop, pixels, raw = kept.of(image, 64, 0.9)
    assert crop.tobytes() == preprocess(image, 64, 0.9).tobytes()
    assert np.array_equal(pixels, to_array(crop))
    assert np.array_equal(raw.transpose(1, 2, 0), np.asarray(crop))
    assert kept.of(image, 64, 0.9)[0] is crop
    assert kept.of(image, 64, 1.0)[0].tobytes() == preprocess(image, 64, 1.0).tobytes()
    # Equal pixels of another photo are cut anew: only the photo itself says that it is in use.
    assert kept.of(image.copy(), 64, 0.9)[0] is not crop
    assert made == [(64, 0.9), (64, 1.0), (64, 0.9)]


def test_a_crop_stands_for_its_photo_and_for_no_other_cut() -> None:
    kept, image = Crops(), photo()
    crop, pixels, raw = kept.of(image, 64, 0.9)
    again = kept.of(crop, 64, 0.9)
    assert again.image is crop
    assert np.array_equal(again.values, pixels)
    assert np.array_equal(again.raw, raw)
    with pytest.raises(ValueError, match=r"cut by \(64, 0.9\), not by \(64, 1.0\)"):
        kept.of(crop, 64, 1.0)
    small = reduced(image, crop)
    assert digest(small) == digest(image) != digest(image.resize((64, 64)))


def test_nothing_of_a_photo_outlives_it() -> None:
    kept, image = Crops(), photo()
    kept.of(image, 64, 0.9)
    kept.of(image, 32, 0.9)
    assert len(kept._known) == 2
    del image
    gc.collect()
    assert kept._known == {}


def test_a_photo_that_is_its_own_crop_is_not_held() -> None:
    kept, image = Crops(), photo().resize((64, 64))
    kept.of(image, 64, 1.0)
    del image
    gc.collect()
    assert kept._known == {}
