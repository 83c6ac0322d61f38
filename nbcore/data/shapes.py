"""Drawn shapes: a data set that needs no data, for tests and for a first look.

The class is the outline alone. Position, size, rotation, colours, a slope of the background and
noise are drawn independently of it, and all outlines enclose the same area, so neither colour nor
the number of coloured pixels tells the class.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from nbcore.data.base import DATASETS, Dataset, View
from nbcore.data.photos import Arrays
from nbcore.data.splits import assemble

CLASSES = ("circle", "square", "triangle", "cross", "ring", "star")

_IMG_SIZE = 32
_CHUNK = 256
_RADIUS = (0.24, 0.36)
"""Range of the radius of the equal-area circle, as a share of the image's side."""
_MAX_ROTATION = math.radians(20)
_NOISE = 0.06
"""Half width of the uniform noise, of the range 0..1."""
_SLOPE = 0.1
"""Largest change of brightness from the centre of the background to its edge."""
_BACKGROUND = 0.35
"""Largest value of a colour channel of the background before its slope."""
_COLOUR = 0.5
"""Least value of a colour channel of a shape: shapes are brighter than what lies behind them."""


def draw_shapes(
    n: int, *, img_size: int = 32, seed: tuple[int, ...] = (0,)
) -> tuple[np.ndarray, np.ndarray]:
    """The first n images of an endless sequence, the classes taking turns.

    Args:
        n: Number of images.
        img_size: Side in pixels.
        seed: Non-negative numbers that choose the sequence.

    Returns:
        images: uint8 [n, 3, img_size, img_size].
        targets: int64 [n], indices into `CLASSES`.
    """
    targets = np.arange(n, dtype=np.int64) % len(CLASSES)
    images = np.empty((n, 3, img_size, img_size), np.uint8)
    params_rng, noise_rng = (np.random.default_rng([*seed, stream]) for stream in (0, 1))
    for start in range(0, n, _CHUNK):
        chunk = slice(start, min(start + _CHUNK, n))
        params = params_rng.random((chunk.stop - start, 12))
        clean = _draw(params, targets[chunk], img_size)
        noise = (noise_rng.random(clean.shape, np.float32) * 2 - 1) * _NOISE
        images[chunk] = np.rint((clean + noise).clip(0, 1) * 255).astype(np.uint8)
    return images, targets


def _draw(params: np.ndarray, targets: np.ndarray, img_size: int) -> np.ndarray:
    """Images [n, 3, img_size, img_size] without noise, from uniform random numbers [n, 12]."""
    x, y, size, turn, slope, direction = (column[:, None, None] for column in params.T[:6])
    radius = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * size
    # The farthest points of star and triangle reach about 1.6 radii; a little may leave the image.
    centre_x, centre_y = (radius + (1 - 2 * radius) * position for position in (x, y))
    angle = (2 * turn - 1) * _MAX_ROTATION
    pixels = (np.arange(img_size) + 0.5) / img_size
    dx, dy = pixels[None, None, :] - centre_x, pixels[None, :, None] - centre_y
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / radius
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / radius
    distance = np.empty_like(u)
    for target, name in enumerate(CLASSES):
        chosen = targets == target
        distance[chosen] = signed_distance(name, u[chosen], v[chosen])
    cover = (0.5 - distance * radius * img_size).clip(0, 1)[:, None]
    across = np.cos(2 * np.pi * direction) * (pixels[None, None, :] - 0.5)
    along = np.sin(2 * np.pi * direction) * (pixels[None, :, None] - 0.5)
    background = _BACKGROUND * params[:, 6:9, None, None]
    background = background + (2 * _SLOPE * slope * (across + along))[:, None]
    colour = 1 - (1 - _COLOUR) * params[:, 9:12, None, None]
    return (cover * colour + (1 - cover) * background).astype(np.float32)


def signed_distance(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance of points to a shape's outline, negative inside; every shape has area π.

    Exact along straight edges and near them, a lower bound beyond corners: good for half a pixel of
    smoothing.
    """
    if name == "circle":
        return np.hypot(u, v) - 1
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) - math.sqrt(math.pi) / 2
    if name == "triangle":
        # An equilateral triangle with inradius r has area 3√3 r².
        inradius = math.sqrt(math.pi / (3 * math.sqrt(3)))
        third = math.sqrt(3) / 2
        edges = np.stack([v, third * u - v / 2, -third * u - v / 2])
        return edges.max(0) - inradius
    if name == "cross":
        # Two bars of half length 3w and half width w have area 4w²(3 + 3 − 1).
        width = math.sqrt(math.pi / 20)
        upright = np.maximum(np.abs(u) - width, np.abs(v) - 3 * width)
        level = np.maximum(np.abs(v) - width, np.abs(u) - 3 * width)
        return np.minimum(upright, level)
    if name == "ring":
        # π(R² − r²) = π with r = R/2 gives R = 2/√3.
        outer = 2 / math.sqrt(3)
        return np.abs(np.hypot(u, v) - 0.75 * outer) - 0.25 * outer
    if name == "star":
        return _star(u, v)
    raise ValueError(f"unknown shape {name!r}; available: {', '.join(CLASSES)}")


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points at radius R and five notches at R/2, area 10 · ½ · R · R/2 · sin 36° = π."""
    half_turn = math.pi / 5
    outer = math.sqrt(math.pi / (2.5 * math.sin(half_turn)))
    point = np.array([outer, 0.0])
    notch = outer / 2 * np.array([math.cos(half_turn), math.sin(half_turn)])
    edge = notch - point
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    # Folded into one tenth of the star, from a point (angle 0) to a notch (angle 36°).
    angle = np.abs((np.arctan2(u, -v) + half_turn) % (2 * half_turn) - half_turn)
    radius = np.hypot(u, v)
    return (radius * np.cos(angle) - point[0]) * normal[0] + radius * np.sin(angle) * normal[1]


@DATASETS.register("shapes")
def load_shapes(
    _data_dir: Path | None,
    view: View,
    *,
    n_train: int = 4096,
    n_test: int = 1024,
    seed: int = 0,
) -> Dataset:
    """Drawn shapes; needs no data folder."""
    if n_train < len(CLASSES) or n_test < 1:
        raise ValueError(
            f"shapes needs n_train >= {len(CLASSES)} and n_test >= 1, got {n_train} and {n_test}"
        )
    view = replace(view, img_size=view.img_size or _IMG_SIZE)
    splits = {}
    for stream, (split, n) in enumerate({"train": n_train, "test": n_test}.items()):
        images, targets = draw_shapes(n, img_size=view.img_size or _IMG_SIZE, seed=(seed, stream))
        names = tuple(f"{split}/{i:05d}" for i in range(n))
        splits[split] = Arrays(images=images, targets=targets, names=names)
    return assemble("shapes", CLASSES, splits["train"], splits["test"], view)
