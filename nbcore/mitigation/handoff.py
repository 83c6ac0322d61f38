"""Mitigation `handoff`: units that leave give their work to those that stay, in closed form.

When units P leave a site and S stay, P's contribution is predicted linearly from S's:

    T = C_PS (C_SS + lambda I)^-1,   W_S <- W_S + W_P T,   b <- b + W_P (mu_P - T mu_S)

with covariances C and means mu of the contributions (activations before fc2; head outputs before
proj). The change of the site's output is then the least-squares smallest. The equations are ours;
relatives: OBC (Frantar & Alistarh, arXiv:2208.11580) and FLAP (An et al., arXiv:2312.11983).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbcore.mitigation.base import MITIGATIONS, Batches, Mitigation
from nbcore.vit import PrunableViT, Tokens


@MITIGATIONS.register("handoff")
class Handoff(Mitigation):
    """Statistics are taken afresh at every change of masks, over all tokens of a few training
    batches."""

    def __init__(self, *, ridge: float = 1e-2) -> None:
        if ridge <= 0:
            raise ValueError(f"handoff needs ridge > 0, got {ridge}")
        self.ridge = ridge

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        self.model = model
        self.batches = batches

    def on_keep_changing(self) -> None:
        self.means, self.covariances = contribution_statistics(self.model, self.batches())

    @torch.no_grad()
    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        if len(regained):
            raise ValueError(
                "handoff cannot be combined with a method that lets units return: it would be "
                "done twice"
            )
        if not len(lost):
            return
        heads = self.model.sites[site].kind == "heads"
        block = self.model.vit.blocks[self.model.sites[site].block]
        layer = block.attn.proj if heads else block.mlp.fc2
        width = self.model.arch.head_dim if heads else 1
        lost, kept = _columns(lost, width), _columns(kept, width)
        transfer = handoff_matrix(self.covariances[site], lost, kept, self.ridge)
        mean = self.means[site]
        written = layer.weight[:, lost].to(transfer.dtype)
        layer.weight[:, kept] += (written @ transfer).to(layer.weight)
        if layer.bias is not None:
            layer.bias += (written @ (mean[lost] - transfer @ mean[kept])).to(layer.bias)


def _columns(units: Tensor, width: int) -> Tensor:
    """Columns of the write weight that belong to units of `width` columns each."""
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def handoff_matrix(covariance: Tensor, lost: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Least-squares prediction of the lost columns from the kept ones.

    Args:
        covariance: Of all columns of a site [n, n].
        lost: Columns that leave [p].
        kept: Columns that stay [s].
        ridge: Added to the diagonal, relative to its mean.

    Returns:
        T [p, s].
    """
    own = covariance[kept][:, kept]
    # Survivors without any variance predict nothing: T = 0, and not 0 / 0.
    scale = (ridge * own.diagonal().mean()).clamp_min(torch.finfo(own.dtype).tiny)
    own = own + scale * torch.eye(len(kept), dtype=own.dtype, device=own.device)
    return torch.linalg.solve(own, covariance[kept][:, lost]).T


@torch.no_grad()
def contribution_statistics(
    model: PrunableViT, batches: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Means and covariances of every site's contributions over images and tokens, summed over
    batches in double precision.

    Args:
        model: Used in evaluation mode; its mode is restored.
        batches: Images [B, 3, S, S].

    Returns:
        Means [n] and covariances [n, n] per site; n = M neurons, or H·d columns.
    """
    sums: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        rows = contribution if contribution.ndim == 3 else contribution.transpose(1, 2).flatten(2)
        rows = rows.flatten(0, 1)
        total, square = rows.double().sum(0), (rows.T @ rows).double()
        sums[site] = sums[site] + total if site in sums else total
        squares[site] = squares[site] + square if site in squares else square
        counts[site] = counts.get(site, 0) + len(rows)

    training = model.training
    model.eval()
    for images in batches:
        model(images, tap=tap)
    model.train(training)
    means = [sums[site] / counts[site] for site in range(len(model.sites))]
    covariances = [
        squares[s] / counts[s] - torch.outer(means[s], means[s]) for s in range(len(model.sites))
    ]
    return means, covariances
