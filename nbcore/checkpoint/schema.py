"""What a checkpoint folder promises: one `Variant` per entry of the manifest, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nbcore.config import Arch, Merge

SCHEMA_VERSION = 1
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
    Metric(
        name="parity_loads",
        unit="largest ||ONNX - torch|| / ||torch||, over the loads of a site in one photo and over "
        "all photos for one load",
        better="lower",
    ),
    Metric(
        name="parity_loads_largest",
        unit="largest |ONNX - torch| of one load / largest of its site and photo; no limit",
        better="lower",
    ),
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
class ExportRecord:
    """What wrote the graph of a variant and measured it through ONNX Runtime."""

    command: str
    commit: str
    versions: Mapping[str, str]
    device: str


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What trained a variant, and what exported it."""

    command: str
    seed: int
    commit: str
    versions: Mapping[str, str]
    device: str
    export: ExportRecord | None = None
    """None before the export, and in entries of earlier versions, which did not record it."""


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


def with_files(
    variant: Variant, files: Mapping[str, FileEntry], metrics: Mapping[str, Any]
) -> Variant:
    """The same variant with further files and metrics."""
    return replace(
        variant, files={**variant.files, **files}, metrics={**variant.metrics, **metrics}
    )
