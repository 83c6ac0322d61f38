"""Mitigation `handoff`: units that leave give their work to those that stay, in closed form.

When units P leave a site and S stay, P's contribution is predicted linearly from S's:

    T = C_PS (C_SS + lambda I)^-1,   W_S <- W_S + W_P T,   b <- b + W_P (mu_P - T mu_S)

with covariances C and means mu of the contributions (activations before fc2; head outputs before
proj). The change of the site's output is then the least-squares smallest. Where a unit returns, its
share is handed back (`nbcore.mitigation.ledger`); a host that multiplies gates into write weights,
which the ledger's shares would not follow, is then refused. The equations are ours; relatives: OBC
(Frantar & Alistarh, arXiv:2208.11580) and FLAP (An et al., arXiv:2312.11983).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbcore.mitigation.base import MITIGATIONS, Batches, Mitigation, needs_units
from nbcore.mitigation.ledger import Ledger
from nbcore.pruning import PRUNERS, Pruner
from nbcore.pruning.base import PrunerFactory
from nbcore.vit import PrunableViT, Tokens


@MITIGATIONS.register("handoff")
class Handoff(Mitigation):
    """Statistics are taken afresh at every change of masks, over all tokens of a few training
    batches."""

    def __init__(self, *, ridge: float = 1e-2) -> None:
        """Choose the ridge.

        Args:
            ridge: lambda, relative to the mean variance of the survivors' contributions.
        """
        if ridge <= 0:
            raise ValueError(f"handoff needs ridge > 0, got {ridge}")
        self.ridge = ridge

    def check_host(self, host: Pruner | PrunerFactory) -> None:
        needs_units("handoff", host, "nothing leaves whose work could be given away")
        if self.regrows and host.folds:
            others = ", ".join(name for name in PRUNERS if PRUNERS[name].folds)
            raise ValueError(
                "mitigation handoff cannot be combined with persistent_dynamic (or published) on a "
                f"host that multiplies its gates into the weights at its last cut ({others}): what "
                "was given away before would be handed back in the old units; leave one of the two "
                "out, or take another host"
            )

    def attach(self, model: PrunableViT, batches: Batches) -> None:
        self.model = model
        self.batches = batches
        layers = [_write_layer(model, site) for site in range(len(model.sites))]
        self.ledgers = [Ledger(layer, fade_steps=self.fade_steps) for layer in layers]
        self.has_paid = False

    def on_keep_changing(self, gate: Tensor | None) -> None:
        # Gates have opened in this step already: debts have to be as far before masks change.
        self._pay()
        self.has_paid = True
        self.means, self.covariances = contribution_statistics(self.model, self.batches(), gate)

    @torch.no_grad()
    def on_keep_changed(self, site: int, lost: Tensor, regained: Tensor, kept: Tensor) -> None:
        spec, ledger = self.model.sites[site], self.ledgers[site]
        width = self.model.arch.head_dim if spec.kind == "heads" else 1
        # A unit whose gate still opens would soon do more than what it was given.
        receivers = _columns(kept[self.model.keep[spec.units][kept] == 1], width)
        if len(regained):
            ledger.hand_back(_columns(regained, width))
        if len(lost):
            columns = _columns(lost, width)
            transfer = handoff_matrix(self.covariances[site], columns, receivers, self.ridge)
            constant = self.means[site][columns] - transfer @ self.means[site][receivers]
            ledger.hand_over(columns, receivers, transfer, constant)
        ledger.settle(receivers)

    def after_step(self, step: int) -> None:
        if not self.has_paid:
            self._pay()
        self.has_paid = False

    def _pay(self) -> None:
        for ledger in self.ledgers:
            ledger.pay()

    def state_dict(self) -> dict[str, Any]:
        return {"ledgers": [ledger.state_dict() for ledger in self.ledgers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for ledger, saved in zip(self.ledgers, state["ledgers"], strict=True):
            ledger.load_state_dict(saved)


def _write_layer(model: PrunableViT, site: int) -> nn.Linear:
    """The layer through which a site's units write into the stream."""
    block = model.vit.blocks[model.sites[site].block]
    return block.attn.proj if model.sites[site].kind == "heads" else block.mlp.fc2


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

    Raises:
        ValueError: If the covariance is not finite, or the ridge too small for its rounding errors.
    """
    if not covariance.isfinite().all():
        raise ValueError(
            "handoff: activations are not finite, so training has diverged; choose a smaller "
            "learning rate"
        )
    own = covariance[kept][:, kept]
    # Survivors without any variance predict nothing: T = 0, and not 0 / 0.
    scale = (ridge * own.diagonal().mean()).clamp_min(torch.finfo(own.dtype).tiny)
    own.diagonal().add_(scale)
    try:
        factor = torch.linalg.cholesky(own)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(
            f"handoff: the survivors' covariance is not positive with ridge={ridge}; choose a "
            "larger one"
        ) from error
    return torch.cholesky_solve(covariance[kept][:, lost], factor).T


@torch.no_grad()
def contribution_statistics(
    model: PrunableViT, batches: Sequence[Tensor], gate: Tensor | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Means and covariances of every site's contributions over images and tokens, summed over
    batches in double precision.

    On CUDA the forward pass is in half precision, as in training: the products of its values are
    then exact in single precision, and with TF32 too.

    Args:
        model: Used in evaluation mode; its mode is restored.
        batches: Images [B, 3, S, S].
        gate: Further factors on contributions [1, U].

    Returns:
        Means [n] and covariances [n, n] per site, double; n = M neurons, or H·d columns.
    """
    sums: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        rows = contribution if contribution.ndim == 3 else contribution.transpose(1, 2).flatten(2)
        rows = rows.flatten(0, 1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        with torch.autocast(rows.device.type, enabled=False):
            total, square = rows.sum(0, dtype=torch.float64), (rows.T @ rows).double()
        sums[site] = sums[site] + total if site in sums else total
        squares[site] = squares[site] + square if site in squares else square
        counts[site] = counts.get(site, 0) + len(rows)

    training = model.training
    model.eval()
    device = model.mean.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for images in batches:
            model(images, gate, tap=tap)
    model.train(training)
    means = [sums[site] / counts[site] for site in range(len(model.sites))]
    covariances = [
        squares[s] / counts[s] - torch.outer(means[s], means[s]) for s in range(len(model.sites))
    ]
    return means, covariances
