"""Mitigations: what is added to a host. Importing the package fills `MITIGATIONS`."""

from nbcore.mitigation import handoff, none, token_merging
from nbcore.mitigation.base import MITIGATIONS, Mitigation, create_mitigation

__all__ = ["MITIGATIONS", "Mitigation", "create_mitigation", "handoff", "none", "token_merging"]
