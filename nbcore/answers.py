"""What every shipped variant answers on a whole test split: one file per data set, made by
`python -m nbcore flips` and read by the app.

The file is `flips/DATASET.npz` in the checkpoint folder. Logits and burdens are kept in half
precision; the top class was found in single precision, so counts are those of the full numbers.
Each variant's answers bear the stamp of what gave them. Answers whose stamp is not that of the
manifest are stale, and whoever reads them is told which command renews them.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nbcore.checkpoint import (
    CheckpointError,
    Manifest,
    Variant,
    to_json,
    variant_to_json,
    write_atomically,
)

FORMAT = 1
ARCHIVE_FAULTS = (zipfile.BadZipFile, zlib.error)
FOLDER = "flips"
STAMPED = ("arch", "merge", "img_size", "classes", "preprocessing", "sites")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What one variant says of every photo."""

    stamp: str
    """From `stamp_of` when it was asked."""
    photos_sha256: str
    """Of the pixels it saw."""
    logits: np.ndarray
    """float16 [n, K]."""
    predicted: np.ndarray
    """int16 [n]: the top class."""
    burden: np.ndarray | None
    """float16 [n, L], load of the survivors over their load in the dense base; None for dense
    variants and those without a base."""
    removed_macs: tuple[int, ...]
    """MACs that each site lost [L]: the weights of the mean burden."""

    def mean_burden(self) -> np.ndarray | None:
        """Burden of each photo, sites weighted by the MACs they lost, float64 [n]; not a number
        where no site has one."""
        if self.burden is None:
            return None
        values, weights = self.burden.astype(np.float64), np.asarray(self.removed_macs, np.float64)
        known = np.where(np.isfinite(values), weights, 0.0)
        total = known.sum(1)
        summed = (np.where(known > 0, values, 0.0) * known).sum(1)
        return np.divide(summed, total, out=np.full(len(values), np.nan), where=total > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoPack:
    """Some of the photos, small."""

    positions: np.ndarray
    """int32 [m]: which photos of the split, the most telling first."""
    data: np.ndarray
    """uint8: JPEG and WebP files one after the other."""
    offsets: np.ndarray
    """int64 [m + 1]."""
    largest_change: float
    """Largest change of any variant's probability of any class by the packing; the top classes
    are unchanged."""
    source: str
    licence: str

    def photo(self, number: int) -> bytes:
        """The file of a place in `positions`."""
        return self.data[self.offsets[number] : self.offsets[number + 1]].tobytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """A file's content."""

    dataset: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """Of the photos [n]."""
    targets: np.ndarray
    """int16 [n]."""
    answers: Mapping[str, Answer]
    """By variant, in the order of the manifest."""
    photos: PhotoPack | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    """Command, commit, versions and device."""


def kind_of(photo: bytes) -> str:
    """jpeg or webp."""
    return "webp" if photo[:4] == b"RIFF" else "jpeg"


def answers_path(folder: Path, dataset: str) -> Path:
    """Where the answers of a data set lie in a checkpoint folder."""
    return folder / FOLDER / f"{dataset}.npz"


def renewal(dataset: str) -> str:
    """The command that makes a data set's answers anew."""
    return f"python -m nbcore flips --dataset {dataset} --data DIR"


def stamp_of(variant: Variant, base: Variant | None) -> str:
    """A digest that changes with everything the answers depend on: weights, architecture, crop and
    classes of a variant and of its dense base. An exported file is not part of it, since its
    export has shown that it answers as the weights do."""
    parts = []
    for one in (variant, base):
        entry = {} if one is None else variant_to_json(one)
        parts.append({key: entry.get(key) for key in STAMPED})
        parts[-1]["weights"] = None if one is None else one.files["weights"].sha256
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def base_of(manifest: Manifest, variant: Variant) -> Variant | None:
    """The dense base of a variant; None for a dense one, or where the manifest lacks it."""
    return next((other for other in manifest.variants if other.id == variant.base), None)


def stale(answers: Answers, manifest: Manifest) -> dict[str, str]:
    """Why answers of the manifest's variants cannot be shown, by id."""
    reasons = {}
    again = f"renew the answers with `{renewal(answers.dataset)}`"
    for variant in manifest.variants:
        if variant.dataset != answers.dataset:
            continue
        found = answers.answers.get(variant.id)
        if found is None:
            reasons[variant.id] = f"variant {variant.id}: nobody asked it yet; {again}"
        elif found.stamp != stamp_of(variant, base_of(manifest, variant)):
            reasons[variant.id] = (
                f"variant {variant.id}: its answers are those of other weights, stamped "
                f"{found.stamp[:12]}…; {again}"
            )
        elif answers.classes != variant.classes:
            reasons[variant.id] = f"variant {variant.id}: its answers name other classes; {again}"
    return reasons


def write_answers(path: Path, answers: Answers) -> None:
    """Write a file whole or not at all."""
    meta: dict[str, Any] = {
        "format": FORMAT,
        "dataset": answers.dataset,
        "classes": answers.classes,
        "made": dict(answers.made),
        "variants": {
            key: {
                "stamp": one.stamp,
                "photos_sha256": one.photos_sha256,
                "removed_macs": one.removed_macs,
            }
            for key, one in answers.answers.items()
        },
    }
    arrays = {"names": _bytes("\n".join(answers.names)), "targets": answers.targets}
    for key, one in answers.answers.items():
        arrays |= {f"{key}/logits": one.logits, f"{key}/predicted": one.predicted}
        if one.burden is not None:
            arrays[f"{key}/burden"] = one.burden
    if (pack := answers.photos) is not None:
        kept = ("positions", "data", "offsets")
        arrays |= {f"photos/{name}": getattr(pack, name) for name in kept}
        said = asdict(pack)
        meta["photos"] = {name: said[name] for name in said if name not in kept}
    content = io.BytesIO()
    np.savez_compressed(content, meta=_bytes(to_json(meta)), **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def read_answers(path: Path) -> Answers:
    """Read and check a file.

    Raises:
        CheckpointError: If it is missing, damaged, or of another format.
    """
    again = f"make it anew with `{renewal(path.stem)}`"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        answers = _from_arrays(arrays)
        _check(answers)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {again}") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, *ARCHIVE_FAULTS) as error:
        raise CheckpointError(f"{path} is unreadable ({error}); {again}") from error
    if answers.dataset != path.stem:
        raise CheckpointError(f"{path} holds answers on {answers.dataset!r}; {again}")
    return answers


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Answers:
    meta = json.loads(arrays["meta"].tobytes())
    if meta["format"] != FORMAT:
        raise ValueError(f"its format is {meta['format']}, this program reads {FORMAT}")
    pack = None
    if "photos" in meta:
        pack = PhotoPack(
            positions=arrays["photos/positions"],
            data=arrays["photos/data"],
            offsets=arrays["photos/offsets"],
            **meta["photos"],
        )
    return Answers(
        dataset=meta["dataset"],
        classes=tuple(meta["classes"]),
        names=tuple(arrays["names"].tobytes().decode().split("\n")),
        targets=arrays["targets"],
        answers={
            key: Answer(
                stamp=one["stamp"],
                photos_sha256=one["photos_sha256"],
                logits=arrays[f"{key}/logits"],
                predicted=arrays[f"{key}/predicted"],
                burden=arrays.get(f"{key}/burden"),
                removed_macs=tuple(one["removed_macs"]),
            )
            for key, one in meta["variants"].items()
        },
        photos=pack,
        made=meta["made"],
    )


def _check(answers: Answers) -> None:
    count, classes = len(answers.names), len(answers.classes)
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
        ("targets", answers.targets.shape, (count,))
    ]
    for key, one in answers.answers.items():
        shapes += [
            (f"{key}/logits", one.logits.shape, (count, classes)),
            (f"{key}/predicted", one.predicted.shape, (count,)),
        ]
        if one.burden is not None:
            shapes.append((f"{key}/burden", one.burden.shape, (count, len(one.removed_macs))))
    for name, found, wanted in shapes:
        if found != wanted:
            raise ValueError(f"{name} has the shape {found}, not {wanted}")
    if (pack := answers.photos) is not None:
        rising = (
            len(pack.offsets) > 0 and pack.offsets[0] == 0 and (np.diff(pack.offsets) > 0).all()
        )
        if not rising or pack.offsets[-1] != len(pack.data):
            raise ValueError("the offsets of its photos are not rising to the size of their data")
        if len(pack.positions) != len(pack.offsets) - 1:
            raise ValueError("it has not one position for each photo")
        if len(pack.positions) and not 0 <= pack.positions.min() <= pack.positions.max() < count:
            raise ValueError(f"it places photos outside of 0 to {count - 1}")


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
