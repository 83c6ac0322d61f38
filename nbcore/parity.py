"""ONNX against torch: how far a graph is from the model it was made of.

Both run on the same photos, torch in double precision: in single precision its own rounding is
the larger part of the difference. Merging models are compared given the graph's match.

    logits   largest |found - wanted|
    loads    largest ||found - wanted|| / ||wanted||, Euclidean, over the rows and the columns of
             each site's tables: photos × units, photos × patches, and the stream, photos × 1

A row is one site in one photo; its norm is the site's load (times √P for patches), so the site
loads, and the burden made of them, are as close as the rows say. A column is one unit, or one
patch, over all photos: one number for each load the graph computes, so that a fault in a single
unit is seen however faint the unit is. Columns below a tenth of their table's root mean square
are held against that tenth, since GELU's tail is a difference of ones, which no float32 has to
five digits.

What is left out is the single entry, one patch in one photo. It has no five digits in float32:
attention multiplies the rounding of all that comes before it by its scores, up to 70 in the
shipped models. Against the largest load of its site and photo the worst of a million entries is
off by 0.4e-5 (dense) to 1.4e-5 (a quarter of the MACs, one head per block), torch's own float32 by
up to 2.2e-5. The load formula costs 0.02e-5 of that (0.16e-5 after `handoff`). No level of graph
optimisation, and no first convolution without cancellation, brought all of them below 1e-5.
`Parity.loads_largest` states it; it is no limit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.preprocessing import as_input

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-5
PARITY_IMAGES = 256
PARITY_BATCHES = (1, 2, 7)
COLUMN_FLOOR = 0.1


class ExportError(RuntimeError):
    """The exported graph does not compute what the torch model computes."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Largest differences between the ONNX graph and torch."""

    logits: float
    """Absolute."""
    loads: float
    """Relative, in the Euclidean norm, of a row or a column of the loads' tables."""
    loads_largest: float
    """Of a single load, relative to the largest of its site in that photo; stated, no limit."""
    images: int
    tie_share: float | None
    """Share of images whose patches the two match differently (compared given equal matches); None
    without merging."""

    def check(self, name: str, remedy: str) -> None:
        """Raise ExportError if a difference is above the tolerance; `remedy` ends its text."""
        for what, value in (("logits", self.logits), ("loads", self.loads)):
            if not value <= TOLERANCE:
                raise ExportError(
                    f"{name}: ONNX and torch {what} differ by {value:.2e} on {self.images} images, "
                    f"at most {TOLERANCE:.0e} is accepted; {remedy}"
                )


def parity_batches(images: Tensor) -> Iterator[Tensor]:
    """Batches of 1, 2 and 7 images first, then the rest by 32; none of them empty."""
    first, rest = images[: sum(PARITY_BATCHES)], images[sum(PARITY_BATCHES) :]
    ends = list(accumulate(PARITY_BATCHES))[:-1]
    yield from (batch for batch in (*first.tensor_split(ends), *rest.split(32)) if len(batch))


@torch.no_grad()
def compare(session: onnxruntime.InferenceSession, metered: MeteredViT, images: Tensor) -> Parity:
    """Run a graph and its torch twin on the same photos.

    Args:
        session: Of the exported file.
        metered: The torch model on the CPU, in evaluation mode.
        images: uint8 [n, 3, S, S], at least one.

    Raises:
        ValueError: If there is no image to compare on.
    """
    if not len(images):
        raise ValueError("comparing a graph with torch needs at least one image")
    reference = copy.deepcopy(metered).double()
    merging, ties = metered.model.merge is not None, 0
    found: list[list[Tensor]] = []
    wanted: list[Sequence[Tensor]] = []
    for batch in parity_batches(images):
        x = as_input(batch)
        outputs = [torch.from_numpy(value) for value in session.run(None, {"image": x.numpy()})]
        group = outputs[4] if merging else None
        if merging:
            ties += int((reference(x.double())[4] != group).any(1).sum())
        found.append([value.double() for value in outputs[:4]])
        wanted.append(reference(x.double(), group=group)[:4])
    logits, loads, largest = differences(
        [torch.cat(parts) for parts in zip(*found, strict=True)],
        [torch.cat(parts) for parts in zip(*wanted, strict=True)],
        [site.num_units for site in metered.model.sites],
    )
    return Parity(
        logits=logits,
        loads=loads,
        loads_largest=largest,
        images=len(images),
        tie_share=ties / len(images) if merging else None,
    )


def differences(
    found: Sequence[Tensor], wanted: Sequence[Tensor], num_units: Sequence[int]
) -> tuple[float, float, float]:
    """Largest differences of outputs, as `Parity` names them: logits, loads, single loads.

    Args:
        found: logits [n, K], unit_load [n, U], token_load [n, L, P] and stream [n, L] of a graph.
        wanted: The same of its torch model in double precision.
        num_units: Units of each site; sums to U.
    """
    logits = (found[0] - wanted[0]).abs().max().item()
    tables = zip(_tables(found, num_units), _tables(wanted, num_units), strict=True)
    loads, largest = torch.stack([_load_errors(*pair) for pair in tables]).amax(0).tolist()
    return logits, loads, largest


def _tables(outputs: Sequence[Tensor], num_units: Sequence[int]) -> Iterator[Tensor]:
    """Per site its unit loads [n, units], its token loads [n, P] and its stream [n, 1]."""
    _, units, tokens, stream = outputs
    yield from units.split(list(num_units), 1)
    yield from tokens.unbind(1)
    yield from stream.split(1, 1)


def _load_errors(found: Tensor, wanted: Tensor) -> Tensor:
    """Error of the worst row or column, and of the worst single load, of a table [n, loads].

    Not-a-number wins over every number. A row of zeros must be met.
    """
    error, tiny = found - wanted, torch.finfo(wanted.dtype).tiny
    rows, columns = wanted.norm(dim=1), wanted.norm(dim=0)
    floor = COLUMN_FLOOR * columns.pow(2).mean().sqrt()
    worst = torch.cat(
        [
            error.norm(dim=1) / rows.clamp_min(tiny),
            error.norm(dim=0) / torch.maximum(columns, floor).clamp_min(tiny),
        ]
    )
    largest = error.abs().amax(1) / wanted.amax(1).clamp_min(tiny)
    return torch.stack([worst.max(), largest.max()])
