"""Scores of a map's order, and of two maps' agreement, by hand on toys."""

from __future__ import annotations

import numpy as np
import pytest

from app.agreement import agreement
from app.removal import removed
from app.trust import removal_scores

PATCH = 2
GRID = (2, 5)


def photo() -> np.ndarray:
    """Ten patches of 2 x 2 pixels, each with one bright pixel of 0.4 in every channel."""
    image = np.zeros((3, 4, 10), np.float32)
    image[:, ::2, ::2] = 0.4
    return image


def served(images: np.ndarray) -> np.ndarray:
    """Probability of class 1 = share of the detail that is left in the first patch, squeezed.

    The first patch's bright pixel is 0.4, or 0.1 painted over: probabilities 0.8 and 0.2.
    """
    left = images[:, 0, 0, 0]
    prob = np.where(left > 0.3, 0.8, 0.2)
    return np.log(np.stack([1 - prob, prob], 1))


def test_removed_patches_keep_their_mean_colour_only() -> None:
    gone = np.zeros((2, *GRID), bool)
    gone[1, 0, 1] = True
    whole, without = removed(photo(), gone, PATCH)
    assert np.array_equal(whole, photo())
    changed = np.argwhere((without != whole).any(0))
    assert {(int(r) // 2, int(c) // 2) for r, c in changed} == {(0, 1)}
    np.testing.assert_allclose(without[:, :2, 2:4], 0.1)


def test_deletion_and_insertion_by_hand() -> None:
    # The decisive patch first: deletion falls from 0.8 to 0.2 with the first of ten patches and
    # stays: (0.8 + 0.2) / 2 / 10 + 9 * 0.2 / 10 = 0.23; insertion rises likewise to 0.77.
    right = np.arange(10, 0, -1.0).reshape(GRID)
    found = removal_scores(served, photo(), right, 1, PATCH)
    assert found is not None
    assert (found.deletion, found.insertion) == pytest.approx((0.23, 0.77))
    # Last: the other way round.
    wrong = removal_scores(served, photo(), -right, 1, PATCH)
    assert wrong is not None
    assert (wrong.deletion, wrong.insertion) == pytest.approx((0.77, 0.23))


def test_a_constant_map_has_no_order_to_judge() -> None:
    assert removal_scores(served, photo(), np.ones(GRID), 1, PATCH) is None


def test_passes_are_twenty_whatever_the_grid() -> None:
    asked = []

    def counting(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return np.zeros((len(images), 2))

    image = np.random.default_rng(0).random((3, 28, 28), dtype=np.float32)
    assert removal_scores(counting, image, image[0, ::2, ::2].astype(float), 1, 2) is not None
    assert sum(asked) == 20


def test_agreement_by_hand() -> None:
    base = np.arange(20.0).reshape(4, 5)
    # Twice the map: same order, same top two.
    same = agreement(2 * base, base)
    assert np.array_equal(same.difference, base)
    assert (same.rank_correlation, same.top_overlap) == pytest.approx((1.0, 1.0))
    reverse = agreement(-base, base)
    assert (reverse.rank_correlation, reverse.top_overlap) == pytest.approx((-1.0, 0.0))
    # The two ends change places: 1 - 6 * 2 * 19^2 / (20 * (20^2 - 1)); one of the top two is left.
    swapped = base.copy()
    swapped[0, 0], swapped[3, 4] = 19, 0
    found = agreement(swapped, base)
    assert found.rank_correlation == pytest.approx(1 - 12 * 361 / (20 * 399))
    assert found.top_overlap == 0.5
    # A tenth of eleven patches is rounded up to two; the second one changes.
    eleven = np.arange(11.0).reshape(1, 11)
    second = eleven.copy()
    second[0, 9], second[0, 0] = 0, 9
    assert agreement(second, eleven).top_overlap == 0.5


def test_a_constant_map_agrees_with_nothing() -> None:
    found = agreement(np.zeros((2, 2)), np.arange(4.0).reshape(2, 2))
    assert (found.rank_correlation, found.top_overlap) == (None, None)
    assert found.difference.tolist() == [[0, -1], [-2, -3]]
