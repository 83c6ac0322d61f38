"""The manifest: what `checkpoints/` promises to everything that reads it.

Nothing in the manifest is trusted until `verify_files` has re-hashed the files. Refusal is per
variant; only an unknown schema version refuses the whole file. Writes are atomic.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.config import Arch, Merge
from nbcore.vit import build_model

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
VARIANT = "variant.json"
MAX_FILE_BYTES = 25_000_000


class CheckpointError(ValueError):
    """A manifest or a variant that breaks the contract; the text says how to mend it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a number in `Variant.metrics` means."""

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]


METRICS: tuple[Metric, ...] = (
    Metric(name="top1", unit="share of test images", better="higher"),
    Metric(name="top1_ci95", unit="share of test images (Wilson interval)", better="neither"),
    Metric(name="loss", unit="nats (cross-entropy)", better="lower"),
    Metric(name="num_images", unit="test images", better="neither"),
    Metric(name="burden", unit="load(pruned) / load(dense), same survivors", better="neither"),
    Metric(name="burden_null", unit="load(cut) / load(dense), same survivors", better="neither"),
    Metric(
        name="selection",
        unit="mean squared load of survivors / of all units, dense",
        better="neither",
    ),
    Metric(
        name="takeover",
        unit="share of the removed output that survivors now write",
        better="neither",
    ),
    Metric(name="residual", unit="relative squared error of block outputs", better="lower"),
    Metric(name="cost", unit="residual + 0.25 (burden^2 - 1)+", better="lower"),
    Metric(name="stream", unit="rho(pruned) / rho(dense)", better="neither"),
    Metric(name="parity_logits", unit="largest |ONNX - torch|", better="lower"),
    Metric(name="parity_loads", unit="largest relative |ONNX - torch|", better="lower"),
    Metric(name="parity_images", unit="test images compared", better="neither"),
    Metric(
        name="tie_share",
        unit="share of images merged differently by ONNX and torch",
        better="lower",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a photo becomes the model's input, see `nbcore.preprocessing`."""

    crop_pct: float = 1.0
    interpolation: Literal["bicubic"] = "bicubic"


@dataclass(frozen=True, kw_only=True)
class SiteEntry:
    """One site of a variant and which of the dense base's units it kept."""

    name: str
    kind: Literal["heads", "neurons"]
    total: int
    """Units in the dense base."""
    kept: tuple[int, ...]
    """Their indices in the dense base, ascending."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a variant."""

    path: str
    """Relative to the folder of the manifest, with forward slashes."""
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a variant came from."""

    command: str
    seed: int
    commit: str
    versions: Mapping[str, str]
    device: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One entry of the manifest."""

    id: str
    dataset: str
    base: str | None
    arch: Arch
    merge: Merge | None
    pruner: str | None
    mitigation: str | None
    img_size: int
    patch_size: int
    grid: tuple[int, int]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    num_params: int
    macs: int
    macs_ratio: float
    sites: tuple[SiteEntry, ...]
    metrics: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    provenance: Provenance

    @property
    def num_units(self) -> int:
        """Units the compact model holds, U."""
        return sum(len(site.kept) for site in self.sites)

    def kept_in_base(self) -> list[int]:
        """Positions of this variant's units among all units of its dense base, in site order."""
        positions, start = [], 0
        for site in self.sites:
            positions += [start + unit for unit in site.kept]
            start += site.total
        return positions


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A read manifest."""

    variants: tuple[Variant, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reason by id of entries that could not be read."""

    def __getitem__(self, variant_id: str) -> Variant:
        for variant in self.variants:
            if variant.id == variant_id:
                return variant
        known = ", ".join(v.id for v in self.variants) or "none"
        raise CheckpointError(f"unknown variant {variant_id!r}; available: {known}")


