"""Which photos are packed, and that packing changes no answer, on hand-made answers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nbcore.data.photos import Photo
from nbcore.flips.credits import CREDITS
from nbcore.flips.pack import MOST_CHANGE, encode, pack_photos
from nbcore.flips.telling import CRITERIA, NO, Said, choose

CREDIT = CREDITS["shapes"]


def said(*photos: tuple[int, float, float, float]) -> Said:
    """Two classes; of each photo the target and what dense, plain and mitigated give class 1."""
    ones = np.array([photo[1:] for photo in photos]).T
    burden = np.array([[np.nan, 1 + k, 1.5] for k in range(len(photos))]).T
    return Said(
        targets=np.array([photo[0] for photo in photos]),
        probs=np.stack([1 - ones, ones], -1),
        predicted=(ones > 0.5).astype(int),
        burden=burden,
        pairs=[(0, 1), (0, 2)],
        triples=[(0, 1, 2)],
    )


PHOTOS = (
    (1, 0.9, 0.2, 0.8),  # dense right, plain wrong, mitigated right
    (1, 0.9, 0.8, 0.1),  # dense right, plain right, mitigated wrong
    (1, 0.3, 0.7, 0.4),  # dense wrong, plain right
    (0, 0.7, 0.9, 0.8),  # all wrong
    (0, 0.1, 0.1, 0.4),  # all right, mitigated less sure by 0.3
    (1, 0.9, 0.4, 0.6),  # as the first one, less clearly
    (1, 0.95, 0.05, 0.4),  # dense right, both others wrong
)


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        # p(truth) of mitigated minus that of plain.
        ("repaired", [0.6, NO, NO, NO, NO, 0.2, NO]),
        ("harmed", [NO, 0.7, NO, NO, NO, NO, NO]),
        # p(truth) of dense minus that of whichever pruned model is wrong by most.
        ("broken", [0.7, 0.8, NO, NO, NO, 0.5, 0.9]),
        ("gained", [NO, NO, 0.4, NO, NO, NO, NO]),
        # Mean confidence in the wrong class: (0.7 + 0.9 + 0.8) / 3.
        ("all_wrong", [NO, NO, NO, 0.8, NO, NO, NO]),
        ("shaken", [NO, NO, NO, NO, 0.3, NO, NO]),
        ("burdened", [1.5, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_criteria_by_hand(name: str, scores: list[float]) -> None:
    found = np.max(list(CRITERIA[name].scores(said(*PHOTOS))), axis=0)
    assert found == pytest.approx(scores)


def test_criteria_and_classes_take_turns_and_no_photo_comes_twice() -> None:
    order = choose(said(*PHOTOS))
    # In the order of names. all_wrong: 3; broken takes two: 6, 1; burdened takes the best of each
    # class that is left: 4, 5; gained: 2; harmed has none left; repaired: 0.
    assert order == [3, 6, 1, 4, 5, 2, 0]


def test_without_a_mitigation_the_other_criteria_still_choose() -> None:
    alone = said((1, 0.9, 0.2, 0.2), (0, 0.2, 0.3, 0.3))
    found = Said(**{**vars(alone), "triples": [], "burden": np.full((3, 2), np.nan)})
    assert choose(found) == [0, 1]


def photos(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(count, 3, 8, 8, generator=generator)
    large = torch.nn.functional.interpolate(small, side, mode="bicubic").clamp(0, 1)
    return (255 * large).byte()


def packed(images: Tensor, answers: Sequence[float], **options: object) -> list[int]:
    """Positions packed of photos that get class 1 with 0.52, and with `answers` once packed."""
    ones = np.full((1, len(images)), 0.52)
    probs = np.stack([1 - ones, ones], -1)

    def ask(shown: Sequence[Image.Image]) -> np.ndarray:
        again = np.array([answers[: len(shown)]])
        return np.stack([1 - again, again], -1)

    options = {"originals": {}, "limit": len(images)} | options
    pack = pack_photos(
        range(len(images)),
        images,
        probs,
        probs.argmax(-1),
        ask=ask,
        credit=CREDIT,
        **options,  # type: ignore[arg-type]
    )
    changes = [abs(answers[k] - 0.52) for k in pack.positions] if not options["originals"] else [0]
    assert pack.largest_change == pytest.approx(max(changes, default=0))
    return pack.positions.tolist()


def test_photos_that_change_when_packed_are_left_out_and_others_take_their_place() -> None:
    images = photos(5, 96)
    # Photo 1 changes too much, photo 3 little, but to the other class.
    changed = [0.52, 0.52 + MOST_CHANGE + 0.01, 0.55, 0.49, 0.54]
    assert packed(images, changed) == [0, 2, 4]
    assert packed(images, changed, limit=2) == [0, 2]


def test_original_files_are_taken_where_they_hold_the_very_pixels(tmp_path: Path) -> None:
    drawn = photos(1, 96)[0]
    file = io.BytesIO()
    Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=40)
    path = tmp_path / "archive"
    path.write_bytes(b"before" + file.getvalue() + b"after")
    original = Photo(name="a", target=0, path=path, offset=6, size_bytes=len(file.getvalue()))
    pixels = np.asarray(Image.open(io.BytesIO(file.getvalue()))).transpose(2, 0, 1).copy()
    image = torch.from_numpy(pixels)
    assert encode(image, original) == file.getvalue()
    assert encode(drawn, original) != file.getvalue()
    # Nobody is asked about photos that are exact: an answer of 0 would leave it out.
    assert packed(image[None], [0.0], originals={0: original}) == [0]


@pytest.mark.parametrize(("side", "kind"), [(32, "WEBP"), (96, "JPEG")])
def test_small_photos_are_kept_without_loss_and_large_ones_nearly(side: int, kind: str) -> None:
    image = photos(1, side)[0]
    with Image.open(io.BytesIO(encode(image))) as found:
        assert found.format == kind
        difference = np.asarray(found).transpose(2, 0, 1).astype(int) - image.numpy()
    assert abs(difference).max() <= (0 if kind == "WEBP" else 40)
    assert abs(difference).mean() < 3
