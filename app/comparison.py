"""What differs between a variant and its dense base on one photo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from app.agreement import agreement
from app.attribution import AttributionMap
from app.burden import BurdenMaps
from app.inference import Prediction


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A variant against its dense base on one photo."""

    variant: str
    same_class: bool
    """Both name the same class first."""
    kl_to_base: float
    """KL(base || variant) in nats."""
    attribution_cosine: float | None
    """Cosine of the two attribution maps; None if one is missing, of another class, or all zero."""
    attribution_rank_correlation: float | None
    """Spearman's of the two maps; None likewise, or if one is constant."""
    attribution_top_overlap: float | None
    """Share of the top tenth of patches that both maps have in common; None likewise."""
    largest_burden: float | None
    largest_burden_site: str | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several variants on one photo."""

    image: Image.Image
    """Exactly what the models saw, RGB, img_size x img_size."""
    predictions: Mapping[str, Prediction]
    attributions: Mapping[str, AttributionMap]
    burdens: Mapping[str, BurdenMaps]
    differences: Mapping[str, Difference]
    """Only variants that have a usable base and are not their own."""
    failures: Mapping[str, str]
    """Why (part of) a variant's column is missing, by id."""


def difference(
    prediction: Prediction,
    base_class: str,
    maps: tuple[AttributionMap | None, AttributionMap | None],
    burdens: BurdenMaps | None,
) -> Difference:
    """Hold a variant against its dense base.

    Args:
        prediction: Of the variant, with a KL to its base.
        base_class: What the base names first.
        maps: Attribution maps of the variant and of the base.
        burdens: Burden of the variant.
    """
    assert prediction.kl_to_base is not None
    sites = [] if burdens is None else list(zip(burdens.values, burdens.site_names, strict=True))
    known = [(value, name) for value, name in sites if value is not None]
    largest, site = max(known) if known else (None, None)
    own = maps[0]
    return Difference(
        variant=prediction.variant,
        same_class=prediction.top[0].class_name == base_class,
        kl_to_base=prediction.kl_to_base,
        attribution_cosine=_cosine(*maps),
        attribution_rank_correlation=None if own is None else own.rank_correlation,
        attribution_top_overlap=None if own is None else own.top_overlap,
        largest_burden=largest,
        largest_burden_site=site,
    )


def against_base(cell: AttributionMap, base: AttributionMap | None) -> AttributionMap:
    """A map with what tells it from its dense base's; unchanged without one of the same class."""
    if base is None or base.target != cell.target:
        return cell
    found = agreement(cell.values, base.values)
    return replace(
        cell,
        difference=found.difference,
        rank_correlation=found.rank_correlation,
        top_overlap=found.top_overlap,
    )


def _cosine(one: AttributionMap | None, other: AttributionMap | None) -> float | None:
    if one is None or other is None or one.target != other.target:
        return None
    a, b = one.values.ravel(), other.values.ravel()
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else None
