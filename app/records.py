"""Served models -> all that the Models tab tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.catalog import VariantInfo, catalog
from app.registry import Model
from app.zeros import zero_share
from nbcore.checkpoint import CheckpointError, Variant, resolve


@dataclass(frozen=True, kw_only=True)
class Record:
    """A served model with its entry in the manifest."""

    info: VariantInfo
    variant: Variant
    zero_share: float | None
    """Of its weights; None if the file cannot be read."""

    @property
    def id(self) -> str:
        return self.variant.id

    @property
    def top1(self) -> float | None:
        return self.variant.metrics.get("top1")

    @property
    def top1_range(self) -> tuple[float, float] | None:
        """95 % interval."""
        found = self.variant.metrics.get("top1_ci95")
        return None if found is None else (float(found[0]), float(found[1]))


def records(models: Sequence[Model]) -> tuple[Record, ...]:
    """One for each model, in their order."""
    infos = catalog([model.variant for model in models])
    return tuple(
        Record(info=info, variant=model.variant, zero_share=_zeros(model))
        for info, model in zip(infos, models, strict=True)
    )


def _zeros(model: Model) -> float | None:
    entry = model.variant.files["weights"]
    try:
        return zero_share(resolve(model.folder, model.id, entry), entry.sha256)
    except (CheckpointError, OSError, ValueError):
        return None
