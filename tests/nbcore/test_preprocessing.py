"""Preprocessing: the bits of torchvision's transforms, hand counts, and pictures of odd kinds."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from nbcore.preprocessing import as_input, preprocess, to_array, to_rgb


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(5, 90),
    height=st.integers(5, 90),
    img_size=st.integers(1, 48),
    crop_pct=st.sampled_from([1.0, 0.95, 0.9, 0.875, 0.5]),
)
def test_equals_torchvision_bit_for_bit(
    width: int, height: int, img_size: int, crop_pct: float
) -> None:
    # Sides from 5 to 90 differ by a factor of 18 at most; over 16 we cut the ends first.
    width, height = min(width, 16 * height), min(height, 16 * width)
    image = noise(width, height)
    resize = v2.Resize(round(img_size / crop_pct), interpolation=v2.InterpolationMode.BICUBIC)
    expected = v2.CenterCrop(img_size)(resize(image))
    assert np.array_equal(preprocess(image, img_size, crop_pct), expected)


def test_picture_of_the_right_size_keeps_its_bits() -> None:
    image = noise(32, 32)
    assert np.array_equal(preprocess(image, 32), image)


def test_right_size_with_a_crop_is_enlarged_first() -> None:
    # 28 / 0.875 = 32: the picture has that side already, so 2 pixels go on each side.
    image = noise(32, 32)
    assert np.array_equal(preprocess(image, 28, 0.875), np.asarray(image)[2:30, 2:30])


def test_longer_side_is_cut_evenly() -> None:
    # 8 x 4 pixels at 4 px need no resizing; columns 2..5 are the centre.
    image = noise(8, 4)
    assert np.array_equal(preprocess(image, 4), np.asarray(image)[:, 2:6])


def test_crop_pct_sees_a_border_less() -> None:
    # A black frame of a tenth of the side: visible at crop_pct 1, gone at 0.7.
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[10:90, 10:90] = 255
    image = Image.fromarray(pixels)
    assert np.asarray(preprocess(image, 50, 1.0)).min() == 0
    assert np.asarray(preprocess(image, 50, 0.7)).min() == 255


@pytest.mark.parametrize("turned", [False, True])
def test_very_long_picture_shows_its_centre(turned: bool) -> None:
    # 5000 x 2: red but for the 30 columns in the middle, of which the crop shows 2.
    pixels = np.zeros((2, 5000, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 2485:2515] = (0, 0, 255)
    image = Image.fromarray(pixels.transpose(1, 0, 2) if turned else pixels)
    result = np.asarray(preprocess(image, 224))
    assert np.array_equal(result, np.broadcast_to([0, 0, 255], (224, 224, 3)))


def test_very_long_picture_is_cut_before_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *args: Any) -> Image.Image:
        sizes.append(size)
        return resize(self, size, *args)

    monkeypatch.setattr(Image.Image, "resize", watched)
    preprocess(noise(5000, 2), 224)
    # 2 rows keep 16 · 2 columns: 224 x 16 · 224, not 224 x 560,000.
    assert sizes == [(3584, 224)]


def test_one_pixel_wide_picture_is_enlarged() -> None:
    image = Image.new("RGB", (1, 3000), (10, 20, 30))
    assert np.array_equal(preprocess(image, 8), np.broadcast_to([10, 20, 30], (8, 8, 3)))


@pytest.mark.parametrize(
    ("img_size", "crop_pct", "message"),
    [(0, 1.0, "img_size .* got 0"), (8, 0.0, "crop_pct .* got 0"), (8, 1.1, "crop_pct .* 1.1")],
)
def test_arguments_out_of_range_are_refused(img_size: int, crop_pct: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preprocess(noise(8, 8), img_size, crop_pct)


def test_array_is_rgb_channels_first_divided_by_255() -> None:
    pixels = np.array([[[0, 51, 255], [102, 153, 204]]], np.uint8)
    array = to_array(Image.fromarray(pixels))
    # 51 / 255 = 0.2, and so on; one row of two pixels in each channel.
    expected = np.float32([[[0, 0.4]], [[0.2, 0.6]], [[1, 0.8]]])
    assert array.dtype == np.float32
    assert np.array_equal(array, expected)


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the row becomes a column, its left end on top
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    with Image.open(file) as opened:
        assert np.asarray(to_rgb(opened)).tolist() == [[[255, 0, 0]], [[0, 0, 0]]]


def test_alpha_lies_on_white() -> None:
    # Hidden red shows nothing; black at alpha 51 / 255 = 0.2 leaves 0.8 · 255 = 204.
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 51))
    assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [204, 204, 204]]]


def test_sixteen_bit_grey_is_scaled() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    grey = np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0]
    assert grey.tolist() == [0, 0, 1, 128, 255]


def test_batches_are_divided_by_255() -> None:
    assert as_input(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [0, 0.2, 1]
    )
