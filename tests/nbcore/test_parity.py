"""How far a graph may be from its model: tables by hand, and faults that must be seen."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.config import Merge
from nbcore.parity import (
    ExportError,
    Parity,
    _load_errors,
    compare,
    parity_batches,
)
from nbcore.preprocessing import as_input
from tests.nbcore.tiny import AVERAGED, close, metered, tiny

PHOTOS = torch.randint(
    256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
)


@pytest.fixture(scope="module")
def dense() -> MeteredViT:
    return metered(tiny())


@pytest.fixture(scope="module")
def merged() -> MeteredViT:
    return metered(tiny(merge=Merge(block=1, r=6), **AVERAGED))


class Replay:
    """A session that answers with a torch model, altered."""

    def __init__(self, metered: MeteredViT, alter: Any) -> None:
        self.metered = copy.deepcopy(metered).double()
        self.alter = alter
        self.batches: list[int] = []

    def run(self, _: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        image = torch.from_numpy(feed["image"]).double()
        self.batches.append(len(image))
        return [value.numpy() for value in self.alter(self.metered, image)]


def test_a_different_match_is_counted_and_compared_as_given(merged: MeteredViT) -> None:
    def swap(metered: MeteredViT, image: Tensor) -> list[Tensor]:
        group = metered(image)[4]
        if len(image) == 7:
            # Two of seven pictures trade the patches 0 and 15.
            group[[1, 4]] = group[[1, 4]][:, [15, *range(1, 15), 0]]
        return list(metered(image, group=group))

    replay = Replay(merged, swap)
    parity = compare(replay, merged, PHOTOS)  # type: ignore[arg-type]
    assert parity == Parity(logits=0.0, loads=0.0, loads_largest=0.0, images=12, tie_share=2 / 12)
    assert replay.batches == [1, 2, 7, 2]


def test_differences_are_those_of_the_worst_image_and_site(dense: MeteredViT) -> None:
    def alter(metered: MeteredViT, image: Tensor) -> list[Tensor]:
        before = metered(image)
        logits, unit_load, token_load, stream = (value.clone() for value in before)
        if len(image) == 2:
            logits[1, 3] += 0.25
        if len(image) == 7:
            # 3² + 4² = 5²: a hundredth of the length of site 3 in one photo.
            token_load[6, 3, 2] -= 0.006 * before[2][6, 3].norm()
            token_load[6, 3, 9] += 0.008 * before[2][6, 3].norm()
        return [logits, unit_load, token_load, stream]

    parity = compare(Replay(dense, alter), dense, PHOTOS)  # type: ignore[arg-type]
    assert parity.logits == pytest.approx(0.25)
    row = dense(as_input(PHOTOS).double())[2][9, 3]
    assert parity.loads == pytest.approx(0.01)
    assert parity.loads_largest == pytest.approx((0.008 * row.norm() / row.max()).item())
    assert parity.tie_share is None


def scaled(output: int, where: Any) -> Any:
    """An alteration: loads a fifty-thousandth too large."""

    def alter(metered: MeteredViT, image: Tensor) -> list[Tensor]:
        outputs = [value.clone() for value in metered(image)]
        part = outputs[output][where]
        outputs[output][where] = part * (1 + 2e-5)
        return outputs

    return alter


def faintest_unit(dense: MeteredViT) -> int:
    """The neuron of block 0 with the smallest load over all photos."""
    sites = dense.model.sites
    return sites[1].start + int(
        dense(as_input(PHOTOS).double())[1][:, sites[1].units].norm(dim=0).argmin()
    )


@pytest.mark.parametrize("place", ["unit", "head", "patch", "site", "stream", "batch"])
def test_loads_that_are_off_by_two_hundred_thousandths_are_refused(
    place: str, dense: MeteredViT
) -> None:
    everywhere = slice(None)
    output, where = {
        "unit": (1, (everywhere, faintest_unit(dense))),
        "head": (1, (everywhere, 2)),
        "patch": (2, (everywhere, 3, 5)),
        "site": (2, (0, 1)),
        "stream": (3, (0, 2)),
        "batch": (1, (0,)),
    }[place]
    parity = compare(Replay(dense, scaled(output, where)), dense, PHOTOS)  # type: ignore[arg-type]
    assert parity.logits == 0
    assert parity.loads == pytest.approx(2e-5, rel=1e-6)
    with pytest.raises(ExportError, match=r"any: ONNX and torch loads differ by 2\.00e-05"):
        parity.check("any", "do so")


def test_errors_of_a_table_by_hand() -> None:
    # Photos (3, 4, 0) and (0, 0, 10); the error is 0.5 in the first load of the first photo, 0.6
    # and 0.8 in the last two of the second. Rows: 0.5 / 5 and 1 / 10. Columns: 0.5 / 3, 0.6 / 4,
    # 0.8 / 10. Single loads: 0.5 / 4 and 0.8 / 10.
    wanted = torch.tensor([[3.0, 4, 0], [0, 0, 10]]).double()
    error = torch.tensor([[0.5, 0, 0], [0, 0.6, -0.8]]).double()
    close(
        _load_errors(wanted + error, wanted), torch.tensor([0.5 / 3, 0.5 / 4], dtype=torch.float64)
    )


def test_a_load_near_zero_is_held_against_a_tenth_of_the_others() -> None:
    # Column lengths 10, 10, 10 and 1/8; their root mean square is sqrt(300.016 / 4) = 8.66.
    wanted = torch.full((1, 4), 10.0).double()
    wanted[0, 3] = 0.125
    found = wanted.clone()
    found[0, 3] += 0.5**10
    floor = 0.1 * math.sqrt((300 + 0.125**2) / 4)
    right = torch.tensor([0.5**10 / floor, 0.5**10 / 10], dtype=torch.float64)
    close(_load_errors(found, wanted), right)


def test_loads_of_zero_must_be_met() -> None:
    zero = torch.zeros(2, 3).double()
    assert _load_errors(zero, zero).tolist() == [0, 0]
    assert _load_errors(zero + 1e-9, zero).min() > 1


def test_not_a_number_is_no_parity(dense: MeteredViT) -> None:
    def alter(metered: MeteredViT, image: Tensor) -> list[Tensor]:
        outputs = list(metered(image))
        if len(image) == 2:
            outputs[2][0, 0, 0] = math.nan
        return outputs

    parity = compare(Replay(dense, alter), dense, PHOTOS)  # type: ignore[arg-type]
    assert math.isnan(parity.loads)
    with pytest.raises(ExportError, match="loads differ by nan"):
        parity.check("any", "do so")


@pytest.mark.parametrize(("logits", "loads"), [(1.1e-5, 0), (0, 1.1e-5)])
def test_a_hundred_thousandth_is_the_limit(logits: float, loads: float) -> None:
    just = Parity(logits=1e-5, loads=1e-5, loads_largest=1, images=3, tie_share=None)
    just.check("any", "do so")
    with pytest.raises(ExportError, match=r"by 1\.10e-05 on 3 images, at most 1e-05 .*; do so"):
        replace(just, logits=logits, loads=loads).check("any", "do so")


def test_parity_needs_an_image(dense: MeteredViT) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        compare(Replay(dense, None), dense, PHOTOS[:0])  # type: ignore[arg-type]


def test_parity_starts_with_one_two_and_seven_images() -> None:
    sizes = [len(batch) for batch in parity_batches(torch.zeros(50, 1))]
    assert sizes == [1, 2, 7, 32, 8]
