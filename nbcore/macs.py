"""Multiply-accumulate operations of a model, per unit and in all: what every budget counts.

Counted: convolutions and linear layers, both products of attention, and the products of token
merging. Not counted, as usual: norms, activations, softmax, additions. One image, at the model's
full image size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nbcore.vit import ConvStem, PrunableViT


@dataclass(frozen=True, kw_only=True)
class MacsModel:
    """MACs as fixed part plus units times their cost."""

    fixed: int
    """Stem, merging, pooling and classifier."""
    per_unit: tuple[int, ...]
    """Cost of one unit of each site."""

    def total(self, num_units: tuple[int, ...] | list[int]) -> int:
        """MACs of a model that holds `num_units` units at each site."""
        return self.fixed + sum(cost * n for cost, n in zip(self.per_unit, num_units, strict=True))


def macs_of(model: PrunableViT) -> MacsModel:
    """Cost model of a dense or compact model, its merging included."""
    width = model.vit.embed_dim
    num_patches = model.grid[0] * model.grid[1]
    fixed = _stem_macs(model) + _pool_macs(model) + width * model.num_classes
    per_unit: list[int] = []
    for site in model.sites:
        tokens = model.num_prefix_tokens + num_patches
        if model.merge is not None and site.block >= model.merge.block:
            tokens -= model.merge.r
        if site.kind == "heads":
            head_dim = model.arch.head_dim
            per_unit.append(4 * tokens * width * head_dim + 2 * tokens**2 * head_dim)
        else:
            per_unit.append(2 * tokens * width)
    if model.merge is not None:
        num_a = (num_patches + 1) // 2
        similarity = num_a * (num_patches - num_a) * width
        averaging = (num_patches - model.merge.r) * num_patches * width
        fixed += similarity + averaging
    return MacsModel(fixed=fixed, per_unit=tuple(per_unit))


def _stem_macs(model: PrunableViT) -> int:
    stem = model.vit.patch_embed
    layers = [*stem.stages, stem.proj] if isinstance(stem, ConvStem) else [stem.proj]
    side, total = model.img_size, 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            side //= layer.stride[0]
            total += side * side * layer.weight.numel()
    return total


def _pool_macs(model: PrunableViT) -> int:
    pool = model.vit.attn_pool
    if pool is None:
        return 0
    tokens = model.grid[0] * model.grid[1]
    tokens += model.num_prefix_tokens if model.vit.pool_include_prefix else 0
    linear = sum(
        layer.weight.numel() * (tokens if name == "kv" else 1)
        for name, layer in pool.named_modules()
        if isinstance(layer, nn.Linear)
    )
    queries = tokens if model.vit.global_pool == "prr" else 1
    return linear + 2 * queries * tokens * model.vit.embed_dim
