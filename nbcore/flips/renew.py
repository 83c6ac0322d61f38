"""The story of a flips file: ask whom nobody asked yet, choose photos, pack them, write."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nbcore import checkpoint
from nbcore.answers import (
    Answer,
    Answers,
    answers_path,
    base_of,
    read_answers,
    renewal,
    stamp_of,
    write_answers,
)
from nbcore.checkpoint import CheckpointError, Manifest, Variant
from nbcore.complete import load_for
from nbcore.data import DATASETS, Prepared, Split
from nbcore.data.photos import Photo
from nbcore.flips.ask import BATCH, Arrays, Model, ask, open_model
from nbcore.flips.credits import CREDITS
from nbcore.flips.illustrate import illustrate
from nbcore.measure import removed_macs
from nbcore.provenance import device_name, library_versions, source_commit
from nbcore.verify import TOP1_TOLERANCE
from nbcore.vit import build_model

NO_CREDIT = (
    "no photos were packed, since nbcore/flips/credits.py does not say where they come from and "
    "under which terms; add a line there"
)


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What was done."""

    path: Path
    asked: tuple[str, ...]
    """Variants that were run; the answers of the others still held."""
    num_variants: int
    num_photos: int
    num_packed: int
    note: str | None
    """What was not done, and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Photos:
    """A test split as one variant sees it."""

    split: Split
    sha256: str


def renew_flips(
    folder: Path,
    dataset: str,
    *,
    data_dir: Path | None,
    device: torch.device,
    work_dir: Path,
    num_photos: int = 300,
    source_dir: Path | None = None,
) -> Renewal:
    """Bring the answers of a data set's variants up to date.

    Args:
        folder: Checkpoint folder.
        dataset: Of its variants.
        data_dir: Prepared photos.
        device: A GPU runs the weights in torch; a CPU runs the exported files where it can.
        work_dir: Where unfinished work lies.
        num_photos: Most photos that are packed.
        source_dir: What the photos were prepared from: then they are packed as they are found
            there, which is smaller and exact.

    Raises:
        CheckpointError: If there is no such variant, a file is damaged, or the photos are not
            those that a variant was tested on.
        ValueError: If the photos are not prepared.
    """
    manifest = checkpoint.read_manifest(folder)
    variants = [v for v in manifest.variants if v.dataset == dataset]
    if not variants:
        known = ", ".join(sorted({v.dataset for v in manifest.variants})) or "none"
        raise CheckpointError(f"no variant of dataset {dataset!r} in {folder}; there are: {known}")
    photos = _photos_of(folder, variants, data_dir)
    split = photos[variants[0].id].split
    old = _old(folder, dataset, split, variants[0].classes)
    held = {v.id: old[v.id] for v in variants if _holds(old.get(v.id), manifest, v, photos)}
    missing = [v for v in variants if v.id not in held]
    models = {v.id: open_model(folder, v, device) for v in variants}
    fresh = _ask_families(manifest, missing, models, photos, device, work_dir)
    found = {
        v.id: held.get(v.id)
        or Answer(
            stamp=stamp_of(v, base_of(manifest, v)),
            photos_sha256=photos[v.id].sha256,
            logits=fresh[v.id]["logits"],
            predicted=fresh[v.id]["predicted"],
            burden=fresh[v.id].get("burden"),
            removed_macs=_removed(manifest, v),
        )
        for v in variants
    }
    for variant in variants:
        _check_accuracy(variant, found[variant.id], split)
    answers = Answers(
        dataset=dataset,
        classes=variants[0].classes,
        names=split.names,
        targets=split.targets.numpy().astype(np.int16),
        answers=found,
        made={
            "command": f"{renewal(dataset)} --photos {num_photos}",
            "commit": source_commit(),
            "versions": library_versions(),
            "device": device_name(device),
            "engines": {key: model.engine for key, model in models.items()},
        },
    )
    if num_photos > 0 and dataset in CREDITS:
        pack = illustrate(
            answers,
            models,
            _widest(folder, variants, photos, data_dir),
            originals=_originals(dataset, source_dir),
            limit=num_photos,
            batch_size=BATCH[device.type],
        )
        answers = replace(answers, photos=pack)
    path = answers_path(folder, dataset)
    write_answers(path, answers)
    return Renewal(
        path=path,
        asked=tuple(v.id for v in missing),
        num_variants=len(variants),
        num_photos=len(split.names),
        num_packed=0 if answers.photos is None else len(answers.photos.positions),
        note=None if dataset in CREDITS else NO_CREDIT,
    )


def _photos_of(
    folder: Path, variants: Sequence[Variant], data_dir: Path | None
) -> dict[str, _Photos]:
    """The test split as each variant sees it; those that see the same share it."""
    views: dict[tuple[int, float], _Photos] = {}
    for variant in variants:
        view = (variant.img_size, variant.preprocessing.crop_pct)
        if view not in views:
            split = load_for(folder, variant, data_dir).test
            digest = hashlib.sha256(split.images.numpy().data).hexdigest()
            views[view] = _Photos(split=split, sha256=digest)
    return {v.id: views[v.img_size, v.preprocessing.crop_pct] for v in variants}


def _old(
    folder: Path, dataset: str, split: Split, classes: tuple[str, ...]
) -> Mapping[str, Answer]:
    """The answers that lie there, if they are on the same photos."""
    with contextlib.suppress(CheckpointError):
        old = read_answers(answers_path(folder, dataset))
        same = (old.names, old.classes) == (split.names, classes)
        if same and np.array_equal(old.targets, split.targets.numpy()):
            return old.answers
    return {}


def _holds(
    answer: Answer | None, manifest: Manifest, variant: Variant, photos: Mapping[str, _Photos]
) -> bool:
    return answer is not None and (answer.stamp, answer.photos_sha256) == (
        stamp_of(variant, base_of(manifest, variant)),
        photos[variant.id].sha256,
    )


def _ask_families(
    manifest: Manifest,
    missing: Sequence[Variant],
    models: Mapping[str, Model],
    photos: Mapping[str, _Photos],
    device: torch.device,
    work_dir: Path,
) -> dict[str, Arrays]:
    """Dense variants and those pruned from them go together, since burdens compare them."""
    families: dict[str, list[Variant]] = {}
    for variant in missing:
        base = base_of(manifest, variant)
        known = base is not None and photos[base.id] is photos[variant.id]
        families.setdefault(base.id if base and known else variant.id, []).append(variant)
    found: dict[str, Arrays] = {}
    for head, members in families.items():
        found |= ask(
            models[head] if models[head].variant.base is None else None,
            [models[v.id] for v in members if v.base is not None],
            photos[head].split.images,
            photos_sha256=photos[head].sha256,
            device=device,
            work_dir=work_dir,
            title=f"{head} and {sum(v.id != head for v in members)} more",
        )
    return found


def _removed(manifest: Manifest, variant: Variant) -> tuple[int, ...]:
    base = base_of(manifest, variant)
    if base is None:
        return ()
    dense = build_model(base.arch, base.merge)
    return tuple(removed_macs(dense, [torch.tensor(site.kept) for site in variant.sites]))


def _check_accuracy(variant: Variant, answer: Answer, split: Split) -> None:
    """Hold the answers against the accuracy that the manifest states."""
    found = float((answer.predicted == split.targets.numpy()).mean())
    stated = variant.metrics.get("top1", found)
    if abs(found - stated) > TOP1_TOLERANCE:
        raise CheckpointError(
            f"variant {variant.id}: {found:.4f} of its answers are right, the manifest says "
            f"{stated:.4f}; give the folder of the photos it was tested on as --data, or re-run "
            f"`python -m nbcore export {variant.id}`"
        )


def _widest(
    folder: Path,
    variants: Sequence[Variant],
    photos: Mapping[str, _Photos],
    data_dir: Path | None,
) -> Tensor:
    """The test photos uncropped, at the size of the variant that sees most."""
    largest = max(variants, key=lambda v: (v.img_size, v.preprocessing.crop_pct))
    if largest.preprocessing.crop_pct == 1:
        return photos[largest.id].split.images
    uncropped = replace(largest.preprocessing, crop_pct=1.0)
    return load_for(folder, replace(largest, preprocessing=uncropped), data_dir).test.images


def _originals(dataset: str, source_dir: Path | None) -> Mapping[str, Photo]:
    loader = DATASETS[dataset]
    if source_dir is None or not isinstance(loader, Prepared):
        return {}
    return loader.open_source(source_dir).photos


def datasets_of(folder: Path) -> tuple[str, ...]:
    """Data sets of the variants in a checkpoint folder."""
    manifest = checkpoint.read_manifest(folder)
    return tuple(dict.fromkeys(v.dataset for v in manifest.variants))
