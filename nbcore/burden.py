"""Neural burden: how much more the surviving units carry than they did in the dense model.

The picture is that of Wang et al. (arXiv:2407.16716), whose text and code were not available to
us: every equation here is ours. With C = I - 11ᵀ/D, which removes what the next LayerNorm removes
anyway:

    contribution  a_ut = |h_ut - mu_u| ||C W2[:, u]||    (MLP neuron)
                  a_ht = ||C W_O^h (z_ht - mu_h)||       (head)
    stream        rho² = mean_t ||C (x_t - mean_t x)||²  at the sublayer's own input
    load          load² = sum over units of mean_t a² / rho²
    burden        B = load_S(pruned) / load_S(dense), S = the survivors
                  null B0 = load_S(cut) / load_S(dense)

Patches only; merged tokens count by their size. Numerators and rho² are pooled separately over
images. Loads are unmoved by rescaling a unit's activation against its write weight, by constants
added to write columns, by a rescaled stream and by permuted units (tests/nbcore/test_burden.py).

Shape letters as in `nbcore.vit`; L sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbcore.vit import PrunableViT, Tokens, unmerge

MAP_FLOOR = 0.01


def centred_gram(write_weight: Tensor) -> Tensor:
    """Quadratic form of a site's writes: squared norms after the mean over the width is removed.

    Args:
        write_weight: [D, M] for neurons, [D, H, d] for heads.

    Returns:
        ||C W[:, u]||² [M], or W_hᵀ C W_h [H, d, d].
    """
    centred = write_weight - write_weight.mean(0, keepdim=True)
    if write_weight.ndim == 2:
        return centred.pow(2).sum(0)
    return torch.einsum("whi,whj->hij", centred, centred)


def squared_contributions(contribution: Tensor, mean: Tensor, gram: Tensor) -> Tensor:
    """a² of every unit and token.

    Args:
        contribution: Activations [B, T, M] or head outputs [B, H, T, d].
        mean: Calibration mean mu, [M] or [H, d].
        gram: From `centred_gram`.

    Returns:
        [B, T, units].
    """
    if contribution.ndim == 3:
        return (contribution - mean).pow(2) * gram
    centred = contribution - mean[:, None, :]
    return ((centred @ gram) * centred).sum(-1).transpose(1, 2)


def token_weights(num_tokens: int, tokens: Tokens, like: Tensor) -> Tensor:
    """Weight of each token in a mean over patches, summing to one: [B, T] or [1, T]."""
    if tokens.sizes is None:
        return like.new_full((1, num_tokens), 1.0 / num_tokens)
    sizes = tokens.sizes.to(like)
    return sizes / sizes.sum(-1, keepdim=True)


def stream_power(stream: Tensor, weights: Tensor) -> Tensor:
    """rho² of patches [B, T, D] with token weights [B, T]: mean squared deviation from the image's
    mean token, [B]."""
    centred = stream - stream.mean(-1, keepdim=True)
    centred = centred - (weights[..., None] * centred).sum(1, keepdim=True)
    return (weights * centred.pow(2).sum(-1)).sum(-1)


class MeteredViT(nn.Module):
    """A model together with its calibration means: what the ONNX graph computes, and what is
    compared with it."""

    def __init__(self, model: PrunableViT, means: Sequence[Tensor]) -> None:
        super().__init__()
        if len(means) != len(model.sites):
            raise ValueError(f"needs one mean per site ({len(model.sites)}), got {len(means)}")
        self.model = model
        for site, mean in enumerate(means):
            self.register_buffer(f"unit_mean_{site}", mean)

    @property
    def means(self) -> list[Tensor]:
        return [getattr(self, f"unit_mean_{site}") for site in range(len(self.model.sites))]

    def forward(
        self,
        image: Tensor,
        unit_gate: Tensor | None = None,
        unit_keep: Tensor | None = None,
        group: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits and loads of images.

        Args:
            image: RGB in [0, 1], [B, 3, S, S].
            unit_gate: Factors on contributions [B, U] or [1, U].
            unit_keep: Units summed in the token loads [B, U] or [1, U]; None means all.
            group: Fixed match of patches to tokens [B, P].

        Returns:
            logits [B, K]; unit_load [B, U]; token_load [B, L, P]; stream rho [B, L]; and, for
            merging models only, token_group int64 [B, P], the token that carries each patch.
        """
        prefix, means = self.model.num_prefix_tokens, self.means
        unit_loads: list[Tensor] = []
        token_loads: list[Tensor] = []
        streams: list[Tensor] = []
        groups: list[Tensor] = []

        def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
            patches = stream[:, prefix:]
            weights = token_weights(patches.shape[1], tokens, patches)
            power = stream_power(patches, weights)
            own = contribution[..., prefix:, :]
            squares = squared_contributions(
                own, means[site], centred_gram(self.model.write_weight(site))
            )
            unit_loads.append(((weights[:, None, :] @ squares)[:, 0] / power[:, None]).sqrt())
            if unit_keep is None:
                summed = squares.sum(-1)
            else:
                summed = (squares @ unit_keep[:, self.model.sites[site].units, None].to(squares))[
                    ..., 0
                ]
            token_loads.append(unmerge((summed / power[:, None]).sqrt(), tokens))
            streams.append(power.sqrt())
            if tokens.group is not None:
                groups[:] = [tokens.group]

        logits = self.model(image, unit_gate, group, tap)
        loads = (torch.cat(unit_loads, 1), torch.stack(token_loads, 1), torch.stack(streams, 1))
        return (logits, *loads, *groups)


