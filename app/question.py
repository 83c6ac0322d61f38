"""What a method of attribution is asked, what it answers, and the table of all methods.

A new method is one function with one `attribution_method` line, in a module that
`app.attribution` imports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from app.path_integral import Logit
from nbcore.registry import Registry
from nbcore.vit import PrunableViT


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Which patches of one photo speak for one class of one model."""

    image: np.ndarray
    """RGB in [0, 1], float32 [3, S, S]."""
    target: int
    """Index of the explained class."""
    patch_size: int
    served: Callable[[np.ndarray], np.ndarray]
    """Images [B, 3, S, S] -> logits [B, K] of the ONNX file that is served; no gradients."""
    model: PrunableViT
    """The torch twin, locked for this question; whatever is hooked to it must be taken off."""
    device: str
    gate: Tensor | None
    """Factors on contributions [1, U]; None means ones."""
    group: Tensor | None
    """The photo's own match of merged tokens [1, P], frozen because it would jump along a path."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        _, height, width = self.image.shape
        return height // self.patch_size, width // self.patch_size

    @property
    def logit(self) -> Logit:
        """Images [B, 3, S, S] -> the explained class's logit of the torch twin [B]."""

        def logit(images: Tensor) -> Tensor:
            group = None if self.group is None else self.group.expand(len(images), -1)
            return self.model(images, self.gate, group)[:, self.target]

        return logit


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a method answers."""

    patches: np.ndarray
    """float64 [rows, columns]."""
    completeness_error: float | None = None
    """|sum of patches - change| / |change|, change = the logit of the photo minus that of the
    reference; None for methods that promise no such sum."""
    steps: int | None = None
    """Forward passes, or gradients, of methods that take many."""


class Compute(Protocol):
    def __call__(self, question: Question, /) -> Found:
        """Attribute the logit of a class to the patches of a photo."""


@dataclass(frozen=True, kw_only=True)
class AttributionMethod:
    """An entry of the menu."""

    name: str
    title: str
    shows: str
    """One sentence in plain words."""
    sign: str
    """What positive and negative values mean."""
    cost: str
    """A word or two: what it takes."""
    signed: bool
    unit: str
    """What the values are, as the colour scale is titled."""
    note: str | None
    """What must be known of models that merge tokens."""
    compute: Compute


FROZEN = (
    "Patches that this model merges were held together as on this photo, since the match would "
    "jump on the way."
)
REMATCHED = (
    "This model merges patches anew on every altered photo, as the served file does, so a "
    "patch's value holds what its removal does to the merging too."
)
ATTRIBUTIONS: Registry[AttributionMethod] = Registry("attribution method")


def attribution_method(
    name: str,
    *,
    title: str,
    shows: str,
    sign: str,
    cost: str,
    signed: bool,
    unit: str,
    note: str | None = FROZEN,
) -> Callable[[Compute], Compute]:
    """Decorator that puts a function into `ATTRIBUTIONS`."""

    def add(compute: Compute) -> Compute:
        entry = AttributionMethod(
            name=name,
            title=title,
            shows=shows,
            sign=sign,
            cost=cost,
            signed=signed,
            unit=unit,
            note=note,
            compute=compute,
        )
        ATTRIBUTIONS.register(name)(entry)
        return compute

    return add
