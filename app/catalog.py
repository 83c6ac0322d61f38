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
    """Labels that say only what tells variants of a dataset apart."""
    attempts = [
        lambda v: (
            "dense"
            if v.base is None
            else f"{v.macs_ratio:.0%} MACs, {_words(v.mitigation)}".replace("%", " %")
        ),
        lambda v: (
            "dense"
            if v.base is None
            else f"{v.pruner} {v.macs_ratio:.0%} MACs, {_words(v.mitigation)}".replace("%", " %")
        ),
        lambda v: v.id,
    ]
    titles: dict[str, str] = {}
    for attempt in attempts:
        left = [v for v in variants if v.id not in titles]
        seen = Counter((v.dataset, attempt(v)) for v in left)
        titles |= {v.id: attempt(v) for v in left if seen[v.dataset, attempt(v)] == 1}
    return titles
