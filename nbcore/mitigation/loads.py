"""Loads of every unit on a few batches, in one forward pass each: what mitigations steer by.

The quantities are those of `nbcore.burden`; mean and second moment are gathered together, so no
calibration has to go before:

    mean a_u² = (E[h_u²] - E[h_u]²) ||C W2[:, u]||²                     (MLP neuron)
    mean a_h² = tr(W_O^hᵀ C W_O^h (E[z_h z_hᵀ] - E[z_h] E[z_h]ᵀ))       (head)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbcore.burden import PooledLoads, centred_gram, stream_power, token_weights
from nbcore.vit import PrunableViT, Tokens


@torch.no_grad()
def measure_loads(
    model: PrunableViT, batches: Sequence[Tensor], gate: Tensor | None = None
) -> PooledLoads:
    """Loads pooled over images, contributions centred on their own means; patches only.

    Args:
        model: Used in evaluation mode, as gated now; its mode is restored. Half precision on CUDA.
        batches: Images [B, 3, S, S].
        gate: Further factors on contributions [1, U].
    """
    moments: list[list[Tensor]] = [[] for _ in model.sites]
    prefix = model.num_prefix_tokens

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        patches, own = _precise(stream[:, prefix:]), _precise(contribution[..., prefix:, :])
        weights = token_weights(patches.shape[1], tokens, patches)
        power = stream_power(patches, weights).sum()
        weighted = own * (weights[..., None] if own.ndim == 3 else weights[:, None, :, None])
        first = weighted.sum((0, -2))
        if own.ndim == 3:
            second = (weighted * own).sum((0, 1))
        else:
            second = (weighted.transpose(-1, -2) @ own).sum(0)
        found = [first.double(), second.double(), power.double()]
        before = moments[site] or [torch.zeros_like(value) for value in found]
        moments[site] = [a + b for a, b in zip(before, found, strict=True)]

    training = model.training
    model.eval()
    device = model.mean.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for images in batches:
            model(images, gate, tap=tap)
    model.train(training)
    count = sum(len(images) for images in batches)
    powers, streams = [], []
    for site, (first, second, power) in enumerate(moments):
        first, second = first / count, second / count
        gram = centred_gram(model.write_weight(site).double())
        if first.ndim == 1:
            powers.append((second - first.pow(2)).clamp_min(0) * gram)
        else:
            spread = second - first[:, :, None] * first[:, None, :]
            powers.append((gram * spread).sum((1, 2)).clamp_min(0))
        streams.append(power / count)
    return PooledLoads(power=tuple(powers), stream=torch.stack(streams))


def _precise(values: Tensor) -> Tensor:
    """At least single precision."""
    return values if values.dtype == torch.float64 else values.float()
