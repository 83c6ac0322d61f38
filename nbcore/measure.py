"""Burden of a pruned model against its dense base, over many photos (METHODS: burden, null,
selection, take-over, residual, cost). The arithmetic is `nbcore.burden`; this file only feeds
it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from tqdm import tqdm

from nbcore.burden import (
    BurdenReport,
    MeteredViT,
    PooledLoads,
    cost,
    occupancy,
    pooled_site_loads,
    residual,
    selection_factor,
    takeover,
    token_weights,
)
from nbcore.macs import macs_of
from nbcore.preprocessing import as_input
from nbcore.vit import PrunableViT, Tokens, unmerge


@dataclass(kw_only=True)
class _Sums:
    """Running sums of one model's loads."""

    power: Tensor | None = None
    stream: Tensor | None = None
    count: int = 0

    def add(self, unit_load: Tensor, stream: Tensor, site_of_unit: Tensor) -> None:
        square = stream.double().pow(2)
        power = (unit_load.double().pow(2) * square[:, site_of_unit]).sum(0)
        self.power = power if self.power is None else self.power + power
        self.stream = square.sum(0) if self.stream is None else self.stream + square.sum(0)
        self.count += len(unit_load)

    def pooled(self, sizes: Sequence[int]) -> PooledLoads:
        assert self.power is not None
        assert self.stream is not None
        return PooledLoads(
            power=tuple((self.power / self.count).split(list(sizes))),
            stream=self.stream / self.count,
        )


@dataclass(kw_only=True)
class _Outputs:
    """What one forward pass wrote, patches only, un-merged."""

    survivors: list[Tensor] = field(default_factory=list)
    removed: list[Tensor] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)
    covariances: list[Tensor | None] = field(default_factory=list)
    """Of the survivors' contributions, summed over images; None for heads."""


@torch.no_grad()
def pooled_loads(metered: MeteredViT, images: Tensor, *, batch_size: int = 32) -> PooledLoads:
    """Loads of every unit of a model over many photos.

    Args:
        metered: Model with calibration means.
        images: uint8 [n, 3, S, S].
        batch_size: Images per forward pass.
    """
    sums, owner = _Sums(), _site_of_unit(metered.model)
    for batch in images.split(batch_size):
        _, unit_load, _, stream, *_ = metered(as_input(batch.to(metered.model.mean.device)))
        sums.add(unit_load, stream, owner)
    return sums.pooled([site.num_units for site in metered.model.sites])


