"""Host `s2vite`: a random sparse model from the start whose units keep being exchanged.

Every site has its number of units from the first step on. At every update the weakest units leave
and as many of those then missing return, the ones whose gradients are largest; the share exchanged
falls along a cosine from 0.5 to 0.005.

    leave:   heads by mean over images |sum over tokens of O dL/dO|, neurons by the L1 norms of
             their fc1 row and fc2 column
    return:  heads by mean over images ||dL/dO||_1, neurons by the L1 norms of the gradients of
             their fc1 row and fc2 column

A missing unit's gradients pass straight through its closed gate: the loss is that of the pruned
model, y the output of a site, and every unit, there or not, has

    dL/dO_h = W_O^hT dL/dy    dL/dh_u = w2_u . dL/dy    dL/dw2_u = sum over tokens of h_u dL/dy

and dL/dw1_u from dL/dh_u. Behind the closed gate itself both would vanish.

Source:
    Chen et al., "Chasing Sparsity in Vision Transformers", arXiv:2106.04533 (S2ViTE), and its code.
    Differs in: starts from a dense checkpoint and not from random weights; returning units go on
    from the weights with which they left, where the source's start at zero (its missing neurons
    then have no fc1 gradient at all); the cosine ends with the last exchange and not with the
    training; gradients are taken from a batch of their own, in evaluation mode, so that random
    depth does not decide; groups of eight neurons stay whole since a site's number never changes.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nbcore.pruning.base import PRUNERS, BasePruner, LabelledBatches, Quota
from nbcore.pruning.budget import Budget, allocate, shared_out
from nbcore.vit import PrunableViT, Tokens

RATES = (0.5, 0.005)

logger = logging.getLogger(__name__)


@PRUNERS.register("s2vite")
class S2ViTEPruner(BasePruner):
    def __init__(self, model: PrunableViT, budget: Budget, generator: torch.Generator) -> None:
        super().__init__(model, budget, generator)
        self.regrows = True
        self.first = max(1, budget.start)
        self.exchanges = tuple(s for s in (*budget.steps, *budget.refresh) if s > self.first)
        order = torch.rand(model.num_units, generator=generator)
        self.start = equal_shares(order, model, budget)

    def attach(self, batches: LabelledBatches) -> None:
        self.batches = batches

    def allow_regrowth(self, margin: float = 0.0, returns: float | None = None) -> None:
        if margin or returns is not None:
            logger.info(
                "host s2vite exchanges units by its own rule; margin %g and returns %s are not "
                "used",
                margin,
                returns,
            )

    def set_quota(self, quota: Quota) -> None:
        raise ValueError(
            "host s2vite has a fixed number of units per site from the start: there are no "
            "removals that a quota could share out"
        )

    def rate(self, step: int) -> float:
        """Share of a site's units that is exchanged at a step."""
        high, low = RATES
        return low + (high - low) * self.budget.cooling(step, self.first)

    def after_step(self, step: int) -> Tensor | None:
        if step == self.first:
            return self.change(self.start)
        if step not in self.exchanges:
            return None
        images, targets = self.batches()[0]
        leave, come = exchange_scores(self.model, images, targets)
        leave, come, keep = leave.cpu(), come.cpu(), self.keep.cpu().clone()
        for site in self.model.sites:
            kept = keep[site.units].nonzero()[:, 0]
            count = math.ceil(self.rate(step) * len(kept))
            weakest = kept[torch.argsort(leave[site.units][kept], stable=True)[:count]]
            keep[site.start + weakest] = False
            missing = (~keep[site.units]).nonzero()[:, 0]
            best = torch.argsort(come[site.units][missing], descending=True, stable=True)
            keep[site.start + missing[best[:count]]] = True
        return self.change(keep)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.start = state["start"].cpu()


def equal_shares(order: Tensor, model: PrunableViT, budget: Budget) -> Tensor:
    """The mask [U] at the whole budget that keeps an equal share of each site's units.

    Args:
        order: Which units go first: the lowest. Also decides which sites keep one more [U].
        model: Dense model.
        budget: Its target counts.
    """
    everything = torch.ones(model.num_units, dtype=torch.bool)
    last = torch.stack([order[site.units].max() for site in model.sites]).double()
    shares = shared_out(order, everything, model.sites, 1 + 1e-6 * last, torch.zeros_like(last))
    allowed = int(budget.macs_ratio * budget.dense_macs)
    return allocate(shares, everything, model.sites, budget.macs, allowed)


def exchange_scores(model: PrunableViT, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What kept units are worth, and what missing ones would be worth, each [U].

    Args:
        model: Masked model; read in evaluation mode, its mode is restored.
        images: [B, 3, S, S].
        targets: Soft targets [B, K].
    """
    inputs: list[Tensor] = []
    contributions: list[Tensor] = []
    blocks: list[Tensor] = []

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        inputs.append(stream)
        contributions.append(contribution)

    training = model.training
    model.eval()
    device = images.device.type
    with torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = model(images, tap=tap, block_tap=lambda _, output, __: blocks.append(output))
        loss = F.cross_entropy(logits.float(), targets)
        # What a site writes is added to the stream: the gradient of the sum is that of the output.
        outputs = [t for pair in zip(inputs[1::2], blocks, strict=True) for t in pair]
        gradients = torch.autograd.grad(loss, outputs)
        parts = [
            (_head_scores if site.kind == "heads" else _neuron_scores)(
                model, index, inputs[index].detach(), contributions[index].detach(), gradient
            )
            for index, (site, gradient) in enumerate(zip(model.sites, gradients, strict=True))
        ]
    model.train(training)
    leave, come = zip(*parts, strict=True)
    # Gradients are those of the mean over images.
    return torch.cat(leave).float(), torch.cat(come).float()


def _head_scores(
    model: PrunableViT, site: int, stream: Tensor, z: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Heads: outputs z [B, H, N, d], gradient of the site's output [B, N, D]."""
    through = torch.einsum("bnw,whi->bhni", gradient, model.write_weight(site).detach())
    taylor = (z * through).float().sum((2, 3)).abs().mean(0)
    return taylor, through.float().abs().sum((2, 3)).mean(0)


def _neuron_scores(
    model: PrunableViT, site: int, stream: Tensor, h: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Neurons: stream and gradient of the site's output [B, N, D]; the gated h is not used."""
    block = model.vit.blocks[model.sites[site].block]
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    norms = fc1.weight.abs().sum(1) + fc2.weight.abs().sum(0)
    hidden = block.mlp.act(fc1(block.norm2(stream)))
    through = gradient @ model.write_weight(site).detach()
    rows = torch.autograd.grad(hidden, fc1.weight, through.to(hidden.dtype))[0]
    scale = getattr(block.ls2, "gamma", None)
    written = gradient if scale is None else gradient * scale.detach()
    columns = torch.einsum("bnw,bnm->wm", written, hidden.detach().to(written.dtype))
    return norms.detach(), rows.abs().sum(1) + columns.float().abs().sum(0)
