"""What can be measured of a variant's layers on one photo; all arithmetic by `nbcore.burden`.

A new quantity is one function with one `quantity` line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.inference import Output
from app.registry import Model
from nbcore.burden import burden_map, residual, sum_to_sites
from nbcore.registry import Registry
from nbcore.vit import Tokens


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One quantity of one model."""

    values: Tensor
    """[names]."""
    maps: Tensor
    """[names, P]."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All runs that one photo needs."""

    model: Model
    image: np.ndarray
    device: str
    """Where torch twins run."""
    own: Output
    """The variant."""
    base: Model | None
    mask: np.ndarray | None
    """1 where a unit of the base survives in the variant, float32 [U of the base]; None for the
    base itself."""
    dense: Output | None
    """The base."""
    past: Output | None
    """The base, loads of the survivors only."""
    cut: Output | None
    """The base with the other units' gates at zero, loads of the survivors only."""

    @property
    def sizes(self) -> list[int]:
        """Units of each site of the variant."""
        return [len(site.kept) for site in self.model.variant.sites]

    def site_loads(self, output: Output) -> Tensor:
        """Loads of the sites [L]."""
        return sum_to_sites(torch.from_numpy(output.unit_load).double(), self.sizes)


Measure = Callable[[Runs], tuple[Reading | None, Reading | None]]
"""Runs -> the variant's reading and that of the cut base, None where it cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """An entry of the menu."""

    name: str
    of_blocks: bool
    """One value per block instead of one per site."""
    measure: Measure


QUANTITIES: Registry[Quantity] = Registry("quantity")


def quantity(name: str, *, of_blocks: bool = False) -> Callable[[Measure], Measure]:
    """Decorator that puts a function into `QUANTITIES`."""

    def add(measure: Measure) -> Measure:
        QUANTITIES.register(name)(Quantity(name=name, of_blocks=of_blocks, measure=measure))
        return measure

    return add


@quantity("burden")
def burden(runs: Runs) -> tuple[Reading | None, Reading | None]:
    """load_S(model) / load_S(dense) per site, its log2 per patch."""
    past = runs.past
    if past is None:
        return None, None
    past_site = runs.site_loads(past)

    def read(output: Output) -> Reading:
        maps = burden_map(
            torch.from_numpy(output.token_load).double(),
            torch.from_numpy(past.token_load).double(),
            past_site,
        )
        return Reading(values=runs.site_loads(output) / past_site, maps=maps)

    return read(runs.own), None if runs.cut is None else read(runs.cut)


@quantity("load")
def load(runs: Runs) -> tuple[Reading | None, Reading | None]:
    """Loads of the model itself per site and per patch; needs no dense past."""

    def read(output: Output) -> Reading:
        return Reading(
            values=runs.site_loads(output), maps=torch.from_numpy(output.token_load).double()
        )

    return read(runs.own), None if runs.cut is None else read(runs.cut)


@quantity("residual", of_blocks=True)
def block_residual(runs: Runs) -> tuple[Reading | None, Reading | None]:
    """Relative squared error of the stream after every block, from the torch twins."""
    if runs.base is None:
        return None, None
    dense = _block_outputs(runs.base, runs.image, runs.device)

    def read(outputs: list[Tensor]) -> Reading:
        parts = [residual(before, after) for before, after in zip(dense, outputs, strict=True)]
        maps = torch.stack([error[0] / power for error, power in parts])
        return Reading(values=maps.mean(-1), maps=maps)

    own = _block_outputs(runs.model, runs.image, runs.device, group=runs.own.group)
    null = (
        None
        if runs.cut is None
        else read(_block_outputs(runs.base, runs.image, runs.device, gate=runs.mask))
    )
    return read(own), null


@torch.no_grad()
def _block_outputs(
    model: Model,
    image: np.ndarray,
    device: str,
    *,
    group: np.ndarray | None = None,
    gate: np.ndarray | None = None,
) -> list[Tensor]:
    """Stream after every block, patches only, un-merged, on the CPU: depth x [1, P, D]."""
    outputs: list[Tensor] = []
    with model.twin(device) as twin:
        vit = twin.model

        def tap(index: int, stream: Tensor, tokens: Tokens) -> None:
            patches = stream[:, vit.num_prefix_tokens :]
            if tokens.group is not None:
                patches = patches.gather(
                    1, tokens.group[..., None].expand(-1, -1, patches.shape[-1])
                )
            outputs.append(patches.double().cpu())

        def on_device(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values)[None].to(device)

        vit(on_device(image), on_device(gate), on_device(group), block_tap=tap)
    return outputs
