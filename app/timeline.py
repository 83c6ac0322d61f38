"""`history.jsonl` of a variant -> budget, loads and kept units of every site while it trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import UserError
from nbcore.checkpoint import Variant

MOST_RECORDS = 80
"""More would be finer than a screen; every n-th is kept, and the last."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Records of a training, in their order."""

    steps: tuple[int, ...]
    epochs: tuple[float, ...]
    """Epochs done, with their fractions where there are several records in one."""
    macs_ratios: tuple[float, ...]
    loads: np.ndarray
    """Load of each site's surviving units together [records, sites]."""
    kept: np.ndarray | None
    """Surviving units of each site [records, sites]; None where the file does not say."""

    def unit_loads(self) -> np.ndarray | None:
        """Root mean square over the surviving units of a site [records, sites]: loads add as
        squares, so it is the site's load over the root of their number."""
        return None if self.kept is None else self.loads / np.sqrt(self.kept)


def read_timeline(path: Path, variant: Variant) -> Timeline:
    """Read a history file.

    Raises:
        UserError: If a record lacks a value or does not fit the variant's sites.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    every = -(-len(lines) // MOST_RECORDS) or 1
    chosen = [line for k, line in enumerate(lines) if k % every == 0 or k == len(lines) - 1]
    try:
        records = [json.loads(line) for line in chosen]
        found = _timeline(records)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{variant.id}: {path.name} cannot be read: {error!r}") from error
    for values in (found.loads, found.kept):
        if values is not None and values.shape != (len(records), len(variant.sites)):
            raise UserError(
                f"{variant.id}: {path.name} holds values {values.shape}, its "
                f"{len(records)} records of {len(variant.sites)} sites need as many"
            )
    return found


def _timeline(records: list[dict[str, Any]]) -> Timeline:
    if not records:
        raise ValueError("it is empty")
    kept = [record.get("kept") for record in records]
    # Records count whole epochs; steps are all alike, so they tell the fractions.
    last = max(1, records[-1]["step"])
    return Timeline(
        steps=tuple(int(record["step"]) for record in records),
        epochs=tuple(record["step"] * records[-1]["epoch"] / last for record in records),
        macs_ratios=tuple(float(record["macs_ratio"]) for record in records),
        loads=np.array([record["loads"] for record in records], dtype=np.float64),
        kept=None if None in kept else np.array(kept, dtype=np.float64),
    )
