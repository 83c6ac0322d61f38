"""Image -> burden of a variant against its dense base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from app.errors import UserError
from app.inference import Output, Predictor
from app.quantities import QUANTITIES, Reading, Runs
from app.registry import Model

Which = Literal["trained", "null"]


@dataclass(frozen=True, kw_only=True)
class BurdenMaps:
    """What one variant's layers carry on one photo."""

    variant: str
    quantity: str
    """A key of `QUANTITIES`."""
    is_dense: bool
    """The variant is its own base, so there is nothing to cut."""
    site_names: tuple[str, ...]
    """What `values` and `maps` belong to: sites (blocks.0.attn, blocks.0.mlp, ...), or for
    "residual" blocks (blocks.0, ...)."""
    values: tuple[float | None, ...]
    """One per name, >= 0; burden is a ratio (1 = as in dense)."""
    maps: np.ndarray | None
    """[names, rows, columns]; for burden log2 of the ratio. None without a usable base."""
    null_values: tuple[float | None, ...] | None
    """The same for the dense model cut live to this variant's units, before retraining; None if not
    asked for, for dense, or without a usable base."""
    null_maps: np.ndarray | None
    loads: tuple[float, ...]
    """Load of each site in the variant itself, always there; in the order of sites."""
    selection: tuple[float | None, ...] | None
    """One per name, mean squared load of the survivors over that of all units, both in dense; None
    for blocks."""
    stream: tuple[float | None, ...] | None
    """One per name, rho(variant) / rho(dense); None for blocks."""
    null_stream: tuple[float | None, ...] | None
    """One per name, rho(cut) / rho(dense); None for blocks."""
    groups: tuple[np.ndarray | None, ...]
    """One per name, int64 [rows, columns]: the token that carries each patch; None before any are
    merged."""
    reason: str | None
    """Why `values` are None."""

    def shown(self, which: Which) -> np.ndarray | None:
        """Maps of the variant, or for "null" of dense cut live; dense stands for itself."""
        return self.maps if which == "trained" or self.is_dense else self.null_maps

    def outlines(self, which: Which) -> tuple[np.ndarray | None, ...]:
        """What goes with `shown`: the dense model cut live merges nothing."""
        return self.groups if which == "trained" else (None,) * len(self.groups)


def measure(
    predictor: Predictor,
    model: Model,
    base: Model | None,
    image: np.ndarray,
    name: str = "burden",
    *,
    live_null: bool = True,
    reason: str | None = None,
) -> BurdenMaps:
    """What a variant's layers carry on one photo.

    Args:
        predictor: Runs the graphs.
        model: The variant.
        base: Its dense base (itself for a dense variant), None if there is none to use.
        image: RGB in [0, 1], float32 [3, S, S].
        name: A key of `QUANTITIES`.
        live_null: Also measure the dense model cut to the variant's units.
        reason: Why base is None.

    Raises:
        UserError: If the quantity is unknown or a model fails.
    """
    if name not in QUANTITIES:
        raise UserError(f"unknown quantity {name!r}; available: {', '.join(QUANTITIES)}")
    quantity = QUANTITIES[name]
    runs = _run(predictor, model, base, image, live_null)
    trained, null = quantity.measure(runs)
    sites = [site.name for site in model.variant.sites]
    names = tuple(
        dict.fromkeys(s.rsplit(".", 1)[0] for s in sites) if quantity.of_blocks else sites
    )
    of_sites = None if quantity.of_blocks else runs.dense
    return BurdenMaps(
        variant=model.id,
        quantity=name,
        is_dense=base is model,
        site_names=names,
        values=_values(trained) or (None,) * len(names),
        maps=_maps(trained, model),
        null_values=_values(null),
        null_maps=_maps(null, model),
        loads=tuple(runs.site_loads(runs.own).tolist()),
        selection=None if of_sites is None else _selection(runs),
        stream=_stream_ratio(runs.own, of_sites),
        null_stream=_stream_ratio(runs.cut, of_sites),
        groups=_groups(runs, names),
        reason=reason if trained is None else None,
    )


def _values(reading: Reading | None) -> tuple[float | None, ...] | None:
    return None if reading is None else _finite(reading.values)


def _maps(reading: Reading | None, model: Model) -> np.ndarray | None:
    return None if reading is None else reading.maps.reshape(-1, *model.variant.grid).numpy()


def _stream_ratio(output: Output | None, dense: Output | None) -> tuple[float | None, ...] | None:
    if output is None or dense is None:
        return None
    return _finite(
        torch.from_numpy(output.stream).double() / torch.from_numpy(dense.stream).double()
    )


