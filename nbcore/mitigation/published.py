"""Mitigation `published`: the pair proposed by Wang et al. (arXiv:2407.16716), token merging and
weights that may come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbcore.mitigation.base import MITIGATIONS, Composition
from nbcore.mitigation.persistent_dynamic import PersistentDynamic
from nbcore.mitigation.token_merging import TokenMerging


@MITIGATIONS.register("published")
class Published(Composition):
    """Another name for `token_merging+persistent_dynamic`; takes the options of its parts by
    name."""

    stands_for = ("token_merging", "persistent_dynamic")

    def __init__(
        self,
        *,
        token_merging: Mapping[str, Any] | None = None,
        persistent_dynamic: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            [
                TokenMerging(**(token_merging or {})),
                PersistentDynamic(**(persistent_dynamic or {})),
            ]
        )
