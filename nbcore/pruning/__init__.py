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
from nbcore.pruning.base import PRUNERS, Budget, Pruner, Quota, allocate, plan_budget, removal_steps

__all__ = [
    "PRUNERS",
    "Budget",
    "Pruner",
    "Quota",
    "allocate",
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
