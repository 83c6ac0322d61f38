"""Image -> AttributionMap (Captum): which patches speak for a class.

Gradients come from the torch twin, since ONNX has none. A new method is one function with one
`attribution_method` line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from app.path_integral import Logit, integrate
from app.registry import Model
from nbcore.registry import Registry


@dataclass(frozen=True, kw_only=True)
class PixelAttribution:
    """What a method says of every pixel."""

    values: Tensor
    """[1, 3, S, S]."""
    completeness_error: float | None = None
    steps: int | None = None


class Compute(Protocol):
    def __call__(self, logit: Logit, image: Tensor) -> PixelAttribution:
        """Attribute a logit to the pixels of one image.

        Args:
            logit: Differentiable with respect to the image.
            image: RGB in [0, 1], [1, 3, S, S], requires grad.
        """


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
    signed: bool
    """Signed values are summed over a patch, unsigned ones as squares under a root."""
    compute: Compute


@dataclass(frozen=True, kw_only=True)
class AttributionMap:
    """Where one variant looked for one class."""

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
    """Gradients taken along the path, for methods that take one."""
    note: str | None
    """What the reader must know, e.g. that the match of merged tokens was frozen."""
    picture: Image.Image | None = None
    """Drawn over the model's crop on one scale with the other variants; the service fills it in."""


ATTRIBUTIONS: Registry[AttributionMethod] = Registry("attribution method")


def attribution_method(
    name: str, *, title: str, shows: str, sign: str, cost: str, signed: bool
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
            compute=compute,
        )
        ATTRIBUTIONS.register(name)(entry)
        return compute

    return add


@attribution_method(
    "integrated_gradients",
    title="Integrated Gradients",
    shows="How much each patch adds to the class's score, on the way from a flat picture in the "
    "photo's mean colour to the photo.",
    sign="Positive patches speak for the class, negative ones against it; all patches together add "
    "up to the change of the score.",
    cost="a few seconds",
    signed=True,
)
def integrated_gradients(logit: Logit, image: Tensor) -> PixelAttribution:
    """Gradients integrated from the photo's mean colour to the photo, in as many steps as needed.

    The reference is flat, so that it shows nothing, and has the photo's own mean colour, so that
    dark and bright objects count alike; it is the same for all variants.

    Source:
        Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365.
    """
    reference = image.detach().mean((2, 3), keepdim=True).expand_as(image)
    found = integrate(logit, reference, image.detach())
    return PixelAttribution(
        values=found.values,
        completeness_error=abs(found.miss) / max(abs(found.change), 1e-9),
        steps=found.steps,
    )


@attribution_method(
    "saliency",
    title="Gradient (fast)",
    shows="How strongly the class's score reacts to small changes of each patch.",
    sign="Never negative: it says how much a patch matters, not in which direction.",
    cost="well under a second",
    signed=False,
)
def saliency(logit: Logit, image: Tensor) -> PixelAttribution:
    """Plain gradient of the logit.

    Source:
        Simonyan et al., "Deep Inside Convolutional Networks", arXiv:1312.6034.
    """
    from captum.attr import Saliency

    return PixelAttribution(values=Saliency(logit).attribute(image, abs=False))


@attribution_method(
    "input_x_gradient",
    title="Input × gradient (fast)",
    shows="The gradient weighted by the photo's own brightness: a one-step estimate of what each "
    "patch adds, seen from black.",
    sign="Positive patches speak for the class, negative ones against it; black ones get nothing.",
    cost="well under a second",
    signed=True,
)
def input_x_gradient(logit: Logit, image: Tensor) -> PixelAttribution:
    """Gradient times pixel values in [0, 1].

    Source:
        Shrikumar et al., "Not Just a Black Box", arXiv:1605.01713.
    """
    from captum.attr import InputXGradient

    return PixelAttribution(values=InputXGradient(logit).attribute(image))


def attribute(
    model: Model,
    image: np.ndarray,
    method: AttributionMethod,
    target: int,
    device: str,
    *,
    group: np.ndarray | None = None,
    unit_gate: np.ndarray | None = None,
) -> tuple[np.ndarray, PixelAttribution]:
    """Attributions of one class's logit per patch [rows, columns], and per pixel.

    Args:
        model: Its torch twin is used.
        image: RGB in [0, 1], float32 [3, S, S].
        method: An entry of `ATTRIBUTIONS`.
        target: Index of the class.
        device: "cpu" or "cuda".
        group: The photo's own match of merged tokens [P], frozen because it would jump along a
            path.
        unit_gate: Factors on contributions [U].
    """

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values)[None].to(device)

    match = None if group is None else on_device(group)
    gate = None if unit_gate is None else on_device(unit_gate)
    with model.twin(device) as twin, torch.enable_grad():

        def logit(images: Tensor) -> Tensor:
            own = None if match is None else match.expand(len(images), -1)
            return twin.model(images, gate, own)[:, target]

        found = method.compute(logit, on_device(image).requires_grad_())
    found = replace(found, values=found.values.detach().double().cpu())
    return to_patches(found.values, model.variant.patch_size, signed=method.signed), found


def to_patches(values: Tensor, patch_size: int, *, signed: bool) -> np.ndarray:
    """Pixel values [1, 3, S, S] per patch [rows, columns]: summed, or as squares under a root."""
    kind = values if signed else values.pow(2)
    tiles = (
        kind[0]
        .sum(0)
        .unfold(0, patch_size, patch_size)
        .unfold(1, patch_size, patch_size)
        .sum((-2, -1))
    )
    return (tiles if signed else tiles.sqrt()).numpy()
