"""Mitigations: what is added to a host. Importing the package fills `MITIGATIONS`."""

from nbcore.mitigation import (
    burden_quota,
    distillation,
    handoff,
    homeostasis,
    none,
    persistent_dynamic,
    published,
    reconstruction,
    token_merging,
)
from nbcore.mitigation.base import MITIGATIONS, Mitigation, StepOutputs
from nbcore.mitigation.create import check_combination, create_mitigation, parts_of

__all__ = [
    "MITIGATIONS",
    "Mitigation",
    "StepOutputs",
    "burden_quota",
    "check_combination",
    "create_mitigation",
    "distillation",
    "handoff",
    "homeostasis",
    "none",
    "parts_of",
    "persistent_dynamic",
    "published",
    "reconstruction",
    "token_merging",
]
