"""Sites and units: what of a Vision Transformer can be removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbcore.config import Arch

SiteKind = Literal["heads", "neurons"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One prunable layer: the heads of an attention or the hidden neurons of an MLP."""

    name: str
    """`blocks.{i}.attn` or `blocks.{i}.mlp`."""
    block: int
    kind: SiteKind
    num_units: int
    start: int
    """Position of the first unit among all U units of the model."""

    @property
    def units(self) -> slice:
        return slice(self.start, self.start + self.num_units)


def sites_of(arch: Arch) -> tuple[Site, ...]:
    """Sites of a model in the order attn, mlp of block 0, attn, mlp of block 1, ..."""
    sites: list[Site] = []
    start = 0
    for block, (heads, neurons) in enumerate(
        zip(arch.num_heads, arch.hidden_features, strict=True)
    ):
        for part, kind, units in (("attn", "heads", heads), ("mlp", "neurons", neurons)):
            name = f"blocks.{block}.{part}"
            sites.append(Site(name=name, block=block, kind=kind, num_units=units, start=start))  # type: ignore[arg-type]
            start += units
    return tuple(sites)
