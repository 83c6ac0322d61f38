"""`bench/serve-*.json` of a checkpoint folder -> latencies as they were measured on other machines.

Written by `python -m nbcore bench serve`; a folder without such files simply has none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How photos were run."""

    contender: str
    """What ran them, such as "served"."""
    precision: str
    batch: int
    place: str
    """Where the photos lay: "host" or "device"."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall time of one run of a batch."""

    ms: float
    low_ms: float
    high_ms: float
    """Quartiles of the runs."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One file."""

    name: str
    device: str
    command: str
    commit: str
    contenders: Mapping[str, str]
    """What each contender is, in words."""
    timings: Mapping[Setting, Mapping[str, Timing]]
    """By setting and variant id."""


def read_benches(folder: Path) -> tuple[Bench, ...]:
    """Read all files of a checkpoint folder; one that cannot be read is left out and logged."""
    found = []
    for path in sorted((folder / "bench").glob("serve-*.json")):
        try:
            found.append(_bench(path.stem, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is left out: %r", path, error)
    return tuple(found)


def _bench(name: str, report: Mapping[str, Any]) -> Bench:
    timings: dict[Setting, dict[str, Timing]] = {}
    for cell in report["cells"]:
        if "ms" not in cell:
            continue
        setting = Setting(
            contender=str(cell["contender"]),
            precision=str(cell["precision"]),
            batch=int(cell["batch"]),
            place=str(cell["place"]),
        )
        low, high = cell["ms_iqr"]
        timings.setdefault(setting, {})[str(cell["variant"])] = Timing(
            ms=float(cell["ms"]), low_ms=float(low), high_ms=float(high)
        )
    return Bench(
        name=name,
        device=str(report["device"]),
        command=str(report["command"]),
        commit=str(report["commit"]),
        contenders=dict(report.get("contenders", {})),
        timings=timings,
    )
