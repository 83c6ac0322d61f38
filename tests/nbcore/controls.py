"""The five controls of METHODS §3: changes of a model that no burden may see.

Each alters a model in place, calibration means included, and returns for each of its units which
unit it was before. LayerNorms need eps = 0 for (iii).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbcore.burden import MeteredViT


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def scaled_activations(twin: MeteredViT) -> Tensor:
    """(i) h scaled by c behind the activation, W2 / c."""
    for index, block in enumerate(twin.model.vit.blocks):
        block.mlp.act = nn.Sequential(block.mlp.act, Scale(3.7))
        block.mlp.fc2.weight /= 3.7
        twin.means[2 * index + 1].mul_(3.7)
    return torch.arange(twin.model.num_units)


def scaled_values(twin: MeteredViT) -> Tensor:
    """(ii) W_V and b_V by c, W_O / c."""
    for index, block in enumerate(twin.model.vit.blocks):
        values = slice(2 * block.attn.attn_dim, None)
        block.attn.qkv.weight[values] *= 0.21
        block.attn.qkv.bias[values] *= 0.21
        block.attn.proj.weight /= 0.21
        twin.means[2 * index].mul_(0.21)
    return torch.arange(twin.model.num_units)


def scaled_stream(twin: MeteredViT) -> Tensor:
    """(iii) Everything that is written to the residual stream by c."""
    vit = twin.model.vit
    for tensor in (vit.pos_embed, vit.cls_token, vit.reg_token, *vit.patch_embed.parameters()):
        if tensor is not None:
            tensor *= 5.3
    for block in vit.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight *= 5.3
            layer.bias *= 5.3
    return torch.arange(twin.model.num_units)


def shifted_columns(twin: MeteredViT) -> Tensor:
    """(iv) A constant added to each write column, which every later LayerNorm removes."""
    generator = torch.Generator().manual_seed(9)
    for block in twin.model.vit.blocks:
        for layer, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            shift = torch.randn(1, layer.in_features, generator=generator, dtype=torch.float64)
            layer.weight += shift / getattr(scale, "gamma", torch.ones(1))[:, None]
    return torch.arange(twin.model.num_units)


def permuted_units(twin: MeteredViT) -> Tensor:
    """(v) Units in another order; returns where each came from."""
    generator = torch.Generator().manual_seed(9)
    source = torch.arange(twin.model.num_units)
    for index, site in enumerate(twin.model.sites):
        order = torch.randperm(site.num_units, generator=generator)
        source[site.units] = site.start + order
        for parameter, dim, owner in twin.model.unit_parameters(index):
            # Entries of one unit lie together, within q, k and v apart.
            width = twin.model.arch.head_dim if site.kind == "heads" else 1
            rows = torch.arange(len(owner)).reshape(-1, site.num_units, width)
            parameter.copy_(parameter.index_select(dim, rows[:, order].flatten()))
        twin.means[index].copy_(twin.means[index][order].clone())
    return source


CONTROLS = [scaled_activations, scaled_values, scaled_stream, shifted_columns, permuted_units]
