"""Augmentation of whole batches on the device that trains: crops, flips, colour, mixing.

All randomness comes from one generator, so a run can stop and go on with the same pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nbcore.config import TrainConfig

GREY = (0.299, 0.587, 0.114)


def augment(images: Tensor, side: int, config: TrainConfig, generator: Generator) -> Tensor:
    """Randomly cropped, mirrored and coloured training images.

    Args:
        images: uint8 [B, 3, H, W].
        side: Side of the result in pixels.
        config: Strengths.
        generator: On the device of the images.

    Returns:
        Single precision [B, 3, side, side] in [0, 1].
    """
    x = random_resized_crop(
        images.float().div_(255), side, config.crop_scale, config.flip, generator
    )
    if config.three_augment:
        x = three_augment(x, generator)
    if config.jitter > 0:
        x = colour_jitter(x, config.jitter, generator)
    if config.erasing > 0:
        x = erase(x, config.erasing, generator)
    return x


def _uniform(batch: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(batch, generator=generator, device=generator.device) * (high - low) + low


def random_resized_crop(
    images: Tensor, side: int, scale: tuple[float, float], flip: bool, generator: Generator
) -> Tensor:
    """Inception crops by bilinear sampling: area in `scale`, aspect ratio 3/4 to 4/3, half of them
    mirrored.

    Args:
        images: [B, 3, H, W] in [0, 1].
        side: Side of the result.
        scale: Smallest and largest share of the area.
        flip: Whether to mirror half of the images.
        generator: On the device of the images.
    """
    batch = len(images)
    area = _uniform(batch, *scale, generator).sqrt()
    ratio = _uniform(batch, -0.2877, 0.2877, generator).exp().sqrt()
    width, height = (area * ratio).clamp(max=1.0), (area / ratio).clamp(max=1.0)
    x = _uniform(batch, -1.0, 1.0, generator) * (1 - width)
    y = _uniform(batch, -1.0, 1.0, generator) * (1 - height)
    mirror = (
        torch.where(_uniform(batch, 0.0, 1.0, generator) < 0.5, -1.0, 1.0)
        if flip
        else torch.ones_like(x)
    )
    theta = torch.zeros(batch, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, x
    theta[:, 1, 1], theta[:, 1, 2] = height, y
    grid = F.affine_grid(theta, [batch, 3, side, side], align_corners=False)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def _grey(images: Tensor) -> Tensor:
    # Not as a tensor of weights: copying one to the device would wait for it, step by step.
    red, green, blue = images.split(1, dim=1)
    return red * GREY[0] + green * GREY[1] + blue * GREY[2]


def colour_jitter(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Brightness, contrast and saturation factors drawn from [1 - strength, 1 + strength]."""
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = [_uniform(len(images), low, high, generator)[:, None, None, None] for _ in range(3)]
    x = images * factors[0]
    mean = _grey(x).mean((2, 3), keepdim=True)
    x = mean + (x - mean) * factors[1]
    grey = _grey(x)
    return (grey + (x - grey) * factors[2]).clamp_(0, 1)


def three_augment(images: Tensor, generator: Generator) -> Tensor:
    """Each image becomes grey, solarised or blurred, a third each (DeiT III, arXiv:2204.07118)."""
    choice = _uniform(len(images), 0.0, 3.0, generator)[:, None, None, None]
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    weight = (kernel[:, None] * kernel[None, :]).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), weight, groups=3)
    solarised = torch.where(images >= 0.5, 1 - images, images)
    return torch.where(choice < 1, _grey(images), torch.where(choice < 2, solarised, blurred))


def erase(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Fill one random rectangle (2 % to 20 % of the area) of a share of the images with noise."""
    batch, _, height, width = images.shape
    side = _uniform(batch, 0.02, 0.2, generator).sqrt()
    hit = _uniform(batch, 0.0, 1.0, generator) < share
    mask = _rectangles(batch, height, width, side, generator) & hit[:, None, None]
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return torch.where(mask[:, None], noise, images)


def _rectangles(batch: int, height: int, width: int, side: Tensor, generator: Generator) -> Tensor:
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
