"""Stem and block as functions of timm's modules, so that all models of a process can share what is
compiled once.

Shape letters as in `nbcore.vit.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor

ContributionTap = Callable[[bool, Tensor, Tensor], None]
"""(is MLP, stream at the sublayer's input, contribution), called by `block_forward`."""


def stem_forward(vit: Any, images: Tensor) -> Tensor:
    """Normalised images [B, 3, S, S] as patches [B, P, D], without positions."""
    return vit.patch_embed(images)


def block_forward(
    block: Block,
    x: Tensor,
    head_gate: Tensor | None,
    neuron_gate: Tensor | None,
    bias: Tensor | None,
    drop_rate: Tensor | None,
    tap: ContributionTap | None = None,
) -> Tensor:
    """One block of the Vision Transformer with gates on its units.

    A function of the block, since all blocks of a model can share what is compiled once.

    Args:
        block: timm's block, its weights.
        x: Residual stream [B, N, D].
        head_gate: Factors on head outputs [B or 1, H], or None for ones.
        neuron_gate: Factors on hidden activations [B or 1, M], or None for ones.
        bias: Added to the attention logits [B, 1, 1, N], or None.
        drop_rate: Probability that a sublayer is left out for an image (stochastic depth,
            arXiv:1603.09382), a scalar tensor; None for 0.
        tap: Reads both contributions.
    """
    attn, mlp = block.attn, block.mlp
    batch, num_tokens, _ = x.shape
    qkv = attn.qkv(block.norm1(x)).reshape(batch, num_tokens, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    dropout = attn.attn_drop.p if block.training else 0.0
    # [B, 1, 1, N] is expanded by hand: some fused kernels take no broadcast masks.
    mask = None if bias is None else bias.to(q.dtype).expand(batch, 1, num_tokens, num_tokens)
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    if head_gate is not None:
        z = z * head_gate[:, :, None, None].to(z.dtype)
    if tap is not None:
        tap(False, x, z)
    written = block.ls1(attn.proj_drop(attn.proj(z.transpose(1, 2).flatten(2))))
    x = x + _drop_path(written, drop_rate)
    h = mlp.drop1(mlp.act(mlp.fc1(block.norm2(x))))
    if neuron_gate is not None:
        h = h * neuron_gate[:, None, :].to(h.dtype)
    if tap is not None:
        tap(True, x, h)
    return x + _drop_path(block.ls2(mlp.drop2(mlp.fc2(h))), drop_rate)


def _drop_path(written: Tensor, rate: Tensor | None) -> Tensor:
    if rate is None:
        return written
    stays = torch.rand(len(written), 1, 1, device=written.device) >= rate
    return written * (stays / (1 - rate)).to(written.dtype)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The functions that a forward pass consists of; training passes compiled ones."""

    stem: Callable[[Any, Tensor], Tensor] = stem_forward
    block: Callable[..., Tensor] = block_forward


PLAIN = Parts()
