"""`bench/precision-*.json` of a checkpoint folder -> what a precision does to the served variants.

Written by `python -m nbcore bench precision`. A row counts for the very file that it was measured
on, so a variant that was trained anew has none until it is measured again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbcore.checkpoint import Variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One variant on its test photos."""

    top1: float
    """In the precision."""
    top1_fp32: float
    same_class: float
    """Share of photos whose top class stays that of single precision."""
    num_images: int

    @property
    def change(self) -> float:
        """Of top-1, in 0..1."""
        return self.top1 - self.top1_fp32


def effects(folder: Path, variants: Sequence[Variant], precision: str) -> Mapping[str, Effect]:
    """What a precision does, by variant id; none for variants that were not measured.

    Args:
        folder: Checkpoint folder.
        variants: Served ones.
        precision: As `NB_PRECISION` names it.
    """
    files = {variant.files["onnx"].sha256: variant.id for variant in variants}
    found: dict[str, Effect] = {}
    for path in sorted((folder / "bench").glob("precision-*.json")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            single = {row["sha256"]: row for row in rows if row["precision"] == "fp32"}
            for row in rows:
                if row["precision"] == precision and row["sha256"] in files:
                    found[files[row["sha256"]]] = Effect(
                        top1=float(row["top1"]),
                        top1_fp32=float(single[row["sha256"]]["top1"]),
                        same_class=float(row["same_class"]),
                        num_images=int(row["num_images"]),
                    )
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is left out: %r", path, error)
    return found
