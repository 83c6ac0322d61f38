"""Answers -> the photos that are packed with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nbcore.answers import Answers, PhotoPack
from nbcore.checkpoint import Variant
from nbcore.data.photos import Photo
from nbcore.flips.ask import Model
from nbcore.flips.credits import CREDITS, MARKED
from nbcore.flips.pack import pack_photos
from nbcore.flips.telling import Said, choose
from nbcore.preprocessing import preprocess

SAME_BUDGET = 0.02
"""Two macs_ratio closer than this count as one budget."""


def illustrate(
    answers: Answers,
    models: Mapping[str, Model],
    images: Tensor,
    *,
    originals: Mapping[str, Photo],
    limit: int,
    batch_size: int,
) -> PhotoPack:
    """Choose the most telling photos and pack those that keep their answers.

    Args:
        answers: Of all variants.
        models: By variant, to be asked again about what is packed.
        images: The photos uncropped, uint8 [n, 3, S, S].
        originals: Encoded files by name, where there are any.
        limit: Most photos.
        batch_size: Photos per run.
    """
    variants = [models[key].variant for key in answers.answers]
    said = said_of(answers, variants)

    def again(photos: Sequence[Image.Image]) -> np.ndarray:
        found = []
        for variant in variants:
            seen = torch.stack([_seen(photo, variant) for photo in photos])
            found.append(models[variant.id].run(seen, batch_size)[0].numpy())
        return _probs(np.stack(found))

    return pack_photos(
        [position for position in choose(said) if answers.names[position] not in MARKED],
        images,
        said.probs,
        said.predicted,
        ask=again,
        originals={k: originals[name] for k, name in enumerate(answers.names) if name in originals},
        limit=limit,
        credit=CREDITS[answers.dataset],
    )


def said_of(answers: Answers, variants: Sequence[Variant]) -> Said:
    """Answers as the criteria read them, in the order of `variants`."""
    found = [answers.answers[variant.id] for variant in variants]
    none = np.full(len(answers.names), np.nan)
    means = [one.mean_burden() for one in found]
    return Said(
        targets=answers.targets.astype(int),
        probs=_probs(np.stack([one.logits for one in found])),
        predicted=np.stack([one.predicted for one in found]),
        burden=np.stack([none if mean is None else mean for mean in means]),
        pairs=_pairs(variants),
        triples=_triples(variants),
    )


def _probs(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    return torch.from_numpy(logits).double().softmax(-1).numpy()


def _pairs(variants: Sequence[Variant]) -> list[tuple[int, int]]:
    """(dense, pruned from it)."""
    ids = [v.id for v in variants]
    return [(ids.index(v.base), i) for i, v in enumerate(variants) if v.base in ids]


def _triples(variants: Sequence[Variant]) -> list[tuple[int, int, int]]:
    """(dense, pruned without a mitigation, the same host and budget with one)."""
    pairs = _pairs(variants)
    return [
        (dense, i, k)
        for dense, i in pairs
        for other, k in pairs
        if (dense, variants[i].pruner) == (other, variants[k].pruner)
        and variants[i].mitigation == "none"
        and variants[k].mitigation != "none"
        and abs(variants[i].macs_ratio - variants[k].macs_ratio) < SAME_BUDGET
    ]


def _seen(photo: Image.Image, variant: Variant) -> Tensor:
    """What a variant sees of a photo, uint8 [3, S, S]."""
    crop = preprocess(photo, variant.img_size, variant.preprocessing.crop_pct)
    return torch.from_numpy(np.array(crop).transpose(2, 0, 1))
