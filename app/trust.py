"""How far a map can be trusted: what the served file says when patches go in the map's order, and
whether that file and the torch twin that was explained are the same on this very photo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.removal import ServedModel, served_logits

STEPS = 10
"""Pieces of a curve; each map costs twice as many forward passes."""


@dataclass(frozen=True, kw_only=True)
class RemovalScores:
    """Areas under the class's probability, from 0 to 1."""

    deletion: float
    """While patches are removed, the map's highest first; low where the map is right."""
    insertion: float
    """While patches are put back, the map's highest first; high where the map is right."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The file that answered, and its twin that was explained."""

    provider: str
    """ONNX Runtime's provider that really ran."""
    sha256: str
    """Of the ONNX file."""
    difference: float
    """Largest |ONNX - torch| of a logit on this photo."""


def removal_scores(
    served: ServedModel, image: np.ndarray, patches: np.ndarray, target: int, patch_size: int
) -> RemovalScores | None:
    """Deletion and insertion of a map; None for a constant one, which orders nothing.

    A map in random order gives both scores alike on average, so what counts is how far insertion
    lies above deletion. A removed patch is painted in its own mean colour; half-covered photos are
    unlike those that the model learned from, which blurs both scores.

    Args:
        served: The model that is asked.
        image: RGB in [0, 1], float32 [3, S, S].
        patches: The map [rows, columns]; of equal values the one further up and left comes first.
        target: Index of the class.
        patch_size: Pixels along a patch's side.

    Source:
        Petsiuk et al., "RISE", arXiv:1806.07421; Samek et al., "Evaluating the Visualization of
        What a Deep Neural Network Has Learned", arXiv:1509.06321. Differs in: ten pieces of equal
        numbers of patches, the mean colour for both directions, and signed maps by value.
    """
    if np.ptp(patches) == 0:
        return None
    order = np.argsort(-patches.ravel(), kind="stable")
    place = np.argsort(order).reshape(patches.shape)
    counts = np.rint(np.linspace(0, patches.size, STEPS + 1)).astype(int)[:, None, None]
    # The whole photo and the empty one belong to both curves.
    gone = np.concatenate([place < counts, place >= counts[1:-1]])
    logits = served_logits(served, image, gone, patch_size)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    probs = exponents[:, target] / exponents.sum(1)
    deletion = probs[: STEPS + 1]
    insertion = np.concatenate([deletion[-1:], probs[STEPS + 1 :], deletion[:1]])
    share = counts.ravel() / patches.size
    return RemovalScores(
        deletion=float(np.trapezoid(deletion, share)),
        insertion=float(np.trapezoid(insertion, share)),
    )
