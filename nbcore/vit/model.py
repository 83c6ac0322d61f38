"""The model: gates on contributions, taps, and merging inside a timm Vision Transformer.

`PrunableViT` holds an unchanged timm model and runs its submodules in its own forward pass, because
three things have to happen *inside* a block: gates multiply a unit's contribution, a tap reads it,
and after merging every token carries the number of patches it stands for.

Shape letters: B images, S image side, P patches of the original grid, T tokens (patches left after
merging, without prefix tokens), N all tokens, D width, H heads, d head width, M hidden neurons, U
units of all sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from nbcore.config import Arch, Merge
from nbcore.vit.block import PLAIN, ContributionTap, Parts
from nbcore.vit.merging import Tokens, match_tokens, merge_tokens
from nbcore.vit.sites import sites_of


class Tap(Protocol):
    """Reads a site during the forward pass."""

    def __call__(self, site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        """Called once per site.

        Args:
            site: Index of the site.
            stream: Residual stream at the sublayer's own input [B, N, D].
            contribution: Gated head outputs before `proj` [B, H, N, d], or gated activations
                before `fc2` [B, N, M].
            tokens: What the tokens stand for.
        """


def _site_tap(tap: Tap, block: int, tokens: Tokens) -> ContributionTap:
    """A tap of sites as a tap of one block's contributions."""

    def contribution_tap(is_mlp: bool, stream: Tensor, contribution: Tensor) -> None:
        tap(2 * block + is_mlp, stream, contribution, tokens)

    return contribution_tap


