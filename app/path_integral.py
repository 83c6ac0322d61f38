"""Gradients of a logit integrated from a reference picture to a photo, in as many steps as needed.

Logits of trained models bend sharply in places, so equal steps waste most of theirs: each segment
of the path is integrated by itself, and the one whose sum misses its logit's change by most is
halved, until all misses together are small against the whole change. A segment has five equal
steps, so that halves use its gradients again, and neighbours share the one between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from app.turns import GRADIENTS

BOOLE = (7 / 90, 32 / 90, 12 / 90, 32 / 90, 7 / 90)
"""Weights of five equal steps, exact for polynomials up to the fifth degree."""
FIRST_SEGMENTS = 4
"""At least."""
FAINTEST = 1 / 512
"""A photo nowhere further from its reference has one colour: it is half of what 8 bits tell."""
MAX_STEPS = 101
"""Reached where a logit hardly changes on the whole way, though patches push it up and down: more
gradients then move the map by less than 1 %."""
ACCEPTED_MISS = 0.01
"""What the sum may miss, as a share of the logit's change."""
ACCEPTED_MISSES = 0.03
"""What the segments may miss if none cancels another: a sum can also be right by luck."""
CPU_BATCH, GPU_BATCH = 4, 65
"""Photos differentiated at once: more are no faster on a CPU. On a GPU a pass takes its time to be
asked for, so the first one holds sixteen segments, which is enough for most photos."""

Logit = Callable[[Tensor], Tensor]
"""Images [B, 3, S, S] -> the explained class's logit [B]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PathIntegral:
    """Attributions of a path, or of a piece of it."""

    start: float
    """0 at the reference."""
    end: float
    """1 at the photo."""
    values: Tensor
    """[1, 3, S, S]."""
    miss: float
    """Sum of values minus the change of the logit."""
    steps: int
    """Gradients taken."""

    @property
    def change(self) -> float:
        """What the logit gains on the way."""
        return self.values.double().sum().item() - self.miss


def integrate(logit: Logit, reference: Tensor, image: Tensor) -> PathIntegral:
    """Integrated gradients of one photo.

    Stops when the sum misses at most 1 % of the change, and the segments' misses add up to at most
    3 % regardless of their signs, or when another halving would take more than 101 gradients. On
    photos, maps are then within 2 to 6 % of what 257 gradients give. A photo that does not differ
    from its reference takes none, and its map is zero.

    Args:
        logit: Differentiable with respect to the image.
        reference: Where the path starts [1, 3, S, S].
        image: Where it ends [1, 3, S, S].

    Source:
        Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365. Differs
        in: the segments; within each, Boole's rule, whose gradients serve again in its halves.
        Captum's Gauss-Legendre rule needs new ones, three times as many in the worst case.
    """
    if (image - reference).abs().max() < FAINTEST:
        # Logits at both ends would differ by rounding, and no step makes a sum equal to that.
        return PathIntegral(start=0.0, end=1.0, values=0.0 * image.double(), miss=0.0, steps=0)
    path = _Path(logit, reference, image)
    # Wide batches take and halve several segments at once: they cost no more.
    at_once = max(1, batch_of(image) // (len(BOOLE) - 1))
    first = max(FIRST_SEGMENTS, at_once)
    segments = path.segments(pairwise(k / first for k in range(first + 1)))
    change = sum(s.change for s in segments)
    while not _is_enough(segments, abs(change)):
        count = min(at_once, (MAX_STEPS - path.steps) // (len(BOOLE) - 1))
        worst = sorted(segments, key=lambda s: -abs(s.miss))[:count]
        if not worst:
            break
        halves = [(s.start, (s.start + s.end) / 2, s.end) for s in worst]
        segments = [s for s in segments if s not in worst]
        segments += path.segments(pair for half in halves for pair in pairwise(half))
    return PathIntegral(
        start=0.0,
        end=1.0,
        values=sum((s.values for s in segments[1:]), segments[0].values),
        miss=sum(s.miss for s in segments),
        steps=path.steps,
    )


def _is_enough(segments: Sequence[PathIntegral], change: float) -> bool:
    misses = [s.miss for s in segments]
    return (
        abs(sum(misses)) <= ACCEPTED_MISS * change
        and sum(map(abs, misses)) <= ACCEPTED_MISSES * change
    )


class _Path:
    """The way from the reference to the photo, with what is known of its points."""

    def __init__(self, logit: Logit, reference: Tensor, image: Tensor) -> None:
        self._logit = logit
        self._reference = reference
        self._way = image - reference
        self._known: dict[float, tuple[Tensor, float]] = {}

    @property
    def steps(self) -> int:
        """Gradients taken."""
        return len(self._known)

    def segments(self, ends: Iterable[tuple[float, float]]) -> list[PathIntegral]:
        """Integrals between pairs of places, each from 0 to 1."""
        pairs = list(ends)
        places = [[a + (b - a) * k / (len(BOOLE) - 1) for k in range(len(BOOLE))] for a, b in pairs]
        self._learn(sorted({p for points in places for p in points} - self._known.keys()))
        return self._integrals(places) if places else []

    def _learn(self, places: list[float]) -> None:
        if not places:
            return
        shares = torch.tensor(places).reshape(-1, 1, 1, 1).to(self._way)
        found = gradients_of(self._logit, self._reference + shares * self._way)
        each = (pair for g, logits in found for pair in zip(g, logits.tolist(), strict=True))
        for place, (gradient, value) in zip(places, each, strict=True):
            self._known[place] = gradient[None], value

    def _integrals(self, segments: list[list[float]]) -> list[PathIntegral]:
        """One for each list of places; all at once, since a GPU waits longer for each operation to
        be asked of it than it takes."""
        mean = torch.zeros((), dtype=torch.float64, device=self._way.device)
        for weight, places in zip(BOOLE, zip(*segments, strict=True), strict=True):
            mean = mean + weight * torch.cat([self._known[p][0] for p in places]).double()
        lengths = torch.tensor([points[-1] - points[0] for points in segments], dtype=torch.float64)
        values = lengths.reshape(-1, 1, 1, 1).to(mean.device) * mean * self._way.double()
        return [
            PathIntegral(
                start=points[0],
                end=points[-1],
                values=piece[None],
                miss=total - (self._known[points[-1]][1] - self._known[points[0]][1]),
                steps=len(points),
            )
            for points, piece, total in zip(
                segments, values, values.sum((1, 2, 3)).tolist(), strict=True
            )
        ]


def gradients_of(logit: Logit, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients [b, 3, S, S] and logits [b] of a few images at a time."""
    turns = GRADIENTS[images.device.type]
    for part in images.split(batch_of(images)):
        point = part.detach().requires_grad_()
        with turns.one():
            found = logit(point)
            # Images of a batch do not touch each other, so the sum's gradient is each one's own.
            (gradients,) = torch.autograd.grad(found.sum(), point)
        yield gradients, found.detach()


def batch_of(images: Tensor) -> int:
    """How many images are differentiated at once where these lie."""
    return CPU_BATCH if images.device.type == "cpu" else GPU_BATCH