@dataclass(frozen=True, kw_only=True)
class PooledLoads:
    """Loads of one model over a set of images, numerators and stream kept apart."""

    power: tuple[Tensor, ...]
    """Per site the mean over tokens and images of a², [units]."""
    stream: Tensor
    """rho² per site, mean over images [L]."""


@dataclass(frozen=True, kw_only=True)
class BurdenReport:
    """What pruning did to each site; all lists follow the order of sites."""

    sites: tuple[str, ...]
    burden: tuple[float, ...]
    """load_S(pruned) / load_S(dense)."""
    burden_null: tuple[float, ...]
    """load_S(cut) / load_S(dense), cut = dense weights without any training."""
    selection: tuple[float, ...]
    """Mean squared load of the survivors over that of all units, both in dense."""
    stream: tuple[float, ...]
    """rho(pruned) / rho(dense)."""
    takeover: tuple[float | None, ...]
    """Share of the removed output that survivors now write; None where nothing was removed."""
    residual: tuple[float, ...]
    """Relative squared error of the output of the site's block."""
    cost: tuple[float, ...]
    """residual + 0.25 (burden² - 1)+."""
    occupancy: tuple[float | None, ...] = ()
    """Share of the pruned model's survivors that vary independently; MLP only, None for heads."""
    occupancy_dense: tuple[float | None, ...] = ()
    """The same of the same units in the dense model."""


def sum_to_sites(unit_load: Tensor, num_units: Sequence[int]) -> Tensor:
    """Site loads from unit loads: root of the sum of squares.

    Args:
        unit_load: [..., U].
        num_units: Units of each site; sums to U.

    Returns:
        [..., L].
    """
    parts = unit_load.pow(2).split(list(num_units), dim=-1)
    return torch.stack([part.sum(-1) for part in parts], -1).sqrt()


def pooled_site_loads(loads: PooledLoads, kept: Sequence[Tensor] | None = None) -> Tensor:
    """Pooled loads of a selection of units per site, [L].

    Args:
        loads: Pooled over images.
        kept: Per site the indices of the selected units; None means all.
    """
    sums = [
        power.sum() if kept is None else power[kept[site]].sum()
        for site, power in enumerate(loads.power)
    ]
    return (torch.stack(sums) / loads.stream).sqrt()


