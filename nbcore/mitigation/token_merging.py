"""Mitigation `token_merging`: fewer tokens, so that what is left has less to carry.

Source:
    The published idea's first half (Wang et al., arXiv:2407.16716: "single-pass token merging");
    matching after Bolya et al., arXiv:2210.09461. See `nbcore.vit.match_tokens` for what differs.
"""

from __future__ import annotations

from nbcore.config import Merge
from nbcore.mitigation.base import MITIGATIONS, Mitigation


@MITIGATIONS.register("token_merging")
class TokenMerging(Mitigation):
    """Merges `r` patches into others before block `block`; the merging stays in the exported
    model."""

    def __init__(self, *, block: int = 4, r: int = 64) -> None:
        self._merge = Merge(block=block, r=r)

    def merge(self) -> Merge:
        return self._merge
