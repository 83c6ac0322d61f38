"""Mitigation `none`: the host alone, to the bit."""

from nbcore.mitigation.base import MITIGATIONS, Mitigation


@MITIGATIONS.register("none")
class NoMitigation(Mitigation):
    """Adds nothing and changes nothing."""
