"""Photos without some of their patches, and what the served file says of them.

A patch is removed by painting it in its own mean colour: its detail goes, and no edge or colour
that the photo does not have comes in, to which models would react more than to the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from app.question import REMATCHED, Found, Question, attribution_method

BATCH = 64
"""Copies of a photo made at a time, which take 40 MB at 224 pixels."""
ROUNDING = 1e-5
"""Of a logit. Smaller losses are rounding: a patch of one colour loses nothing by being painted in
it."""
MAX_PASSES = 256
"""Most forward passes that one map may cost."""
ServedModel = Callable[[np.ndarray], np.ndarray]
"""Images [B, 3, S, S] -> logits [B, K]."""


def removed(image: np.ndarray, gone: np.ndarray, patch_size: int) -> np.ndarray:
    """Copies of a photo without some patches.

    Args:
        image: [3, S, S].
        gone: True where a patch is removed [B, rows, columns].
        patch_size: Pixels along a patch's side.

    Returns:
        float32 [B, 3, S, S].
    """
    _, rows, columns = gone.shape
    tiles = image.reshape(3, rows, patch_size, columns, patch_size)
    means = np.broadcast_to(tiles.mean((2, 4), keepdims=True), tiles.shape)
    copies = np.where(gone[:, None, :, None, :, None], means, tiles)
    return copies.reshape(-1, *image.shape).astype(np.float32)


def served_logits(
    served: ServedModel, image: np.ndarray, gone: np.ndarray, patch_size: int
) -> np.ndarray:
    """Logits [B, K] of copies of a photo without some patches [B, rows, columns], few at a time."""
    parts = [
        served(removed(image, gone[start : start + BATCH], patch_size))
        for start in range(0, len(gone), BATCH)
    ]
    return np.concatenate(parts).astype(np.float64)


@attribution_method(
    "occlusion",
    title="Occlusion",
    shows="What the class's score loses when a patch is painted over in its own mean colour; "
    "measured on the very file that is served, with no gradient.",
    sign="Positive patches speak for the class: without them the score falls; negative ones speak "
    "against it.",
    cost="several seconds",
    signed=True,
    unit="Part of the class's score",
    note=REMATCHED,
)
def occlusion(question: Question) -> Found:
    """Logit of the photo minus that without each patch, or each square of patches on fine grids.

    Source:
        Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901.
        Differs in: the patch's mean colour instead of grey.
    """
    rows, columns = question.grid
    squares = squares_of(rows, columns, MAX_PASSES - 1)
    number = int(squares.max()) + 1
    gone = np.concatenate(
        [np.zeros((1, rows, columns), bool), squares == np.arange(number)[:, None, None]]
    )
    logits = served_logits(question.served, question.image, gone, question.patch_size)
    losses = logits[0, question.target] - logits[1:, question.target]
    losses = np.where(np.abs(losses) < ROUNDING, 0.0, losses)
    # A square's loss belongs to its patches in equal parts.
    shares = losses / np.bincount(squares.ravel())
    return Found(patches=shares[squares], steps=len(gone))


def squares_of(rows: int, columns: int, most: int) -> np.ndarray:
    """Number of the square that each patch lies in [rows, columns]: the smallest squares of which
    a grid has at most `most`."""
    side = 1
    while -(-rows // side) * -(-columns // side) > most:
        side += 1
    across = -(-columns // side)
    return (np.arange(rows) // side)[:, None] * across + np.arange(columns) // side