def variant_from_json(entry: Mapping[str, Any]) -> Variant:
    """Read one entry, checking types and the numbers that must agree.

    Raises:
        CheckpointError: If a field is missing, unknown or contradicts another.
    """
    name = entry.get("id", "(without id)") if isinstance(entry, Mapping) else "(not an object)"
    try:
        data = dict(entry)
        data["arch"] = Arch(
            **{**data["arch"]}
            | {key: tuple(data["arch"][key]) for key in ("num_heads", "hidden_features")}
        )
        data["merge"] = Merge(**data["merge"]) if data["merge"] else None
        data["grid"] = tuple(data["grid"])
        data["classes"] = tuple(data["classes"])
        data["preprocessing"] = Preprocessing(**data["preprocessing"])
        data["sites"] = tuple(SiteEntry(**{**s, "kept": tuple(s["kept"])}) for s in data["sites"])
        data["files"] = {key: FileEntry(**value) for key, value in data["files"].items()}
        data["provenance"] = Provenance(**data["provenance"])
        variant = Variant(**data)
        _check(variant)
    except CheckpointError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"variant {name}: unreadable manifest entry ({error!r})") from error
    return variant


def _check(variant: Variant) -> None:
    def require(ok: bool, what: str) -> None:
        if not ok:
            raise CheckpointError(f"variant {variant.id}: {what}")

    require(
        isinstance(variant.id, str)
        and bool(variant.id)
        and all(c.isascii() and (c.isalnum() or c in "-_.") for c in variant.id)
        and variant.id[0] not in ".-",
        "an id holds only letters, digits, '-', '_' and '.', and starts with a letter or digit",
    )
    widths = [
        n
        for pair in zip(variant.arch.num_heads, variant.arch.hidden_features, strict=True)
        for n in pair
    ]
    require(
        [len(s.kept) for s in variant.sites] == widths,
        f"sites keep {[len(s.kept) for s in variant.sites]} units, arch has {widths}",
    )
    for site in variant.sites:
        require(
            list(site.kept) == sorted(set(site.kept))
            and min(site.kept) >= 0
            and max(site.kept) < site.total,
            f"{site.name}: kept must be ascending, distinct indices below total {site.total}",
        )
    require(
        variant.img_size
        == variant.patch_size * variant.grid[0]
        == variant.patch_size * variant.grid[1],
        f"img_size {variant.img_size} is not patch_size {variant.patch_size} times grid "
        f"{variant.grid}",
    )
    require(len(variant.classes) >= 2, f"needs at least two classes, has {len(variant.classes)}")
    require(
        variant.preprocessing.interpolation == "bicubic",
        "preprocessing.interpolation must be 'bicubic'",
    )


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Plain JSON data of an entry; `variant_from_json` reads it back unchanged."""
    return json.loads(json.dumps(asdict(variant)))


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a checkpoint folder; bad entries are refused one by one.

    Raises:
        CheckpointError: If the file is missing, no JSON, or of an unknown schema version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; train a variant with `python -m nbcore run shapes-quick "
            f"--out {folder}`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema_version {version!r}; this program reads {SCHEMA_VERSION}"
        )
    variants: list[Variant] = []
    refused: dict[str, str] = {}
    for position, entry in enumerate(data.get("variants", [])):
        name = (
            str(entry.get("id", f"entry {position}"))
            if isinstance(entry, dict)
            else f"entry {position}"
        )
        try:
            variant = variant_from_json(entry)
            if any(v.id == variant.id for v in variants):
                raise CheckpointError(f"variant {variant.id}: listed twice")
            variants.append(variant)
        except CheckpointError as error:
            refused[name] = str(error)
    return Manifest(variants=tuple(variants), refused=refused)


def write_manifest(folder: Path, variants: tuple[Variant, ...]) -> None:
    """Write the manifest atomically: readers see the old or the new file, never a part."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "metrics": [asdict(metric) for metric in METRICS],
        "variants": [variant_to_json(variant) for variant in variants],
    }
    write_atomically(folder / MANIFEST, json.dumps(data, indent=1) + "\n")


