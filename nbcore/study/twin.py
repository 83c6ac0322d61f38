"""The small twin: a dense model of the pruned arms' cost that was never larger."""

from __future__ import annotations

from nbcore.macs import macs_of
from nbcore.pruning import NEURON_GROUP
from nbcore.vit import PrunableViT, narrowed


def twin_widths(model: PrunableViT, macs_ratio: float) -> tuple[list[int], list[int]]:
    """Heads and neurons of each block of a twin: the same share of both in every block.

    Heads are rounded (down, where neurons would not fit beside them), neurons take what is left of
    the budget in groups of eight, the first blocks one group more where it does not divide evenly.

    Args:
        model: Dense model.
        macs_ratio: MACs of the twin over those of the dense model, not exceeded.

    Raises:
        ValueError: If the budget is too small for one head and eight neurons a block.
    """
    macs = macs_of(model)
    heads, neurons = model.arch.num_heads, model.arch.hidden_features
    budget = macs_ratio * macs.total([site.num_units for site in model.sites])
    spendable = budget - macs.fixed
    units = sum(c * s.num_units for c, s in zip(macs.per_unit, model.sites, strict=True))
    share = spendable / units
    num_heads = [max(1, round(share * n)) for n in heads]
    while True:
        left = spendable - sum(c * n for c, n in zip(macs.per_unit[0::2], num_heads, strict=True))
        groups = int(left // (NEURON_GROUP * macs.per_unit[1]))
        if groups >= len(heads):
            break
        if max(num_heads) == 1:
            raise ValueError(
                f"a twin at {macs_ratio:g} of the MACs cannot hold one head and {NEURON_GROUP} "
                "neurons in every block"
            )
        num_heads = [max(1, n - 1) for n in num_heads]
    each, more = divmod(groups, len(heads))
    wanted = [NEURON_GROUP * (each + (block < more)) for block in range(len(heads))]
    return num_heads, [min(n, most) for n, most in zip(wanted, neurons, strict=True)]


def create_twin(model: PrunableViT, macs_ratio: float) -> PrunableViT:
    """A randomly initialised model of the same depth and width at a share of the MACs.

    Args:
        model: A fresh dense model, not to be used afterwards.
        macs_ratio: Budget of the twin.
    """
    return narrowed(model, *twin_widths(model, macs_ratio))
