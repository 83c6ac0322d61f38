"""Hosts: pruning during training. Importing the package fills `PRUNERS`."""

from nbcore.pruning import magnitude, random, taylor
from nbcore.pruning.base import PRUNERS, Budget, Pruner, allocate, removal_steps

__all__ = [
    "PRUNERS",
    "Budget",
    "Pruner",
    "allocate",
    "magnitude",
    "random",
    "removal_steps",
    "taylor",
]
