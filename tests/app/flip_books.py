"""A book of answers small enough to count by hand: three classes, eight photos, three models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.catalog import VariantInfo
from app.flips import Chapter
from nbcore.answers import Answer, Answers, PhotoPack

CLASSES = ("a", "b", "c")
TARGETS = (0, 0, 0, 1, 1, 1, 2, 2)
SAID = {
    # photo: 0  1  2  3  4  5  6  7
    "dense": (0, 0, 1, 1, 1, 0, 2, 0),
    "plain": (0, 1, 1, 0, 1, 1, 2, 1),
    "mended": (0, 0, 0, 2, 1, 0, 1, 0),
}
SURE = {
    "dense": (0.9, 0.8, 0.5, 0.7, 0.6, 0.6, 0.9, 0.4),
    "plain": (0.8, 0.5, 0.6, 0.5, 0.9, 0.4, 0.7, 0.58),
    "mended": (0.9, 0.6, 0.5, 0.5, 0.8, 0.5, 0.5, 0.4),
}
"""Probability of what is said; the two other classes share the rest."""
BURDEN: dict[str, tuple[float, ...]] = {
    "plain": (1.0, 1.5, 2.0, 1.25, 1.1, 0.9, 3.0, np.nan),
    "mended": (2.0,) * 8,
}
PACKED = (1, 6)


def info(name: str, *, base: str | None = "dense", mitigation: str | None = None) -> VariantInfo:
    return VariantInfo(
        id=name,
        title=name,
        dataset="toys",
        base=base,
        pruner=None if base is None else "taylor",
        mitigation=mitigation,
        macs_ratio=1.0 if base is None else 0.5,
        macs=1,
        num_params=1,
        size_bytes=1,
        metrics={},
        classes=CLASSES,
        img_size=32,
        grid=(4, 4),
        site_names=("blocks.0.attn", "blocks.0.mlp"),
        merges=False,
        is_default=True,
    )


INFOS = (
    info("dense", base=None),
    info("plain", mitigation="none"),
    info("mended", mitigation="handoff"),
)


def probs(name: str) -> np.ndarray:
    """Probabilities of a model [8, 3]."""
    found = np.repeat((1 - np.array(SURE[name]))[:, None] / 2, 3, axis=1)
    found[np.arange(8), SAID[name]] = SURE[name]
    return found


def answer(name: str) -> Answer:
    burden = BURDEN.get(name)
    return Answer(
        stamp=name,
        photos_sha256="",
        logits=np.log(probs(name)).astype(np.float16),
        predicted=np.array(SAID[name], np.int16),
        burden=None if burden is None else np.array([burden, burden], np.float16).T,
        removed_macs=() if burden is None else (1, 1),
    )


def chapter(
    infos: Sequence[VariantInfo] = INFOS, refused: Mapping[str, str] | None = None
) -> Chapter:
    """The book's only chapter."""
    answers = Answers(
        dataset="toys",
        classes=CLASSES,
        names=tuple(f"test/{k}" for k in range(8)),
        targets=np.array(TARGETS, np.int16),
        answers={name: answer(name) for name in SAID},
        photos=PhotoPack(
            positions=np.array(PACKED, np.int32),
            data=np.frombuffer(b"RIFFone\xff\xd8two", np.uint8),
            offsets=np.array([0, 7, 12]),
            largest_change=0.02,
            source="<drawn>",
            licence="free & open",
        ),
    )
    return Chapter(answers, infos, refused or {})
