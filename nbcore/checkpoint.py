"""The manifest: what `checkpoints/` promises to everything that reads it.

Nothing in the manifest is trusted until `verify_files` has re-hashed the files. Refusal is per
variant; only an unknown schema version refuses the whole file. Writes are atomic.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.config import Arch, Merge
from nbcore.vit import build_model, sites_of

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
VARIANT = "variant.json"
MAX_FILE_BYTES = 25_000_000
TRAINED_FILES = ("weights", "config", "history")
EXPORTED_FILES = ("onnx", *TRAINED_FILES)


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
        variant = _read(Variant, entry, "entry")
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"variant {name}: unreadable manifest entry ({error})") from error
    _check(variant)
    return variant


def _read(kind: Any, value: Any, where: str) -> Any:
    """Plain JSON data as what an annotation says, checked all the way down."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _read_object(kind, value, where)
    if origin is UnionType:
        inner = next(arg for arg in args if arg is not NoneType)
        return None if value is None else _read(inner, value, where)
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[1] is Ellipsis else args
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_read(item_kind, item, f"{where}[{i}]") for i, (item_kind, item) in pairs)
    if origin is Literal and isinstance(value, str) and value in args:
        return value
    if origin is None and isinstance(value, int | float | str):
        if kind is float and not isinstance(value, bool | str):
            return float(value)
        if type(value) is kind:
            return value
    wanted = getattr(kind, "__name__", kind) if origin is None else kind
    raise TypeError(f"{where} must be {wanted}, got {value!r:.100}")


