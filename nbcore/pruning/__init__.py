"""Hosts: pruning during training. Importing the package fills `PRUNERS`."""

from nbcore.pruning import (
    magnitude,
    movement,
    random,
    s2vite,
    taylor,
    vit_slim,
    wdpruning,
    weights,
)
from nbcore.pruning.base import PRUNERS, Pruner, Quota
from nbcore.pruning.budget import (
    NEURON_GROUP,
    Budget,
    allocate,
    check_fade,
    plan_budget,
    removal_steps,
)

__all__ = [
    "NEURON_GROUP",
    "PRUNERS",
    "Budget",
    "Pruner",
    "Quota",
    "allocate",
    "check_fade",
    "magnitude",
    "movement",
    "plan_budget",
    "random",
    "removal_steps",
    "s2vite",
    "taylor",
    "vit_slim",
    "wdpruning",
    "weights",
]