@torch.no_grad()
def measure_burden(
    dense: MeteredViT,
    pruned: MeteredViT,
    kept: Sequence[Tensor],
    images: Tensor,
    *,
    batch_size: int = 32,
    cut: MeteredViT | None = None,
) -> BurdenReport:
    """Compare a compact model with the dense model it was pruned from.

    The cut model (dense weights, survivors only), whose burden is the null B0, is centred by the
    dense model's means, as when the page prunes the dense graph live. Centred by its own means, as
    the pruned model is, it would read a little lower. It merges no tokens: where the pruned model
    does, part of B/B0 is what merging does without any training.

    Args:
        dense: Dense base with calibration means.
        pruned: Compact model with calibration means, on the same device.
        kept: Per site the indices of the survivors in the dense model.
        images: uint8 [n, 3, S, S].
        batch_size: Images per forward pass.
        cut: Where single weights were removed and not units: the dense model without them, with
            the dense model's means.

    Raises:
        ValueError: If there is no image.
    """
    if not len(images):
        raise ValueError("measuring burden needs at least one image")
    device = dense.model.mean.device
    kept = [units.to(device) for units in kept]
    survives = torch.zeros(dense.model.num_units, device=device)
    for spec, units in zip(dense.model.sites, kept, strict=True):
        survives[spec.start + units] = 1
    sums = {name: _Sums() for name in ("dense", "cut", "pruned")}
    taken = torch.zeros(len(kept), 2, dtype=torch.float64, device=device)
    missed = torch.zeros(len(kept) // 2, 2, dtype=torch.float64, device=device)
    none = torch.zeros((), dtype=torch.float64, device=device)
    spreads = ([none] * len(kept), [none] * len(kept))
    for batch in tqdm(images.split(batch_size), desc="measure burden", unit="batch"):
        x = as_input(batch.to(device))
        for name, model, gate in (
            ("dense", dense, None),
            ("cut", cut or dense, survives[None]),
            ("pruned", pruned, None),
        ):
            _, unit_load, _, stream, *_ = model(x, gate)
            sums[name].add(unit_load, stream, _site_of_unit(model.model))
        before, after = _outputs(dense, kept, x), _outputs(pruned, None, x)
        for found, total in zip((before, after), spreads, strict=True):
            for site, spread in enumerate(found.covariances):
                if spread is not None:
                    total[site] = total[site] + spread
        for site in range(len(kept)):
            pair = takeover(after.survivors[site] - before.survivors[site], before.removed[site])
            taken[site] += torch.stack(pair).double()
        for block, (one, two) in enumerate(zip(before.blocks, after.blocks, strict=True)):
            error, power = residual(one, two)
            missed[block] += torch.stack([error.mean(1).sum(), power.sum()]).double()
    report = _report(dense, pruned, kept, sums, taken, missed)
    before_after = [
        tuple(occupancy(spread).item() if spread.ndim else None for spread in total)
        for total in spreads
    ]
    return replace(report, occupancy_dense=before_after[0], occupancy=before_after[1])


def _report(
    dense: MeteredViT,
    pruned: MeteredViT,
    kept: Sequence[Tensor],
    sums: dict[str, _Sums],
    taken: Tensor,
    missed: Tensor,
) -> BurdenReport:
    sizes = [site.num_units for site in dense.model.sites]
    loads = {name: sums[name].pooled(sizes) for name in ("dense", "cut")}
    after = sums["pruned"].pooled([site.num_units for site in pruned.model.sites])
    reference = pooled_site_loads(loads["dense"], kept)
    burden = pooled_site_loads(after) / reference
    missing = (missed[:, 0] / missed[:, 1]).repeat_interleave(2)
    removed = [len(units) < size for units, size in zip(kept, sizes, strict=True)]
    return BurdenReport(
        sites=tuple(site.name for site in dense.model.sites),
        burden=tuple(burden.tolist()),
        burden_null=tuple((pooled_site_loads(loads["cut"], kept) / reference).tolist()),
        selection=tuple(selection_factor(loads["dense"], kept).tolist()),
        stream=tuple((after.stream / loads["dense"].stream).sqrt().tolist()),
        takeover=tuple(
            (top / bottom).item() if gone and bottom > 0 else None
            for gone, (top, bottom) in zip(removed, taken, strict=True)
        ),
        residual=tuple(missing.tolist()),
        cost=tuple(cost(missing, burden).tolist()),
    )


def _site_of_unit(model: PrunableViT) -> Tensor:
    sizes = torch.tensor([site.num_units for site in model.sites])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(model.mean.device)


def _outputs(metered: MeteredViT, kept: Sequence[Tensor] | None, x: Tensor) -> _Outputs:
    """Centred outputs of survivors and removed units at every site, and block outputs."""
    model, found, prefix = metered.model, _Outputs(), metered.model.num_prefix_tokens

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        own = contribution[..., prefix:, :]
        weight = model.write_weight(site)
        weight = weight - weight.mean(0, keepdim=True)
        if own.ndim == 4:
            units, weight = own - metered.means[site][:, None], weight.flatten(1)
            units, width = units.transpose(1, 2).flatten(2), model.arch.head_dim
        else:
            units, width = own - metered.means[site], 1
        chosen = None if kept is None else kept[site]
        found.covariances.append(
            None if own.ndim == 4 else _covariance(units, weight, tokens, chosen)
        )
        if kept is None:
            found.survivors.append(unmerge(units @ weight.T, tokens))
            return
        stays = torch.zeros(units.shape[-1] // width, dtype=units.dtype, device=units.device)
        stays[kept[site]] = 1
        stays = stays.repeat_interleave(width)
        found.survivors.append(unmerge((units * stays) @ weight.T, tokens))
        found.removed.append(unmerge((units * (1 - stays)) @ weight.T, tokens))

    def block_tap(block: int, output: Tensor, tokens: Tokens) -> None:
        found.blocks.append(unmerge(output[:, prefix:], tokens))

    model(x, tap=tap, block_tap=block_tap)
    return found


def _covariance(units: Tensor, weight: Tensor, tokens: Tokens, survivors: Tensor | None) -> Tensor:
    """Sum over images of the mean over patches of a aᵀ, a = (h - mu) ||C W2[:, u]||, in double
    precision [n, n].

    Args:
        units: h - mu [B, T, M].
        weight: C W2 [D, M].
        tokens: What the tokens stand for.
        survivors: Indices of the units that count; None means all.
    """
    contributions = units * weight.norm(dim=0)
    if survivors is not None:
        contributions = contributions[..., survivors]
    weights = token_weights(units.shape[1], tokens, units).expand(len(units), -1)
    weighted = (contributions * weights[..., None]).flatten(0, 1)
    return (weighted.T @ contributions.flatten(0, 1)).double()


def mean_over_sites(
    report: BurdenReport, dense: PrunableViT, kept: Sequence[Tensor]
) -> dict[str, float | None]:
    """One number per quantity: site values averaged by the MACs removed at the site.

    Sites where a value is undefined are left out; None where it is undefined everywhere.
    """
    gone = removed_macs(dense, kept)
    names = ("burden", "burden_null", "selection", "takeover", "residual", "cost", "stream")
    return {name: weighted_mean(getattr(report, name), gone) for name in names}


def removed_macs(dense: PrunableViT, kept: Sequence[Tensor]) -> list[int]:
    """MACs of the units that each site lost."""
    costs = macs_of(dense).per_unit
    return [
        cost * (site.num_units - len(units))
        for cost, site, units in zip(costs, dense.sites, kept, strict=True)
    ]


def weighted_mean(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Mean of the values that are defined; None if none with a weight is."""
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None and w > 0]
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else None