def selection_factor(dense: PooledLoads, kept: Sequence[Tensor]) -> Tensor:
    """Mean squared load of the survivors over that of all units, both in the dense model [L].

    Above one, strong units were kept; no compensation is needed to explain their load.
    """
    return torch.stack(
        [power[kept[site]].mean() / power.mean() for site, power in enumerate(dense.power)]
    )


def takeover(change: Tensor, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of take-over: projection of the survivors' change on what the
    removed units wrote.

    Args:
        change: Survivors' centred output, pruned minus dense [B, P, D].
        removed: Centred output the removed units wrote in dense [B, P, D].

    Returns:
        <change, removed> and ||removed||², summed over everything; their quotient is 1 where the
        removed output is replaced exactly and 0 where nothing was taken over.
    """
    return (change * removed).sum(), removed.pow(2).sum()


def residual(dense: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the residual of a block's output, each per patch.

    Args:
        dense: Output of the dense block, patches only [B, P, D].
        pruned: The same of the pruned block, un-merged [B, P, D].

    Returns:
        ||C (dense - pruned)||² [B, P] and mean_t ||C (dense - mean_t dense)||² [B].
    """
    error = dense - pruned
    error = error - error.mean(-1, keepdim=True)
    uniform = token_weights(dense.shape[1], Tokens(), dense)
    return error.pow(2).sum(-1), stream_power(dense, uniform)


def occupancy(covariance: Tensor) -> Tensor:
    """Participation ratio of contributions over their number: 1 where all units vary
    independently and alike, 1/n where they all say the same. A diagnostic.

    Args:
        covariance: K of the contributions of a site's n units, up to a factor [n, n].

    Returns:
        (tr K)² / tr(K²) / n, a scalar; not a number where nothing varies.
    """
    return covariance.trace().pow(2) / covariance.pow(2).sum() / len(covariance)


def cost(residual: Tensor, burden: Tensor) -> Tensor:
    """Display value E = R + 0.25 (B² - 1)+, reconstruction plus effort; same shape as its
    arguments."""
    return residual + 0.25 * (burden.pow(2) - 1).clamp_min(0)


def burden_map(pruned: Tensor, dense: Tensor, dense_site: Tensor) -> Tensor:
    """log2 of the burden of each patch.

    Args:
        pruned: Token loads of the pruned model [..., L, P].
        dense: Token loads of the same units in the dense model [..., L, P].
        dense_site: Site loads of the same units in the dense model [..., L]; patches below 1 % of
            it count as 1 %.

    Returns:
        log2(pruned / dense) [..., L, P]; both floored, so that an empty patch is no evidence.
    """
    floor = MAP_FLOOR * dense_site[..., None]
    return (torch.maximum(pruned, floor) / torch.maximum(dense, floor)).log2()


@torch.no_grad()
def calibrate(model: PrunableViT, batches: Iterable[Tensor]) -> list[Tensor]:
    """Mean contribution of every unit over images and patches.

    Args:
        model: Dense, masked or compact model; put into evaluation mode.
        batches: Images [B, 3, S, S] in [0, 1] on the model's device.

    Returns:
        One tensor per site, [M] or [H, d], in single precision.

    Raises:
        ValueError: If there is no image.
    """
    sums: dict[int, Tensor] = {}
    count = 0
    prefix = model.num_prefix_tokens

    def tap(site: int, stream: Tensor, contribution: Tensor, tokens: Tokens) -> None:
        own = contribution[..., prefix:, :].double()
        weights = token_weights(own.shape[-2], tokens, own).expand(own.shape[0], -1)
        equation = "bt,btm->m" if own.ndim == 3 else "bt,bhtd->hd"
        total = torch.einsum(equation, weights, own)
        sums[site] = sums[site] + total if site in sums else total

    model.eval()
    for images in batches:
        model(images, tap=tap)
        count += images.shape[0]
    if count == 0:
        raise ValueError("calibration needs at least one image")
    return [(sums[site] / count).float() for site in range(len(model.sites))]
