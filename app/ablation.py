"""The dense model with units turned off at will: what pruning does before training answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app import text
from app.burden import BurdenMaps, measure_cut
from app.errors import UserError
from app.inference import Prediction, Predictor, to_prediction
from app.registry import Model
from app.sites import layer_and_kind

SMALLEST, LARGEST = "smallest", "largest"
"""Orders of removal by the loads that this photo brings."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Which units of the dense model are turned off."""

    layers: tuple[int, ...] | None = None
    """Counted from one; None means all."""
    kinds: tuple[str, ...] = ("attn", "mlp")
    share: float = 0.5
    """Of the units of each chosen site, 0..1; rounded to whole units."""
    order: str = SMALLEST
    """What goes first: the smallest or the largest load on this photo, or what the variant of this
    id lost."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ablated:
    """What the cut dense model says and carries."""

    ablation: Ablation
    prediction: Prediction
    """Held against the whole dense model."""
    burdens: BurdenMaps
    """Load of what is left over the load of the same units in the whole model: the null."""
    removed: int
    total: int
    """Units of the model."""


def ablate(
    predictor: Predictor,
    dense: Model,
    pixels: np.ndarray,
    ablation: Ablation,
    *,
    top_k: int,
    variant: Model | None = None,
) -> Ablated:
    """Turn units of the dense model off and run it on one photo.

    Args:
        predictor: Runs the graph.
        dense: The model that is cut.
        pixels: RGB in [0, 1], float32 [3, S, S].
        ablation: What is turned off.
        top_k: How many classes are named.
        variant: Whose removals come first, where `ablation.order` names one.

    Raises:
        UserError: If a layer, kind, share or order is not to be had, or the model fails.
    """
    whole = predictor.run(dense, pixels)
    gate = gate_of(dense, whole.unit_load, ablation, variant)
    burdens, cut = measure_cut(predictor, dense, pixels, gate, whole)
    return Ablated(
        ablation=ablation,
        prediction=to_prediction(dense.variant, cut, whole, top_k, None),
        burdens=burdens,
        removed=int((gate == 0).sum()),
        total=len(gate),
    )


def gate_of(
    dense: Model, loads: np.ndarray, ablation: Ablation, variant: Model | None = None
) -> np.ndarray:
    """0 where a unit is turned off, float32 [U].

    Args:
        dense: The model that is cut.
        loads: Of its units on this photo [U].
        ablation: What is turned off.
        variant: Whose removals come first, where `ablation.order` names one.
    """
    sites = dense.variant.sites
    layers = sorted({layer_and_kind(site.name)[0] for site in sites})
    _check(ablation, layers)
    kept = np.ones(len(loads), bool)
    if variant is not None:
        kept[:] = False
        kept[variant.variant.kept_in_base()] = True
    gate, start = np.ones(len(loads), np.float32), 0
    for site in sites:
        here = slice(start, start + site.total)
        start += site.total
        layer, kind = layer_and_kind(site.name)
        if kind in ablation.kinds and layer in (ablation.layers or layers):
            sign = -1 if ablation.order == LARGEST else 1
            # What the variant lost goes before what it kept, and the lighter before the heavier.
            order = np.lexsort((sign * loads[here], kept[here]))
            gate[here][order[: round(ablation.share * site.total)]] = 0
    return gate


def _check(ablation: Ablation, layers: Sequence[int]) -> None:
    if not 0 <= ablation.share <= 1:
        raise UserError(text.ERROR_CUT_SHARE.format(share=ablation.share))
    for layer in ablation.layers or ():
        if layer not in layers:
            raise UserError(text.ERROR_CUT_LAYER.format(layer=layer, last=layers[-1]))
    for kind in ablation.kinds:
        if kind not in text.SITE_KINDS:
            raise UserError(text.ERROR_CUT_KIND.format(kind=kind))
