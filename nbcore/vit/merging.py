"""Token merging in one bipartite pass, and its way back to the original patches.

Shape letters: B images, P patches of the original grid, T tokens after merging, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Which patches the tokens of a layer stand for; both None where nothing was merged."""

    sizes: Tensor | None = None
    """Patches per token [B, T]."""
    group: Tensor | None = None
    """For each original patch the index of the token that carries it, int64 [B, P]."""


def match_tokens(patches: Tensor, r: int) -> Tensor:
    """Bipartite soft matching: which token carries each patch after the r best pairs are merged.

    Tokens at even positions (set A) look for their most similar token at odd positions (set B); the
    r tokens of A with the most similar partners join them. Ties go to the lower index. Similar is
    what points the same way once each token's mean over the width is gone, since that mean is gone
    in every later LayerNorm: constants in write columns change no match. Runs in at least single
    precision whatever the autocast state, since a rounded similarity changes the match.

    Args:
        patches: Tokens of the residual stream [B, P, D].
        r: Number of tokens that disappear, at most ceil(P / 2).

    Returns:
        Token index of each patch, int64 [B, P], tokens numbered 0..P-r-1: kept tokens of A, then B.

    Source:
        Idea: Bolya et al., "Token Merging", arXiv:2210.09461. Differs in: cosine of centred tokens
        instead of keys, since removed heads would vote through their keys; one pass at one block.
    """
    num_patches = patches.shape[1]
    num_a = (num_patches + 1) // 2
    if not 1 <= r <= num_a:
        raise ValueError(f"can merge 1 to {num_a} of {num_patches} tokens in one pass, got r={r}")
    device_type = patches.device.type
    with torch.no_grad(), torch.autocast(device_type, enabled=False):
        x = patches if patches.dtype == torch.float64 else patches.float()
        x = x - x.mean(-1, keepdim=True)
        x = x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp_min(1e-12)
        similarity = x[:, ::2] @ x[:, 1::2].transpose(1, 2)
        best, partner = similarity.max(-1).values, similarity.argmax(-1)
        better = best[:, None, :] > best[:, :, None]
        index = torch.arange(num_a, device=x.device)
        earlier = (best[:, None, :] == best[:, :, None]) & (index[None, :] < index[:, None])
        merged = (better | earlier).sum(-1) < r
        kept_position = (~merged).long().cumsum(-1) - 1
        group_a = torch.where(merged, partner + (num_a - r), kept_position)
        group_b = torch.arange(num_a - r, num_patches - r, device=x.device)
        both = torch.cat([group_a, group_b.expand(x.shape[0], -1)], dim=1)
        order = torch.empty(num_patches, dtype=torch.int64, device=x.device)
        order[::2] = index
        order[1::2] = torch.arange(num_a, num_patches, device=x.device)
        return both[:, order]


def merge_tokens(patches: Tensor, group: Tensor, num_tokens: int) -> tuple[Tensor, Tokens]:
    """Average the patches of each group, in their own precision whatever the autocast state.

    Args:
        patches: Tokens before merging [B, P, D].
        group: Token index of each patch [B, P].
        num_tokens: Number of tokens afterwards, T.

    Returns:
        Merged tokens [B, T, D] and what they stand for.
    """
    member = group[:, None, :] == torch.arange(num_tokens, device=group.device)[None, :, None]
    with torch.autocast(patches.device.type, enabled=False):
        member = member.to(patches.dtype)
        sizes = member.sum(-1)
        merged = (member @ patches) / sizes[..., None]
    return merged, Tokens(sizes=sizes, group=group)


def unmerge(values: Tensor, tokens: Tokens) -> Tensor:
    """Give each original patch its token's value: [B, T] -> [B, P], or [B, T, D] -> [B, P, D]."""
    if tokens.group is None:
        return values
    if values.ndim == 2:
        return torch.gather(values, 1, tokens.group)
    return torch.gather(values, 1, tokens.group[..., None].expand(-1, -1, values.shape[-1]))
