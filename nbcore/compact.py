"""Masked model -> smaller model with the same outputs."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from nbcore.vit import PrunableViT, build_model, fold_batchnorm


@torch.no_grad()
def compact(model: PrunableViT, keep: Tensor) -> PrunableViT:
    """Remove the units that `keep` marks False.

    Exact because gates sit on contributions: a unit with gate 0 adds nothing, so leaving its rows
    and columns out changes nothing but the order of sums. A stem's BatchNorm is folded too.

    Args:
        model: Dense or masked model; left as it is.
        keep: True where a unit stays [U].

    Returns:
        A model in evaluation mode with `arch` of its own.

    Raises:
        ValueError: If a site would lose all of its units.
    """
    keep = keep.bool().to(model.keep.device)
    kept = kept_units(model, keep)
    arch = replace(
        model.arch,
        num_heads=tuple(len(units) for units in kept[0::2]),
        hidden_features=tuple(len(units) for units in kept[1::2]),
    )
    small = build_model(arch, model.merge).to(model.keep.device, next(model.parameters()).dtype)
    state = folded_state(model)
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    for site, units in enumerate(kept):
        for name, dim, owner in _owned(model, site):
            position = torch.isin(owner, units).nonzero()[:, 0]
            state[name] = state[name].index_select(dim, position)
    wrong = [name for name in shapes if state[name].shape != shapes[name]]
    assert not wrong, f"compaction left {wrong} with other shapes"
    small.load_state_dict(state)
    return small.eval()


def kept_units(model: PrunableViT, keep: Tensor) -> list[Tensor]:
    """Indices of the kept units within each site.

    Raises:
        ValueError: If a site keeps none.
    """
    kept = [keep[site.units].nonzero()[:, 0] for site in model.sites]
    for site, units in zip(model.sites, kept, strict=True):
        if not len(units):
            raise ValueError(
                f"{site.name} would keep none of its {site.num_units} {site.kind}; at least one "
                "must stay"
            )
    return kept


def folded_state(model: PrunableViT) -> dict[str, Tensor]:
    """State of a copy of the model whose BatchNorm is folded."""
    twin = copy.deepcopy(model).eval()
    fold_batchnorm(twin)
    return twin.state_dict()


def _owned(model: PrunableViT, site: int) -> list[tuple[str, int, Tensor]]:
    """(name of the parameter in the state, dim, owner) of everything that belongs to a site's
    units."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [(names[id(p)], dim, owner) for p, dim, owner in model.unit_parameters(site)]
