"""Drawn shapes: hand counts of the outlines, and that the class is the outline alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nbcore.data import load_dataset
from nbcore.data.shapes import CLASSES, draw_shapes, signed_distance


@pytest.mark.parametrize("name", CLASSES)
def test_every_shape_covers_the_area_of_the_unit_circle(name: str) -> None:
    step = 0.01
    axis = np.arange(-2, 2, step) + step / 2
    x, y = np.meshgrid(axis, axis)
    # A turned grid, so that no edge runs along a row of points.
    u, v = math.cos(0.3) * x - math.sin(0.3) * y, math.sin(0.3) * x + math.cos(0.3) * y
    area = (signed_distance(name, u, v) < 0).sum() * step**2
    assert area == pytest.approx(math.pi, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "point", "expected"),
    [
        ("circle", (0.0, 0.0), -1.0),
        ("circle", (3.0, 4.0), 4.0),
        # Half the side of a square of area π is √π/2 = 0.8862.
        ("square", (0.0, 0.0), -0.8862),
        ("square", (1.8862, 0.5), 1.0),
        # Inradius r with 3√3 r² = π is 0.7776; the lower edge is level, the tip at −2r.
        ("triangle", (0.0, 0.7776), 0.0),
        ("triangle", (0.0, -1.5552), 0.0),
        # 20 w² = π: w = 0.3963; the arms end at 3w = 1.1890, their inner corner is at (w, w).
        ("cross", (1.1890, 0.0), 0.0),
        ("cross", (0.3963, 0.3963), 0.0),
        ("cross", (0.8, 0.8), 0.4037),
        # From R/2 to R = 2/√3 = 1.1547; the hole's centre is R/2 = 0.5774 from the ring.
        ("ring", (0.0, 0.0), 0.5774),
        ("ring", (0.866, 0.0), -0.2887),
        # 2.5 R² sin 36° = π: R = 1.4622; a point is on top, a notch at R/2 below.
        ("star", (0.0, -1.4622), 0.0),
        ("star", (0.0, 0.7311), 0.0),
    ],
)
def test_distance_to_the_outline(name: str, point: tuple[float, float], expected: float) -> None:
    u, v = np.array([point[0]]), np.array([point[1]])
    assert signed_distance(name, u, v)[0] == pytest.approx(expected, abs=1e-3)


def test_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown shape 'blob'; available: circle, .*star"):
        signed_distance("blob", np.zeros(1), np.zeros(1))


def test_sequence_depends_on_its_seed_only() -> None:
    images, targets = draw_shapes(20, seed=(1,))
    longer, _ = draw_shapes(300, seed=(1,))
    other, _ = draw_shapes(20, seed=(2,))
    assert np.array_equal(images, longer[:20])
    assert not np.array_equal(images, other)
    assert targets.tolist() == [i % 6 for i in range(20)]


def test_neither_colour_nor_covered_area_tells_the_class() -> None:
    images, targets = draw_shapes(1800)
    colours = images.reshape(1800, 3, -1).mean(2)
    by_class = np.stack([colours[targets == target].mean(0) for target in range(6)])
    # Means over 300 images with a standard deviation near 25 scatter by 1.5; allow four times that.
    assert np.abs(by_class - colours.mean(0)).max() < 6


def test_shape_is_brighter_than_the_ground_and_lies_inside_the_image() -> None:
    images, _ = draw_shapes(60)
    # Half-way between the brightest background (0.35 · 255 = 89) and the darkest shape (0.5 · 255).
    bright = (images.mean(1) > 108).mean((1, 2))
    # Discs of radius 0.24 and 0.36 cover 0.18 and 0.41 of the image; star points may be cut.
    assert (bright > 0.13).all()
    assert (bright < 0.46).all()


def test_splits_differ_and_have_the_sizes_asked_for() -> None:
    data = load_dataset("shapes", None, n_train=120, n_test=30, validation_share=0.1, img_size=16)
    # 20 images a class: 2 of each are held out.
    assert torch.bincount(data.validation.targets).tolist() == [2] * 6
    assert torch.bincount(data.train.targets).tolist() == [18] * 6
    assert torch.bincount(data.test.targets).tolist() == [5] * 6
    assert data.test.images.shape[2:] == (16, 16)
    assert not torch.equal(data.train.images[0], data.test.images[0])
    again = load_dataset("shapes", None, n_train=120, n_test=30, validation_share=0.1, img_size=16)
    assert torch.equal(data.validation.images, again.validation.images)
    assert data.validation.names == again.validation.names


def test_linear_model_does_not_solve_it_and_beats_chance() -> None:
    images, targets = draw_shapes(1200)
    inputs = images.reshape(1200, -1) / 255.0 - 0.3
    gram = inputs[:900] @ inputs[:900].T + 300 * np.eye(900)
    weights = inputs[:900].T @ np.linalg.solve(gram, np.eye(6)[targets[:900]])
    accuracy = ((inputs[900:] @ weights).argmax(1) == targets[900:]).mean()
    assert 0.25 < accuracy < 0.7


@pytest.mark.parametrize("options", [{"n_train": 5}, {"n_test": 0}])
def test_too_few_images_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="shapes needs n_train >= 6 and n_test >= 1"):
        load_dataset("shapes", None, **options)