def register_variant(folder: Path, variant: Variant) -> None:
    """Add or replace one variant after its files were verified; dense bases come first.

    Raises:
        CheckpointError: If a file is missing or differs, or other entries are unreadable (they
            would be lost).
    """
    verify_files(folder, variant)
    old = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest()
    if old.refused:
        raise CheckpointError(
            f"{folder / MANIFEST} holds unreadable entries that a rewrite would lose: "
            f"{dict(old.refused)}"
        )
    if any(v.id == variant.id for v in old.variants):
        variants = tuple(variant if v.id == variant.id else v for v in old.variants)
    else:
        variants = (*old.variants, variant)
    write_manifest(folder, variants)


def verify_files(folder: Path, variant: Variant) -> None:
    """Re-hash every file of a variant.

    Raises:
        CheckpointError: On a path that leaves the folder, a missing file, or one whose bytes
            differ.
    """
    for kind in ("onnx", "weights", "config", "history"):
        if kind not in variant.files:
            raise CheckpointError(
                f"variant {variant.id}: no {kind} file; complete it with `python -m nbcore export "
                f"{variant.id}`"
            )
    for entry in variant.files.values():
        path = resolve(folder, variant.id, entry)
        name = path.name
        if not path.is_file():
            raise CheckpointError(
                f"variant {variant.id}: {entry.path} is missing; restore it or {_redo(variant)}"
            )
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise CheckpointError(
                f"variant {variant.id}: {name} has {size} bytes, manifest says "
                f"{entry.size_bytes}; {_redo(variant)}"
            )
        found = sha256_of(path)
        if found != entry.sha256:
            raise CheckpointError(
                f"variant {variant.id}: {name} has sha256 {found[:12]}…, manifest says "
                f"{entry.sha256[:12]}…; "
                f"{_redo(variant)}"
            )


def _redo(variant: Variant) -> str:
    return f"re-run `python -m nbcore export {variant.id}`"


def resolve(folder: Path, variant_id: str, entry: FileEntry) -> Path:
    """Absolute path of a file entry.

    Raises:
        CheckpointError: If it would leave the folder, links followed.
    """
    root = folder.resolve()
    path = (root / entry.path).resolve()
    if Path(entry.path).is_absolute() or not path.is_relative_to(root):
        raise CheckpointError(
            f"variant {variant_id}: path {entry.path!r} leaves the checkpoint folder"
        )
    return path


def file_entry(folder: Path, path: Path) -> FileEntry:
    """Describe a file below `folder`."""
    relative = path.resolve().relative_to(folder.resolve()).as_posix()
    return FileEntry(path=relative, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def with_files(
    variant: Variant, files: Mapping[str, FileEntry], metrics: Mapping[str, Any]
) -> Variant:
    """The same variant with further files and metrics."""
    return replace(
        variant, files={**variant.files, **files}, metrics={**variant.metrics, **metrics}
    )


def load_weights(folder: Path, variant: Variant) -> dict[str, Tensor]:
    """Tensors of `model.safetensors` in single precision, as `MeteredViT.load_state_dict` takes
    them."""
    path = resolve(folder, variant.id, variant.files["weights"])
    state = load_file(path)
    return {k: v.float() for k, v in state.items()}


def load_model(folder: Path, variant: Variant) -> MeteredViT:
    """Rebuild a variant in torch with its weights and calibration means, in evaluation mode on the
    CPU.

    Raises:
        CheckpointError: If the weights do not fit the architecture of the manifest.
    """
    model = build_model(variant.arch, variant.merge)
    shapes = [
        (site.num_units, variant.arch.head_dim) if site.kind == "heads" else (site.num_units,)
        for site in model.sites
    ]
    metered = MeteredViT(model, [torch.zeros(shape) for shape in shapes])
    try:
        metered.load_state_dict(load_weights(folder, variant))
    except RuntimeError as error:
        raise CheckpointError(
            f"variant {variant.id}: weights do not fit the manifest's arch: {error}"
        ) from error
    return metered.eval().requires_grad_(False)
