"""Mitigation `burden_quota`: layers that carry more than they used to lose fewer units.

At each removal every site has a burden: the load of its present survivors over the load of the same
units in the dense model at the fork, token merging left out. Its share of the removal is weighted
by

    exp(-gamma z(burden)),   z over the sites of the same kind

The equation is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbcore.burden import PooledLoads, pooled_site_loads
from nbcore.mitigation.base import MITIGATIONS, Batches, Mitigation, refuse
from nbcore.mitigation.loads import measure_loads
from nbcore.pruning import Pruner, Quota
from nbcore.pruning.base import PrunerFactory
from nbcore.vit import PrunableViT, Site, with_merge

SMALLEST_SPREAD = 0.01
"""Standard deviation of burdens below which they count as equal: before the first removal all are 1
but for noise, which z would blow up to full size."""


@MITIGATIONS.register("burden_quota")
class BurdenQuota(Mitigation):
    """Shares out removals by burden, measured on a few training batches at each removal."""

    def __init__(self, *, gamma: float = 0.5) -> None:
        """Choose how much burden counts.

        Args:
            gamma: 0 shares out as the host would; at 0.5 a layer two standard deviations above the
                mean burden loses about a third of what an average one does.
        """
        if gamma < 0:
            raise ValueError(f"burden_quota needs gamma >= 0, got {gamma}")
        self.gamma = gamma

    def check_host(self, host: Pruner | PrunerFactory) -> None:
        fault = "does not share out removals between sites"
        reason = "it has none, or has fixed or learned how many units each site keeps"
        refuse("burden_quota", host, lambda other: other.shares_out, fault, reason)

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        self.model = model
        self.batches = batches
        self.fork = measure_loads(with_merge(model, None), batches())

    def quota(self) -> Quota:
        return self.weights

    def weights(self) -> Tensor:
        """Weight of each site in the next removal [L]."""
        now = pooled_site_loads(measure_loads(self.model, self.batches()))  # what is gone has none
        kept = [(self.model.keep[site.units] > 0).nonzero()[:, 0] for site in self.model.sites]
        burden = now / pooled_site_loads(self.fork, kept)
        return quota_weights(burden, self.model.sites, self.gamma)

    def state_dict(self) -> dict[str, Any]:
        return {"power": list(self.fork.power), "stream": self.fork.stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.fork.stream.device
        self.fork = PooledLoads(
            power=tuple(power.to(device) for power in state["power"]),
            stream=state["stream"].to(device),
        )


def quota_weights(burden: Tensor, sites: Sequence[Site], gamma: float) -> Tensor:
    """exp(-gamma z), z = deviation from the mean burden of the sites of the same kind, in standard
    deviations [L]."""
    weights = torch.ones_like(burden)
    for kind in ("heads", "neurons"):
        own = torch.tensor([site.kind == kind for site in sites], device=burden.device)
        spread = burden[own].std(correction=0).clamp_min(SMALLEST_SPREAD)
        weights[own] = (-gamma * (burden[own] - burden[own].mean()) / spread).exp()
    return weights