def _read_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} must be an object, got {value!r:.100}")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise TypeError(f"{where} has unknown fields {unknown}")
    missing = [
        name
        for name, f in known.items()
        if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise TypeError(f"{where} lacks {missing}")
    hints = get_type_hints(kind)
    return kind(**{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _check(variant: Variant) -> None:
    def require(ok: bool, what: str) -> None:
        if not ok:
            raise CheckpointError(f"variant {variant.id}: {what}")

    require(
        bool(variant.id)
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
    expected = [(site.name, site.kind) for site in sites_of(variant.arch)]
    found = [(site.name, site.kind) for site in variant.sites]
    require(found == expected, f"sites are {found}, arch has {expected}")
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
    require(variant.base != variant.id, "cannot be its own base; a dense variant has base null")
    broken = sorted(name for name, value in variant.metrics.items() if not _is_finite(value))
    require(not broken, f"metrics {broken} are not finite, which JSON cannot say; use null")


def variant_to_json(variant: Variant) -> dict[str, Any]:
    """Plain JSON data of an entry; `variant_from_json` reads it back unchanged.

    Raises:
        CheckpointError: If the entry contradicts itself, as nobody could read it again.
    """
    _check(variant)
    return json.loads(json.dumps(asdict(variant)))


def to_json(data: Any) -> str:
    """Indented JSON with lists of numbers on one line: a kept-units list is no page of its own."""
    text = json.dumps(data, indent=1)
    return re.sub(r"\[\n[\s\d.,eE+-]*\]", lambda m: " ".join(m.group().split()), text) + "\n"


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
    write_atomically(folder / MANIFEST, to_json(data))


def register_variant(folder: Path, variant: Variant, position: int | None = None) -> None:
    """Add or replace one variant after its files were verified.

    Args:
        folder: Checkpoint folder.
        variant: Replaces an entry of the same id where that stands.
        position: Where a new entry goes; by default before the variants pruned from it, else last.

    Raises:
        CheckpointError: If a file is missing or differs, or other entries are unreadable (they
            would be lost).
    """
    verify_files(folder, variant)
    variants = _rewritable(folder)
    ids = [v.id for v in variants]
    if variant.id in ids:
        variants[ids.index(variant.id)] = variant
    else:
        children = [i for i, v in enumerate(variants) if v.base == variant.id]
        first = min(children, default=len(variants))
        variants.insert(first if position is None else position, variant)
    write_manifest(folder, tuple(variants))


def withdraw_variant(folder: Path, variant_id: str) -> tuple[int, Variant] | None:
    """Take a variant out of the manifest, so that its files may change.

    Returns:
        Position and entry for `register_variant`, or None if the manifest does not name it.

    Raises:
        CheckpointError: If other entries are unreadable (they would be lost).
    """
    variants = _rewritable(folder)
    for position, variant in enumerate(variants):
        if variant.id == variant_id:
            write_manifest(folder, tuple(variants[:position] + variants[position + 1 :]))
            return position, variant
    return None


def _rewritable(folder: Path) -> list[Variant]:
    """The manifest's variants, if a rewrite loses nothing."""
    old = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest()
    if old.refused:
        raise CheckpointError(
            f"{folder / MANIFEST} holds unreadable entries that a rewrite would lose: "
            f"{dict(old.refused)}"
        )
    return list(old.variants)


def verify_files(
    folder: Path, variant: Variant, required: tuple[str, ...] = EXPORTED_FILES
) -> None:
    """Re-hash every file of a variant.

    Args:
        folder: Checkpoint folder.
        variant: What its manifest entry says.
        required: Kinds of files that must be there.

    Raises:
        CheckpointError: On a path that leaves the folder, a missing file, or one whose bytes
            differ.
    """
    for kind in required:
        if kind not in variant.files:
            raise CheckpointError(
                f"variant {variant.id}: no {kind} file; complete it with `python -m nbcore export "
                f"{variant.id}`"
            )
    for kind, entry in variant.files.items():
        path = resolve(folder, variant.id, entry)
        try:
            fault = _fault(path, entry)
        except OSError as error:
            fault = f"{entry.path} cannot be read ({error})"
        if fault:
            raise CheckpointError(
                f"variant {variant.id}: {fault}; {_redo(folder, variant.id, kind)}"
            )


def _fault(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file, or None."""
    if not path.is_file():
        return f"{entry.path} is missing"
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"{path.name} has {size} bytes, manifest says {entry.size_bytes}"
    found = sha256_of(path)
    if found != entry.sha256:
        return f"{path.name} has sha256 {found[:12]}…, manifest says {entry.sha256[:12]}…"
    return None


def _redo(folder: Path, variant_id: str, kind: str) -> str:
    """How a damaged file can be had again."""
    if kind == "onnx":
        return f"re-run `python -m nbcore export {variant_id}`"
    if kind == "burden":
        return f"re-run `python -m nbcore measure {variant_id}`"
    return f"restore it, or remove {folder / variant_id} and train the variant again"


def resolve(folder: Path, variant_id: str, entry: FileEntry) -> Path:
    """Absolute path of a file entry.

    Raises:
        CheckpointError: If it would leave the folder, links followed.
    """
    root = folder.resolve()
    try:
        path = (root / entry.path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"variant {variant_id}: path {entry.path!r}: {error}") from error
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


def recorded_run(folder: Path, variant_id: str) -> dict[str, Any]:
    """What `config.json` of a variant's folder says; empty where there is none to be read."""
    try:
        record = json.loads((folder / variant_id / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def check_base(folder: Path, variant: Variant, base: Variant) -> None:
    """Make sure that a pruned variant descends from this very dense base.

    Raises:
        CheckpointError: If its units are counted from another model, or its `config.json` names
            other weights.
    """
    mine, theirs = [s.total for s in variant.sites], [len(s.kept) for s in base.sites]
    recorded = recorded_run(folder, variant.id).get("base_sha256")
    found = base.files["weights"].sha256 if "weights" in base.files else None
    if mine != theirs or (recorded is not None and recorded != found):
        raise CheckpointError(
            f"variant {variant.id} was pruned from another {base.id} than the one given; "
            "bring that one or run the recipe again"
        )


def load_weights(folder: Path, variant: Variant) -> dict[str, Tensor]:
    """Tensors of `model.safetensors` in single precision, as `MeteredViT.load_state_dict` takes
    them."""
    path = resolve(folder, variant.id, variant.files["weights"])
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"variant {variant.id}: {path.name} is unreadable: {error}"
        ) from error
    return {k: v.float() for k, v in state.items()}


def load_model(folder: Path, variant: Variant) -> MeteredViT:
    """Rebuild a variant in torch with its weights and calibration means, in evaluation mode on the
    CPU.

    Raises:
        CheckpointError: If the architecture of the manifest cannot be built, or the weights do not
            fit it.
    """
    try:
        model = build_model(variant.arch, variant.merge)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"variant {variant.id}: the manifest's arch cannot be built: {error}"
        ) from error
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
