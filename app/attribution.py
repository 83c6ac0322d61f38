"""Image -> AttributionMap: which patches speak for a class, by any method of the table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Imported for the methods that they register.
from app import gradients, removal, token_maps  # noqa: F401
from app.inference import Predictor
from app.question import ATTRIBUTIONS, AttributionMethod, Found, Question
from app.registry import Model
from app.trust import RemovalScores, Served

__all__ = ["ATTRIBUTIONS", "AttributionMap", "AttributionMethod", "Found", "attribute"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributionMap:
    """Where one variant looked for one class, and how far that can be trusted."""

    variant: str
    method: str
    target: str
    """Name of the explained class."""
    values: np.ndarray
    """[rows, columns]; logit units for signed methods."""
    signed: bool
    completeness_error: float | None
    """|sum of values - change| / |change|, change = the logit of the photo minus that of the flat
    reference; None for methods that promise no such sum."""
    steps: int | None
    """Gradients or forward passes taken, for methods that take many."""
    removal: RemovalScores | None
    """Whether the class's probability hangs on what the map points at; None if it is constant."""
    served: Served
    """Which file was explained, and how near its torch twin is on this photo."""
    note: str | None = None
    """What the reader must know, e.g. that the match of merged tokens was frozen."""
    difference: np.ndarray | None = None
    """`values` minus those of the dense base [rows, columns]; None without its map of the same
    class in the same answer, and for the base itself."""
    rank_correlation: float | None = None
    """Spearman's, with the base's map; None like `difference`, or where a map is constant."""
    top_overlap: float | None = None
    """Share of the top tenth of patches that the base's top tenth holds too; None likewise."""
    groups: np.ndarray | None = None
    """Which merged token carries each patch, int64 [rows, columns]; None where nothing merges."""
    picture: Image.Image | None = None
    """Drawn over the model's crop on one scale with the other variants; the service fills it in."""
    difference_picture: Image.Image | None = None
    """`difference`, drawn likewise on a scale that all differences share."""


def attribute(
    model: Model,
    predictor: Predictor,
    image: np.ndarray,
    method: AttributionMethod,
    target: int,
    *,
    group: np.ndarray | None = None,
    unit_gate: np.ndarray | None = None,
) -> Found:
    """Attributions of one class's logit per patch.

    Args:
        model: Its torch twin is used, and its ONNX file by methods that need no gradient.
        predictor: Runs the file, and says where the twin runs.
        image: RGB in [0, 1], float32 [3, S, S].
        method: An entry of `ATTRIBUTIONS`.
        target: Index of the class.
        group: The photo's own match of merged tokens [P], which methods on the twin hold fixed.
        unit_gate: Factors on contributions [U].
    """
    device = predictor.torch_device

    def on_device(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values)[None].to(device)

    def served(images: np.ndarray) -> np.ndarray:
        return predictor.logits(model, images, unit_gate)

    with model.twin(device) as twin, torch.enable_grad():
        return method.compute(
            Question(
                image=image,
                target=target,
                patch_size=model.variant.patch_size,
                served=served,
                model=twin.model,
                device=device,
                gate=on_device(unit_gate),
                group=on_device(group),
            )
        )
