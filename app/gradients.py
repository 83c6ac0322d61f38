"""Methods that follow the gradient of a logit back to the pixels (Captum where it is exact).

Gradients come from the torch twin, since ONNX has none. Random draws come from a generator of
their own with a fixed seed: torch's common one is shared by all threads, so two visitors at once
would change each other's maps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.path_integral import batch_of, gradients_of, integrate
from app.question import Found, Question, attribution_method

SEED = 0
SMOOTH_SAMPLES = 16
SMOOTH_NOISE = 0.1
"""Standard deviation of the noise, as a share of the range of pixels (the source: 0.1 to 0.2)."""
SHAP_SAMPLES = 40
NEVER_NEGATIVE = "Never negative: it says how much a patch matters, not in which direction."
FOR_AND_AGAINST = "Positive patches speak for the class, negative ones against it"
SCORE = "Part of the class's score"
REACTION = "Reaction of the class's score"


@attribution_method(
    "integrated_gradients",
    title="Integrated Gradients",
    shows="How much each patch adds to the class's score, on the way from a flat picture in the "
    "photo's mean colour to the photo.",
    sign=f"{FOR_AND_AGAINST}; all patches together add up to the change of the score.",
    cost="a few seconds",
    signed=True,
    unit=SCORE,
)
def integrated_gradients(question: Question) -> Found:
    """Gradients integrated from the photo's mean colour to the photo, in as many steps as needed.

    The reference is flat, so that it shows nothing, and has the photo's own mean colour, so that
    dark and bright objects count alike; it is the same for all variants.

    Source:
        Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365.
    """
    image = _photo(question)
    reference = image.mean((2, 3), keepdim=True).expand_as(image)
    found = integrate(question.logit, reference, image)
    return Found(
        patches=to_patches(found.values, question.patch_size, signed=True),
        completeness_error=abs(found.miss) / max(abs(found.change), 1e-9),
        steps=found.steps,
    )


@attribution_method(
    "saliency",
    title="Gradient",
    shows="How strongly the class's score reacts to small changes of each patch.",
    sign=NEVER_NEGATIVE,
    cost="fast",
    signed=False,
    unit=REACTION,
)
def saliency(question: Question) -> Found:
    """Plain gradient of the logit.

    Source:
        Simonyan et al., "Deep Inside Convolutional Networks", arXiv:1312.6034.
    """
    from captum.attr import Saliency

    values = Saliency(question.logit).attribute(_photo(question).requires_grad_(), abs=False)
    return Found(patches=to_patches(values, question.patch_size, signed=False))


@attribution_method(
    "smoothgrad",
    title="SmoothGrad",
    shows="The gradient averaged over copies of the photo with a little noise, which leaves less "
    "speckle than the gradient of the photo alone.",
    sign=NEVER_NEGATIVE,
    cost="a second or two",
    signed=False,
    unit=REACTION,
)
def smoothgrad(question: Question) -> Found:
    """Mean gradient over noisy copies.

    Source:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", arXiv:1706.03825. Differs in:
        averaged with signs, then taken as size per patch; Captum's NoiseTunnel does the same sum
        from torch's common random numbers, which threads share.
    """
    image = _photo(question)
    noise = torch.randn(SMOOTH_SAMPLES, *image.shape[1:], generator=_generator())
    noisy = image + SMOOTH_NOISE * noise.to(image)
    total = torch.zeros_like(image, dtype=torch.float64)
    for gradients, _ in gradients_of(question.logit, noisy):
        total += gradients.double().sum(0, keepdim=True)
    return Found(
        patches=to_patches(total / SMOOTH_SAMPLES, question.patch_size, signed=False),
        steps=SMOOTH_SAMPLES,
    )


@attribution_method(
    "gradient_shap",
    title="GradientShap",
    shows="How much each patch adds to the class's score on the way from flat pictures in random "
    "colours to the photo, on average: no single reference colour decides.",
    sign=f"{FOR_AND_AGAINST}; all patches together add up to the score's "
    "mean change, but only roughly: the error stands below.",
    cost="a few seconds",
    signed=True,
    unit=SCORE,
)
def gradient_shap(question: Question) -> Found:
    """Expected gradients over flat references in random colours.

    Each reference gets its own point on the way to the photo; the points are spread evenly, which
    halves the error of free ones.

    Source:
        Lundberg and Lee, "A Unified Approach to Interpreting Model Predictions", arXiv:1705.07874,
        as Captum's GradientShap. Differs in: evenly spread points, no noise on the photo, and
        random numbers of its own.
    """
    image, draws = _photo(question), _generator()
    colours = torch.rand(SHAP_SAMPLES, 3, 1, 1, generator=draws)
    spread = torch.randperm(SHAP_SAMPLES, generator=draws).reshape(-1, 1, 1, 1)
    within = torch.rand(SHAP_SAMPLES, 1, 1, 1, generator=draws)
    references = colours.to(image).expand(-1, *image.shape[1:])
    ways = image - references
    points = references + ((spread + within) / SHAP_SAMPLES).to(image) * ways
    gradients = torch.cat([found for found, _ in gradients_of(question.logit, points)])
    values = (ways.double() * gradients.double()).mean(0, keepdim=True)
    with torch.no_grad():
        starts = [question.logit(part).double() for part in references.split(batch_of(image))]
        change = (question.logit(image).double() - torch.cat(starts).mean()).item()
    miss = abs(values.sum().item() - change)
    return Found(
        patches=to_patches(values, question.patch_size, signed=True),
        completeness_error=miss / max(abs(change), 1e-9),
        steps=SHAP_SAMPLES,
    )


@attribution_method(
    "input_x_gradient",
    title="Input × gradient",
    shows="The gradient weighted by the photo's own brightness: a one-step estimate of what each "
    "patch adds, seen from black.",
    sign=f"{FOR_AND_AGAINST}; black ones get nothing.",
    cost="fast",
    signed=True,
    unit=SCORE,
)
def input_x_gradient(question: Question) -> Found:
    """Gradient times pixel values in [0, 1].

    Source:
        Shrikumar et al., "Not Just a Black Box", arXiv:1605.01713.
    """
    from captum.attr import InputXGradient

    values = InputXGradient(question.logit).attribute(_photo(question).requires_grad_())
    return Found(patches=to_patches(values, question.patch_size, signed=True))


def to_patches(values: Tensor, patch_size: int, *, signed: bool) -> np.ndarray:
    """Pixel values [1, 3, S, S] per patch [rows, columns]: summed, or as squares under a root."""
    values = values.detach().double().cpu()
    kind = values if signed else values.pow(2)
    tiles = (
        kind[0]
        .sum(0)
        .unfold(0, patch_size, patch_size)
        .unfold(1, patch_size, patch_size)
        .sum((-2, -1))
    )
    return (tiles if signed else tiles.sqrt()).numpy()


def _photo(question: Question) -> Tensor:
    return torch.from_numpy(question.image)[None].to(question.device)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
