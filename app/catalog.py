"""Served models -> what a menu shows of them, and which are compared when none are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nbcore.checkpoint import Variant

SAME_BUDGET = 0.02
"""Two macs_ratio closer than this count as one budget."""


@dataclass(frozen=True, kw_only=True)
class VariantInfo:
    """What a menu needs to know about one served variant."""

    id: str
    title: str
    """Short label, e.g. "dense" or "50 % MACs, handoff"; unique within its dataset."""
    dataset: str
    base: str | None
    """Id of the dense variant it forked from; None for a dense variant."""
    pruner: str | None
    mitigation: str | None
    macs_ratio: float
    macs: int
    """Multiply-adds of one photo."""
    num_params: int
    size_bytes: int
    """Of the ONNX file."""
    metrics: Mapping[str, Any]
    classes: tuple[str, ...]
    img_size: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    site_names: tuple[str, ...]
    merges: bool
    """Whether it merges tokens on the way."""
    is_default: bool


def catalog(variants: Sequence[Variant]) -> tuple[VariantInfo, ...]:
    """Describe variants, in their order."""
    titles, defaults = _titles(variants), default_ids(variants)
    return tuple(
        VariantInfo(
            id=v.id,
            title=titles[v.id],
            dataset=v.dataset,
            base=v.base,
            pruner=v.pruner,
            mitigation=v.mitigation,
            macs_ratio=v.macs_ratio,
            macs=v.macs,
            num_params=v.num_params,
            size_bytes=v.files["onnx"].size_bytes,
            metrics=v.metrics,
            classes=v.classes,
            img_size=v.img_size,
            grid=v.grid,
            site_names=tuple(site.name for site in v.sites),
            merges=v.merge is not None,
            is_default=v.id in defaults,
        )
        for v in variants
    )


class Described(Protocol):
    """What the choice of defaults looks at; a `Variant` has it, a `VariantInfo` too."""

    @property
    def id(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    @property
    def pruner(self) -> str | None: ...
    @property
    def mitigation(self) -> str | None: ...
    @property
    def macs_ratio(self) -> float: ...


def default_ids(variants: Sequence[Described]) -> tuple[str, ...]:
    """Dense with a plainly pruned variant and a mitigated one of the same host and budget, one with
    `handoff` if there is such; else the first three of the first data set."""
    dense = next((v for v in variants if v.base is None), None)
    if dense is None:
        return (
            tuple(v.id for v in variants if v.dataset == variants[0].dataset)[:3]
            if variants
            else ()
        )
    pruned = [v for v in variants if v.base == dense.id]
    pairs = [
        (plain, other)
        for plain in pruned
        for other in pruned
        if plain.mitigation == "none"
        and other.mitigation != "none"
        and other.pruner == plain.pruner
        and abs(plain.macs_ratio - other.macs_ratio) < SAME_BUDGET
    ]
    if pairs:
        plain, other = min(pairs, key=lambda pair: "handoff" not in str(pair[1].mitigation))
        return dense.id, plain.id, other.id
    rest = [v.id for v in variants if v.dataset == dense.dataset and v.id != dense.id]
    return (dense.id, *rest[:2])


def _words(mitigation: str | None) -> str:
    """A name that lines can break in: "token merging + handoff"."""
    if mitigation == "none":
        return "no mitigation"
    return str(mitigation).replace("_", " ").replace("+", " + ")


def _titles(variants: Sequence[Variant]) -> dict[str, str]:
    """Labels of one form for all variants of a dataset: with the host where one without it would
    stand for two variants. What even that does not tell apart bears its id."""
    titles: dict[str, str] = {}
    for dataset in dict.fromkeys(v.dataset for v in variants):
        own = [v for v in variants if v.dataset == dataset]
        labels = [_label(v, host=False) for v in own]
        if len(set(labels)) < len(labels):
            labels = [_label(v, host=True) for v in own]
        times = Counter(labels)
        titles |= {
            v.id: label if times[label] == 1 else v.id for v, label in zip(own, labels, strict=True)
        }
    return titles


def _label(variant: Variant, *, host: bool) -> str:
    if variant.base is None:
        return "dense"
    words = f"{variant.macs_ratio:.0%} MACs, {_words(variant.mitigation)}".replace("%", " %")
    return f"{variant.pruner} {words}" if host else words