def _groups(runs: Runs, names: tuple[str, ...]) -> tuple[np.ndarray | None, ...]:
    merge, group = runs.model.variant.merge, runs.own.group
    if merge is None or group is None:
        return (None,) * len(names)
    grid = group.reshape(runs.model.variant.grid)
    return tuple(grid if int(name.split(".")[1]) >= merge.block else None for name in names)


def measure_cut(
    predictor: Predictor, dense: Model, image: np.ndarray, gate: np.ndarray, whole: Output
) -> tuple[BurdenMaps, Output]:
    """Burden of what is left of a dense model whose other units are turned off.

    Args:
        predictor: Runs the graph.
        dense: The model.
        image: RGB in [0, 1], float32 [3, S, S].
        gate: 0 where a unit is turned off, else 1, float32 [U].
        whole: Output of the model with all its units.

    Returns:
        Load of the remaining units over their load in the whole model, and the cut model's output.
    """

    def remaining(output: Output) -> Output:
        return replace(output, unit_load=output.unit_load * gate)

    past = predictor.run(dense, image, unit_keep=gate)
    cut = predictor.run(dense, image, unit_gate=gate, unit_keep=gate)
    runs = Runs(
        model=dense,
        image=image,
        device=predictor.torch_device,
        own=remaining(cut),
        base=dense,
        mask=gate,
        dense=whole,
        past=remaining(past),
        cut=None,
    )
    found, _ = QUANTITIES["burden"].measure(runs)
    drawn = _maps(found, dense)
    names = tuple(site.name for site in dense.variant.sites)
    maps = BurdenMaps(
        variant=dense.id,
        quantity="burden",
        is_dense=True,
        site_names=names,
        values=_values(found) or (None,) * len(names),
        # A site of which nothing is left has no ratio; it is drawn as unchanged.
        maps=None if drawn is None else np.nan_to_num(drawn, posinf=0.0, neginf=0.0),
        null_values=None,
        null_maps=None,
        loads=tuple(runs.site_loads(runs.own).tolist()),
        selection=None,
        stream=_stream_ratio(cut, whole),
        null_stream=None,
        groups=(None,) * len(names),
        reason=None,
    )
    return maps, cut


def survivors(model: Model, base: Model) -> np.ndarray:
    """1 where a unit of the base survives in the variant, float32 [U of the base]."""
    mask = np.zeros(base.variant.num_units, np.float32)
    mask[model.variant.kept_in_base()] = 1
    return mask


def _run(
    predictor: Predictor, model: Model, base: Model | None, image: np.ndarray, live_null: bool
) -> Runs:
    own = predictor.run(model, image)
    if base is None or base is model:
        past = None if base is None else own
        return Runs(
            model=model,
            image=image,
            device=predictor.torch_device,
            own=own,
            base=base,
            mask=None,
            dense=past,
            past=past,
            cut=None,
        )
    mask = survivors(model, base)
    past = predictor.run(base, image, unit_keep=mask)
    cut = predictor.run(base, image, unit_gate=mask, unit_keep=mask) if live_null else None
    return Runs(
        model=model,
        image=image,
        device=predictor.torch_device,
        own=own,
        base=base,
        mask=mask,
        # unit_keep touches token loads only: this run holds all unit loads and the stream of dense.
        dense=past,
        past=_only(past, mask),
        cut=None if cut is None else _only(cut, mask),
    )


def _only(output: Output, mask: np.ndarray) -> Output:
    """A base's output whose unit loads line up with those of the variant."""
    return replace(output, unit_load=output.unit_load[mask > 0])


def _selection(runs: Runs) -> tuple[float | None, ...] | None:
    """Mean squared load of the survivors over that of all units, both in dense."""
    if runs.dense is None or runs.past is None:
        return None
    totals = [site.total for site in runs.model.variant.sites]
    everyone = torch.from_numpy(runs.dense.unit_load).double().split(totals)
    selected = torch.from_numpy(runs.past.unit_load).double().split(runs.sizes)
    ratios = [
        s.square().mean() / e.square().mean() for s, e in zip(selected, everyone, strict=True)
    ]
    return _finite(torch.stack(ratios))


def _finite(values: Tensor) -> tuple[float | None, ...]:
    """Numbers as JSON knows them: None where a load of zero left nothing to divide by."""
    return tuple(value if np.isfinite(value) else None for value in values.tolist())
