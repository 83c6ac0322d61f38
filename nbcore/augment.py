"""Augmentation of whole batches on the device that trains: crops, flips, colour, mixing.

All randomness comes from one generator, so a run can stop and go on with the same pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nbcore.config import TrainConfig

GREY = (0.299, 0.587, 0.114)
LOG_ASPECT = 0.2877
"""log(4/3): the widest aspect ratio of a crop."""


@dataclass(frozen=True, kw_only=True)
class PartDraws:
    """Draws for some images of a batch: those for the whole batch, cut, so that processes that
    share a batch see together what one alone would."""

    generator: Generator
    """In the same state in every process."""
    batch_size: int
    """Images of the whole batch."""
    rows: Tensor
    """Which of them are at hand, int64 [B]."""


Draws = Generator | PartDraws


def _rand(shape: tuple[int, ...], draws: Draws, *, batch_dim: int = 0) -> Tensor:
    """Uniform numbers in 0..1; the size along `batch_dim` is that of the images at hand."""
    if isinstance(draws, Generator):
        return torch.rand(shape, generator=draws, device=draws.device)
    whole = (*shape[:batch_dim], draws.batch_size, *shape[batch_dim + 1 :])
    numbers = torch.rand(whole, generator=draws.generator, device=draws.generator.device)
    return numbers.index_select(batch_dim, draws.rows)


def augment(images: Tensor, side: int, config: TrainConfig, generator: Draws) -> Tensor:
    """Randomly cropped, mirrored and coloured training images.

    Args:
        images: uint8 [B, 3, H, W].
        side: Side of the result in pixels.
        config: Strengths.
        generator: On the device of the images.

    Returns:
        Single precision [B, 3, side, side] in [0, 1].
    """
    draws = _rand((NUM_DRAWS, len(images)), generator, batch_dim=1)
    plain = not config.three_augment
    first = _compiled() if images.is_cuda else crop_and_colour
    jitter = config.jitter if plain else 0.0
    x = first(images, draws, side, config.crop_scale, config.flip, jitter)
    if config.three_augment:
        x = three_augment(x, generator)
        if config.jitter > 0:
            x = colour_jitter(x, config.jitter, draws[COLOUR])
    if config.erasing > 0:
        x = erase(x, config.erasing, generator)
    return x


CROP, COLOUR = slice(0, 5), slice(5, 8)
NUM_DRAWS = 8
"""Uniform numbers for each image: five of a crop, three of its colours."""


def crop_and_colour(
    images: Tensor,
    draws: Tensor,
    side: int,
    scale: tuple[float, float],
    flip: bool,
    jitter: float,
) -> Tensor:
    """A random resized crop with jittered colours: a function of its draws, so that it can be
    compiled.

    Args:
        images: uint8 [B, 3, H, W].
        draws: Uniform in 0..1 [8, B].
        side: Side of the result.
        scale: Smallest and largest share of the area.
        flip: Whether to mirror half of the images.
        jitter: Strength of colour changes, 0 for none.
    """
    x = random_resized_crop(images.float() / 255, side, scale, flip, draws[CROP])
    return colour_jitter(x, jitter, draws[COLOUR]) if jitter > 0 else x


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """`crop_and_colour` fused: it only moves memory, and each of its steps would move it again."""
    return torch.compile(crop_and_colour, dynamic=False)


def _uniform(batch: int, low: float, high: float, generator: Draws) -> Tensor:
    return _rand((batch,), generator) * (high - low) + low


def random_resized_crop(
    images: Tensor, side: int, scale: tuple[float, float], flip: bool, draws: Tensor
) -> Tensor:
    """Inception crops by bilinear sampling: area in `scale`, aspect ratio 3/4 to 4/3, half of them
    mirrored.

    Args:
        images: [B, 3, H, W] in [0, 1].
        side: Side of the result.
        scale: Smallest and largest share of the area.
        flip: Whether to mirror half of the images.
        draws: Uniform in 0..1 [5, B].
    """
    low, high = scale
    area = (low + (high - low) * draws[0]).sqrt()
    ratio = (LOG_ASPECT * (2 * draws[1] - 1)).exp().sqrt()
    width, height = (area * ratio).clamp(max=1.0), (area / ratio).clamp(max=1.0)
    x, y = (2 * draws[2] - 1) * (1 - width), (2 * draws[3] - 1) * (1 - height)
    mirror = torch.where(draws[4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(x)
    none = torch.zeros_like(x)
    rows = [torch.stack([width * mirror, none, x], 1), torch.stack([none, height, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 3, side, side], align_corners=False)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _grey(images: Tensor) -> Tensor:
    # Not as a tensor of weights: copying one to the device would wait for it, step by step.
    red, green, blue = images.split(1, dim=1)
    return red * GREY[0] + green * GREY[1] + blue * GREY[2]


def colour_jitter(images: Tensor, strength: float, draws: Tensor) -> Tensor:
    """Brightness, contrast and saturation factors in [1 - strength, 1 + strength], from uniform
    draws [3, B]."""
    low, high = max(0.0, 1 - strength), 1 + strength
    brightness, contrast, saturation = (low + (high - low) * draws)[..., None, None, None]
    x = images * brightness
    mean = _grey(x).mean((2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    grey = _grey(x)
    return (grey + (x - grey) * saturation).clamp(0, 1)


def three_augment(images: Tensor, generator: Draws) -> Tensor:
    """Each image becomes grey, solarised or blurred, a third each (DeiT III, arXiv:2204.07118)."""
    choice = _uniform(len(images), 0.0, 3.0, generator)[:, None, None, None]
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    weight = (kernel[:, None] * kernel[None, :]).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), weight, groups=3)
    solarised = torch.where(images >= 0.5, 1 - images, images)
    return torch.where(choice < 1, _grey(images), torch.where(choice < 2, solarised, blurred))


def erase(images: Tensor, share: float, generator: Draws) -> Tensor:
    """Fill one random rectangle (2 % to 20 % of the area) of a share of the images with noise."""
    batch, _, height, width = images.shape
    side = _uniform(batch, 0.02, 0.2, generator).sqrt()
    hit = _uniform(batch, 0.0, 1.0, generator) < share
    mask = _rectangles(batch, height, width, side, generator) & hit[:, None, None]
    noise = _rand(tuple(images.shape), generator)
    return torch.where(mask[:, None], noise, images)


def _rectangles(batch: int, height: int, width: int, side: Tensor, generator: Draws) -> Tensor:
    """Squares of relative side `side` [B] at random places: boolean [B, H, W]."""
    top = _uniform(batch, 0.0, 1.0, generator) * (1 - side)
    left = _uniform(batch, 0.0, 1.0, generator) * (1 - side)
    rows = torch.arange(height, device=side.device)[None] / height
    columns = torch.arange(width, device=side.device)[None] / width
    inside_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + side)[:, None])
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def mix(
    images: Tensor, targets: Tensor, config: TrainConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch with its mirror order, one of the two per batch.

    Args:
        images: [B, 3, S, S].
        targets: Soft targets [B, K].
        config: Alphas of both.
        generator: On the CPU, so that no draw waits for the device.

    Returns:
        Mixed images and targets.

    Source:
        Zhang et al., arXiv:1710.09412; Yun et al., arXiv:1905.04899.
    """
    if config.mixup <= 0 and config.cutmix <= 0:
        return images, targets
    cut = config.cutmix > 0 and (config.mixup <= 0 or _draw(generator) < 0.5)
    share = _beta(config.cutmix if cut else config.mixup, generator)
    if cut:
        height, width = images.shape[2:]
        rows, columns = round(height * share**0.5), round(width * share**0.5)
        top, left = (
            int(_draw(generator) * (height - rows)),
            int(_draw(generator) * (width - columns)),
        )
        pasted = images.clone()
        box = (..., slice(top, top + rows), slice(left, left + columns))
        pasted[box] = images.flip(0)[box]
        images, share = pasted, rows * columns / (height * width)
    else:
        images = images.lerp(images.flip(0), share)
    return images, targets.lerp(targets.flip(0), share)


def _draw(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()


def _beta(alpha: float, generator: Generator) -> float:
    """One draw of Beta(alpha, alpha) by Johnk's rejection, from the run's own generator."""
    while True:
        first, second = _draw(generator) ** (1 / alpha), _draw(generator) ** (1 / alpha)
        if 0 < first + second <= 1:
            return first / (first + second)
