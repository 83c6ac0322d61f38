"""Augmentation by hand: where a crop lies, what is mixed, and the same draws for the same seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from nbcore.augment import _beta as beta
from nbcore.augment import (
    augment,
    colour_jitter,
    erase,
    mix,
    random_resized_crop,
    three_augment,
)
from nbcore.config import TrainConfig

CONFIG = TrainConfig(epochs=((8, 1),), jitter=0.3, erasing=0.5, three_augment=True)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def ramps(count: int, side: int = 64) -> Tensor:
    """Red grows from 0 to 1 to the right, green downwards; at pixel centres."""
    line = (torch.arange(side) + 0.5) / side
    across = line.expand(side, side)
    return torch.stack([across, across.T, across]).expand(count, 3, side, side).clone()


def test_crops_lie_inside_with_the_area_and_aspect_that_were_asked_for() -> None:
    low, high = 0.3, 0.6
    crops = random_resized_crop(
        ramps(400), 16, (low, high), True, torch.rand(5, 400, generator=seeded())
    )
    # On a ramp a crop's first and last pixel tell where it lies; they are 15/16 of its side apart.
    red, green = crops[:, 0].mean(1), crops[:, 1].mean(2)
    width, height = (red[:, -1] - red[:, 0]) * 16 / 15, (green[:, -1] - green[:, 0]) * 16 / 15
    assert (width < 0).float().mean().sub(0.5).abs() < 0.1  # half are mirrored
    area, aspect = width.abs() * height, width.abs() / height
    assert low - 1e-3 < area.min() < 0.32
    assert 0.58 < area.max() < high + 1e-3
    assert 3 / 4 - 1e-2 < aspect.min() < 0.78
    assert 1.29 < aspect.max() < 4 / 3 + 1e-2
    middle = red.mean(1)
    assert (middle - width.abs() / 2 > -1e-3).all()
    assert (middle + width.abs() / 2 < 1 + 1e-3).all()
    steps = red.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=2e-3, rtol=0)


def test_crops_are_not_mirrored_unless_asked_for() -> None:
    crops = random_resized_crop(
        ramps(50), 16, (0.3, 0.6), False, torch.rand(5, 50, generator=seeded())
    )
    assert (crops[:, 0, :, -1] > crops[:, 0, :, 0]).all()


def test_jitter_of_a_grey_picture_by_hand() -> None:
    # Grey of value v: brightness f gives f v, contrast and saturation then change nothing.
    grey = torch.full((300, 3, 4, 4), 0.5)
    found = colour_jitter(grey, 0.3, torch.rand(3, 300, generator=seeded()))
    torch.testing.assert_close(found, found[:, :1, :1, :1].expand_as(found))
    factors = found[:, 0, 0, 0] / 0.5
    assert 0.7 <= factors.min() < 0.72
    assert 1.28 < factors.max() <= 1.3


def test_three_augment_takes_a_third_each() -> None:
    images = torch.rand(600, 3, 8, 8, generator=seeded(1))
    found = three_augment(images, seeded())
    grey = (0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2])[:, None]
    solarised = torch.where(images >= 0.5, 1 - images, images)
    is_grey = torch.isclose(found, grey.expand_as(found), atol=1e-6).flatten(1).all(1)
    is_solarised = (found == solarised).flatten(1).all(1)
    rest = ~is_grey & ~is_solarised
    for share in (is_grey, is_solarised, rest):
        assert abs(share.float().mean() - 1 / 3) < 0.06
    # Blur by (1, 4, 6, 4, 1) / 16 both ways, at an inner pixel.
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    inner = (images[rest][:, :, 1:6, 2:7] * kernel[:, None] * kernel).sum((2, 3))
    torch.testing.assert_close(found[rest][:, :, 3, 4], inner)


def test_erasing_hits_the_share_and_leaves_the_rest_alone() -> None:
    images = torch.full((400, 3, 32, 32), 2.0)  # noise is below 1
    found = erase(images, 0.25, seeded())
    gone = (found != 2).all(1)
    assert ((found == 2).all(1) | gone).all()  # all channels of a pixel together
    hit = gone.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.07
    rows, columns = gone.any(2).sum(1)[hit], gone.any(1).sum(1)[hit]
    assert torch.equal(rows * columns, gone.flatten(1).sum(1)[hit])  # filled rectangles
    area = (rows * columns) / 32**2
    assert area.min() > 0.01
    assert area.max() < 0.24


def test_mixup_blends_pictures_and_targets_by_one_share() -> None:
    images, targets = torch.rand(4, 3, 8, 8, generator=seeded(1)), torch.eye(4)
    config = replace(CONFIG, cutmix=0.0)
    found, mixed = mix(images, targets, config, seeded())
    share = float(mixed[0, 3])
    assert 0 < share < 1
    torch.testing.assert_close(found, (1 - share) * images + share * images.flip(0))
    torch.testing.assert_close(mixed, (1 - share) * torch.eye(4) + share * torch.eye(4).flip(0))


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_targets_count_the_pasted_pixels(seed: int) -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    found, mixed = mix(images, torch.eye(4), replace(CONFIG, mixup=0.0), seeded(seed))
    pasted = found[0] == 3
    assert ((found[0] == 0) | pasted).all()
    share = pasted.float().mean().item()
    torch.testing.assert_close(mixed[0], torch.tensor([1 - share, 0, 0, share]))
    torch.testing.assert_close(mixed[1], torch.tensor([0, 1 - share, share, 0]))


def test_mixing_switched_off_leaves_everything_and_draws_nothing() -> None:
    images, targets, generator = torch.rand(2, 3, 8, 8), torch.eye(2), seeded()
    found, mixed = mix(images, targets, replace(CONFIG, mixup=0.0, cutmix=0.0), generator)
    assert found is images
    assert mixed is targets
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    generator = seeded()
    draws = torch.tensor([beta(alpha, generator) for _ in range(3000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.006


def test_the_same_generator_gives_the_same_pictures_in_range() -> None:
    images = torch.randint(0, 256, (16, 3, 24, 24), dtype=torch.uint8, generator=seeded(1))
    one, two = (augment(images, 8, CONFIG, seeded(7)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, augment(images, 8, CONFIG, seeded(8)))
    assert one.shape == (16, 3, 8, 8)
    assert 0 <= one.min() < one.max() <= 1