class PrunableViT(nn.Module):
    """A timm Vision Transformer with gates on every unit.

    Input: images [B, 3, S, S], RGB in [0, 1]; normalisation is part of the model.
    """

    vit: Any
    """The timm VisionTransformer; timm ships no types."""
    mean: Tensor
    std: Tensor
    keep: Tensor
    """One for every unit that is not masked [U]."""
    drop_rates: Tensor
    """Stochastic depth in training: the probability to leave out a sublayer, per block [depth]."""

    def __init__(
        self, vit: nn.Module, arch: Arch, merge: Merge | None, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__()
        self.vit = vit
        self.arch = arch
        self.merge = merge
        self.register_buffer("mean", mean.reshape(1, 3, 1, 1))
        self.register_buffer("std", std.reshape(1, 3, 1, 1))
        self.sites = sites_of(arch)
        self.num_units = sum(site.num_units for site in self.sites)
        self.register_buffer("keep", torch.ones(self.num_units), persistent=False)
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in self.vit.blocks]
        self.register_buffer("drop_rates", torch.tensor(rates), persistent=False)
        self.drops_paths = max(rates) > 0
        self.masked = False
        self._check_merge()

    def _check_merge(self) -> None:
        if self.merge is None:
            return
        if self.merge.block >= len(self.vit.blocks):
            raise ValueError(
                f"merge.block must be below the depth {len(self.vit.blocks)}, got "
                f"{self.merge.block}"
            )
        if self.vit.global_pool not in ("avg", "token"):
            raise ValueError(
                f"token merging needs global_pool 'avg' or 'token', which weigh tokens by size; "
                f"got {self.vit.global_pool!r}"
            )
        if self.vit.pool_include_prefix:
            raise ValueError("token merging does not support pool_include_prefix=True")
        num_a = (self.grid[0] * self.grid[1] + 1) // 2
        if self.merge.r > num_a:
            raise ValueError(
                f"merge.r must be at most {num_a} for a grid of {self.grid}, got {self.merge.r}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at the full image size."""
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    @property
    def img_size(self) -> int:
        return self.grid[0] * self.patch_size

    @property
    def patch_size(self) -> int:
        return self.vit.patch_embed.patch_size[0]

    @property
    def num_prefix_tokens(self) -> int:
        return self.vit.num_prefix_tokens

    @property
    def num_classes(self) -> int:
        return self.vit.num_classes

    def set_keep(self, keep: Tensor) -> None:
        """Mask units: contributions of units with keep False become zero.

        Args:
            keep: True where a unit stays; or factors in 0..1, for units that fade in [U].
        """
        if keep.shape != (self.num_units,):
            raise ValueError(f"keep must have shape ({self.num_units},), got {tuple(keep.shape)}")
        self.keep.copy_(keep.to(self.keep))
        self.masked = True

    def forward(
        self,
        images: Tensor,
        unit_gate: Tensor | None = None,
        group: Tensor | None = None,
        tap: Tap | None = None,
        block_tap: Callable[[int, Tensor, Tokens], None] | None = None,
        *,
        replace_mask: bool = False,
        parts: Parts = PLAIN,
    ) -> Tensor:
        """Class logits of images.

        Args:
            images: RGB in [0, 1], [B, 3, S, S].
            unit_gate: Factors on the units' contributions [B, U] or [1, U]; None means ones.
            group: A fixed match of patches to tokens [B, P] instead of the model's own (merging
                models only).
            tap: Called at every site with what it reads and writes.
            block_tap: Called after every block with its index, output [B, N, D] and tokens.
            replace_mask: Use `unit_gate` in place of the mask instead of multiplying both, so that
                masked units get gradients too.
            parts: What runs the stem and the blocks.

        Returns:
            Logits [B, K].
        """
        gate = unit_gate if replace_mask else self._effective_gate(unit_gate)
        # In one go, so that the backward pass joins the gradients of all sites in one go too.
        sizes = [site.num_units for site in self.sites]
        gates = [None] * len(sizes) if gate is None else gate.split(sizes, 1)
        x, tokens, bias = self._embed(images, parts), Tokens(), None
        for index, block in enumerate(self.vit.blocks):
            if self.merge is not None and index == self.merge.block:
                x, tokens, bias = self._merge(x, group)
            x = parts.block(
                block,
                x,
                gates[2 * index],
                gates[2 * index + 1],
                bias,
                self.drop_rates[index] if self.training and self.drops_paths else None,
                None if tap is None else _site_tap(tap, index, tokens),
            )
            if block_tap is not None:
                block_tap(index, x, tokens)
        return self._classify(x, tokens)

    def _effective_gate(self, unit_gate: Tensor | None) -> Tensor | None:
        if not self.masked:
            return unit_gate
        return self.keep[None] if unit_gate is None else unit_gate * self.keep

    def _embed(self, images: Tensor, parts: Parts) -> Tensor:
        vit = self.vit
        x = parts.stem(vit, (images - self.mean) / self.std)
        side = images.shape[-1] // self.patch_size
        if vit.pos_embed is None or side == self.grid[0]:
            return vit.norm_pre(vit._pos_embed(x))
        if vit.num_prefix_tokens:
            raise ValueError("training at a smaller image side needs a model without prefix tokens")
        position = resample_abs_pos_embed(vit.pos_embed, [side, side], [*self.grid], 0)
        return vit.norm_pre(vit.pos_drop(x + position))

    def _merge(self, x: Tensor, group: Tensor | None) -> tuple[Tensor, Tokens, Tensor | None]:
        """At a smaller side as many tokens in proportion, rounded down; maybe none."""
        assert self.merge is not None
        prefix = self.num_prefix_tokens
        patches = x[:, prefix:]
        r = self.merge.r * patches.shape[1] // (self.grid[0] * self.grid[1])
        if group is None:
            if r == 0:
                return x, Tokens(), None
            group = match_tokens(patches, r)
        merged, tokens = merge_tokens(patches, group, patches.shape[1] - r)
        assert tokens.sizes is not None
        bias = tokens.sizes.log()
        if prefix:
            merged = torch.cat([x[:, :prefix], merged], dim=1)
            bias = torch.cat([bias.new_zeros(bias.shape[0], prefix), bias], dim=1)
        return merged, tokens, bias[:, None, None, :]

    def _classify(self, x: Tensor, tokens: Tokens) -> Tensor:
        vit = self.vit
        x = vit.norm(x)
        if tokens.sizes is not None and vit.global_pool == "avg":
            weights = tokens.sizes.to(x.dtype) / tokens.sizes.sum(-1, keepdim=True).to(x.dtype)
            x = (weights[:, None, :] @ x[:, self.num_prefix_tokens :])[:, 0]
        else:
            x = vit.pool(x)
        return vit.head(vit.head_drop(vit.fc_norm(x)))

    def write_weight(self, site: int) -> Tensor:
        """What a site's units write into the stream, LayerScale folded in.

        Returns:
            [D, H, d] for heads (columns of `proj`), [D, M] for neurons (columns of `fc2`).
        """
        block = self.vit.blocks[self.sites[site].block]
        heads = self.sites[site].kind == "heads"
        weight = block.attn.proj.weight if heads else block.mlp.fc2.weight
        scale = getattr(block.ls1 if heads else block.ls2, "gamma", None)
        if scale is not None:
            weight = scale[:, None] * weight
        return weight.unflatten(1, (block.attn.num_heads, block.attn.head_dim)) if heads else weight

    def unit_parameters(self, site: int) -> Iterator[tuple[nn.Parameter, int, Tensor]]:
        """Parameters that belong to the units of a site.

        Yields:
            (parameter, dim, owner): along `dim` the entry i belongs to unit owner[i] (int64).
        """
        spec = self.sites[site]
        block = self.vit.blocks[spec.block]
        units = torch.arange(spec.num_units, device=self.keep.device)
        if spec.kind == "heads":
            columns = units.repeat_interleave(block.attn.head_dim)
            yield block.attn.proj.weight, 1, columns
            yield block.attn.qkv.weight, 0, columns.repeat(3)
            if block.attn.qkv.bias is not None:
                yield block.attn.qkv.bias, 0, columns.repeat(3)
        else:
            yield block.mlp.fc2.weight, 1, units
            yield block.mlp.fc1.weight, 0, units
            if block.mlp.fc1.bias is not None:
                yield block.mlp.fc1.bias, 0, units
