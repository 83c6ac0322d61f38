"""Methods that look inside the Vision Transformer: at its last tokens and at its attention.

Both read a twin through forward hooks that are gone when the block ends, whatever happens in it;
nothing of the model is changed. They need the names that timm gives to a block's parts, which
else only `nbcore.vit` knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from app.question import Found, Question, attribution_method
from nbcore.vit import Tokens, unmerge

CAM_NOTE = "Patches that this model merged into one token share one value."
ROLLOUT_NOTE = "Patches that this model merged into one token share what it attends to."


@attribution_method(
    "grad_cam",
    title="Grad-CAM",
    shows="Where the last layer's tokens hold features that raise the class's score; earlier "
    "layers may have carried them there from elsewhere on the photo.",
    sign="Never negative: what speaks against the class is cut off.",
    cost="fast",
    signed=False,
    unit="Evidence in the last layer",
    note=CAM_NOTE,
)
def grad_cam(question: Question) -> Found:
    """Channels of the last block's normalised tokens, weighted by their mean gradient.

    Source:
        Selvaraju et al., "Grad-CAM", arXiv:1610.02391, Eqs. (1) and (2). Differs in: the feature
        map is the patches' tokens at `blocks[-1].norm1` laid out on the grid, prefix tokens left
        out and merged ones given back to their patches; behind the last block's output only the
        pooled token has a gradient where a class token is read.
    """
    layer = question.model.vit.blocks[-1].norm1
    with torch.enable_grad(), _outputs_of([layer]) as outputs:
        merged: list[Tokens] = []
        logits = question.model(
            torch.from_numpy(question.image)[None].to(question.device).requires_grad_(),
            question.gate,
            question.group,
            block_tap=lambda _index, _stream, tokens: merged.append(tokens),
        )
        (tokens,) = outputs
        (gradients,) = torch.autograd.grad(logits[0, question.target], tokens)
    prefix = question.model.num_prefix_tokens
    features = unmerge(tokens.detach()[:, prefix:], merged[-1])
    shared = gradients[:, prefix:]
    if merged[-1].sizes is not None:
        # A token is the mean of its patches, so each of them has an equal part of its gradient.
        shared = shared / merged[-1].sizes[..., None]
    cam = weighted_channels(features.mT, unmerge(shared, merged[-1]).mT)
    return Found(patches=cam[0].double().cpu().numpy().reshape(question.grid))


def weighted_channels(features: Tensor, gradients: Tensor) -> Tensor:
    """ReLU of the channels' sum, each weighted by its mean gradient.

    Args:
        features: [B, C, P].
        gradients: Of the class's logit [B, C, P].

    Returns:
        [B, P], >= 0.
    """
    weights = gradients.mean(-1, keepdim=True)
    return (weights * features).sum(1).relu()


@attribution_method(
    "attention_rollout",
    title="Attention rollout",
    shows="From which patches attention can carry something to the answer, layer by layer, all "
    "heads alike; it is the same map for every class.",
    sign="Never negative: shares of attention, which add up to one, not evidence for a class.",
    cost="fast",
    signed=False,
    unit="Share of attention",
    note=ROLLOUT_NOTE,
)
def attention_rollout(question: Question) -> Found:
    """Attention matrices of all blocks multiplied, half of each left to the residual path.

    Source:
        Abnar and Zuidema, "Quantifying Attention Flow in Transformers", arXiv:2005.00928. Differs
        in: heads whose gate is zero do not vote; merging is one more matrix on the way, which
        averages patches; read at what the model pools.
    """
    model = question.model
    with torch.no_grad():
        attention, merged = attention_of(
            question.model,
            torch.from_numpy(question.image)[None].to(question.device),
            question.gate,
            question.group,
        )
    steps = []
    for index, (found, tokens) in enumerate(zip(attention, merged, strict=True)):
        if tokens.group is not None and merged[index - 1].group is None:
            steps.append(_merging(tokens, model.num_prefix_tokens))
        votes = _votes(question, index)
        mean = (found[0].double() * votes[:, None, None]).sum(0) / votes.sum().clamp_min(1)
        # A layer whose heads are all turned off passes everything on.
        steps.append(with_residual(mean) if votes.sum() else torch.eye(len(mean)).to(mean))
    shares = _pooled(model, merged[-1], len(steps[-1])).to(steps[-1]) @ rollout(steps)
    patches = shares[model.num_prefix_tokens :]
    return Found(patches=patches.cpu().numpy().reshape(question.grid))


def with_residual(attention: Tensor) -> Tensor:
    """Half attention, half the token itself [N, N]."""
    return 0.5 * attention + 0.5 * torch.eye(len(attention)).to(attention)


def rollout(steps: Sequence[Tensor]) -> Tensor:
    """Product of the steps, the last one leftmost: rows say where a token's content comes from.

    Args:
        steps: Matrices [tokens after, tokens before], each row adding up to one.

    Returns:
        [tokens at the end, tokens at the start]; rows add up to one.
    """
    product = torch.eye(steps[0].shape[1]).to(steps[0])
    for step in steps:
        product = step @ product
    return product


def attention_of(
    model: Any, images: Tensor, gate: Tensor | None, group: Tensor | None
) -> tuple[list[Tensor], list[Tokens]]:
    """Attention probabilities of every block [B, H, N, N], and what the tokens stand for there.

    Worked out from each block's queries and keys, since fused attention never builds them.
    """
    merged: list[Tokens] = []
    with _outputs_of([block.attn.qkv for block in model.vit.blocks]) as outputs:
        model(images, gate, group, block_tap=lambda _index, _stream, tokens: merged.append(tokens))
    found = []
    for block, qkv, tokens in zip(model.vit.blocks, outputs, merged, strict=True):
        attn = block.attn
        heads = qkv.unflatten(-1, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(heads[0]), attn.k_norm(heads[1])
        scores = q @ k.mT * attn.head_dim**-0.5
        if tokens.sizes is not None:
            prefix = scores.new_zeros(len(scores), model.num_prefix_tokens)
            bias = torch.cat([prefix, tokens.sizes.to(scores).log()], 1)
            scores = scores + bias[:, None, None, :]
        found.append(scores.softmax(-1))
    return found, merged


@contextmanager
def _outputs_of(modules: Sequence[Any]) -> Iterator[list[Tensor]]:
    """What the modules give in the forward pass inside the block, in the order they run."""
    outputs: list[Tensor] = []
    with ExitStack() as hooks:
        for module in modules:
            handle = module.register_forward_hook(
                lambda _module, _given, output: outputs.append(output)
            )
            hooks.callback(handle.remove)
        yield outputs


def _votes(question: Question, block: int) -> Tensor:
    """1 for each head that is on [H]."""
    site = question.model.sites[2 * block]
    if question.gate is None:
        return torch.ones(site.num_units, device=question.device, dtype=torch.float64)
    return (question.gate[0, site.units] != 0).double()


def _merging(tokens: Tokens, prefix: int) -> Tensor:
    """The merge as a matrix: each token the mean of its patches [prefix + T, prefix + P]."""
    assert tokens.group is not None
    assert tokens.sizes is not None
    sizes = tokens.sizes[0].double()
    member = torch.arange(len(sizes), device=sizes.device)[:, None] == tokens.group[0]
    return torch.block_diag(torch.eye(prefix).to(sizes), member.double() / sizes[:, None])


def _pooled(model: Any, tokens: Tokens, num_tokens: int) -> Tensor:
    """How much the model's answer reads of each token at the end [N]."""
    weights = torch.zeros(num_tokens, dtype=torch.float64)
    prefix = model.num_prefix_tokens
    if model.vit.global_pool == "token" and prefix:
        weights[0] = 1.0
    elif tokens.sizes is not None:
        weights[prefix:] = tokens.sizes[0].double().cpu()
    else:
        weights[prefix:] = 1.0
    return weights / weights.sum()
