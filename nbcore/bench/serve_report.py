"""Windows of the serving bench -> medians, spreads, speed-ups and whether targets are met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbcore.bench.serve_task import DEVICE, HOST, ServeTask


@dataclass(kw_only=True, eq=False)
class Cell:
    """One process at one batch size in one place: what was measured, or why it was not."""

    task: ServeTask
    batch: int
    place: str
    windows: list[list[float]] = field(default_factory=list)
    """Milliseconds of the runs in each window."""
    memory: Mapping[str, int | None] = field(default_factory=dict)
    warm_s: float | None = None
    difference: float | None = None
    absent: bool = False
    """The contender does not work in this place."""
    error: str | None = None

    @property
    def medians(self) -> list[float]:
        """Of each window."""
        return [statistics.median(window) for window in self.windows]


def summarise(report: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Fill in what the cells show so far."""
    report["cells"] = [_entry(cell, cells, report["variants"]) for cell in cells if not cell.absent]
    report["targets"] = [
        {"name": target.name, "wanted": target.wanted, **found}
        for target in TARGETS
        if target.device == report["device_type"]
        for found in target.find(report)
    ]


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, Any]:
    """How many times faster `to` is than `of`: both took turns, so each round gives a ratio.

    Args:
        of: Median milliseconds of each window.
        to: The same of the other.

    Returns:
        Median and range over the rounds both have.
    """
    ratios = [a / b for a, b in zip(of, to, strict=False)]
    return {"ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}


def _entry(cell: Cell, cells: Sequence[Cell], variants: Mapping[str, Any]) -> dict[str, Any]:
    task = cell.task
    entry: dict[str, Any] = {
        "variant": task.variant,
        "contender": task.contender,
        "precision": task.precision,
        "batch": cell.batch,
        "place": cell.place,
    }
    if cell.error:
        entry["error"] = cell.error
    if not cell.windows:
        return entry
    runs = [ms for window in cell.windows for ms in window]
    low, middle, high = (float(q) for q in np.quantile(runs, (0.25, 0.5, 0.75)))
    entry |= {
        "ms": middle,
        "ms_iqr": [low, high],
        "num_runs": len(runs),
        "round_ms": cell.medians,
        "img_s": cell.batch / middle * 1e3,
        "img_s_iqr": [cell.batch / high * 1e3, cell.batch / low * 1e3],
        "peak_host_bytes": cell.memory.get("host_bytes"),
        "peak_device_bytes": cell.memory.get("device_bytes"),
        "warm_s": cell.warm_s,
        "largest_logit_difference": cell.difference,
    }
    base = variants[task.variant]["base"]
    dense = next((c for c in cells if _same_but(c, cell, base)), None)
    if dense is not None and dense.windows:
        entry["speedup"] = ratio(dense.medians, cell.medians)
        entry["inverse_macs_ratio"] = 1 / variants[task.variant]["macs_ratio"]
    return entry


def _same_but(other: Cell, cell: Cell, variant: str | None) -> bool:
    a, b = other.task, cell.task
    return (a.variant, a.contender, a.precision, other.batch, other.place) == (
        variant, b.contender, b.precision, cell.batch, cell.place
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio that is to be reached."""

    name: str
    device: str
    wanted: float
    find: Callable[[Mapping[str, Any]], list[dict[str, Any]]]
    """Every ratio of a report that the target is about."""


def _found(ratios: dict[str, Any], wanted: float, **about: Any) -> dict[str, Any]:
    return about | ratios | {"met": ratios["ratio"] >= wanted}


def _against(contender: str, wanted: float, batch: int) -> Callable[..., list[dict[str, Any]]]:
    """The served session against another contender, each variant and precision both ran in."""

    def find(report: Mapping[str, Any]) -> list[dict[str, Any]]:
        measured = [c for c in report["cells"] if "ms" in c and c["batch"] == batch]
        keys = ("variant", "precision", "place")
        others = {tuple(c[k] for k in keys): c for c in measured if c["contender"] == contender}
        return [
            _found(
                ratio(others[key]["round_ms"], c["round_ms"]),
                wanted,
                **dict(zip(keys, key, strict=True)),
            )
            for c in measured
            if c["contender"] == "served" and (key := tuple(c[k] for k in keys)) in others
        ]

    return find


def _pruned(macs_ratio: float, wanted: float, batch: int) -> Callable[..., list[dict[str, Any]]]:
    """Variants at one budget against dense, as served."""

    def find(report: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            _found(c["speedup"], wanted, **{k: c[k] for k in ("variant", "precision", "place")})
            for c in report["cells"]
            if c["contender"] == "served" and c["batch"] == batch and "speedup" in c
            and abs(report["variants"][c["variant"]]["macs_ratio"] - macs_ratio) < 0.03
        ]  # fmt: skip

    return find


def _target(
    name: str, device: str, wanted: float, find: Callable[..., Any], *arguments: Any
) -> Target:
    return Target(
        name=name, device=device, wanted=wanted, find=find(arguments[0], wanted, *arguments[1:])
    )


TARGETS = (
    _target("batch 1: as served against torch eager", "cuda", 4.0, _against, "eager", 1),
    _target("batch 1: as served against compiled torch", "cuda", 1.0, _against, "compile", 1),
    _target("batch 64: as served against torch eager", "cuda", 1.5, _against, "eager", 64),
    _target("batch 256: half the MACs against dense", "cuda", 1.4, _pruned, 0.5, 256),
    _target("batch 256: a quarter of the MACs against dense", "cuda", 2.0, _pruned, 0.25, 256),
    _target("batch 8: half the MACs against dense", "cpu", 1.7, _pruned, 0.5, 8),
    _target("batch 8: a quarter of the MACs against dense", "cpu", 3.0, _pruned, 0.25, 8),
)
"""What serving is to reach, in one run, in the same precision on both sides."""


def table(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of text."""
    lines = [
        f"{'':44s}{'':8s}{'batch':>6s} {'place':8s}{'ms':>9s}{'quartiles':>18s}{'img/s':>9s}"
        f"{'x dense':>9s}{'1/MACs':>8s}"
    ]
    for cell in report["cells"]:
        head = f"{cell['variant']:32s} {cell['contender']:10s} {cell['precision']:8s}"
        head += f"{cell['batch']:6d} {cell['place']:8s}"
        if "ms" not in cell:
            lines.append(head + f" failed: {cell.get('error', 'not measured in time')[:120]}")
            continue
        low, high = cell["ms_iqr"]
        gain = f"{cell['speedup']['ratio']:9.2f}" if "speedup" in cell else f"{'-':>9s}"
        ideal = f"{cell['inverse_macs_ratio']:8.2f}" if "speedup" in cell else f"{'-':>8s}"
        lines.append(
            head
            + f"{cell['ms']:9.2f}{f'{low:.2f}-{high:.2f}':>18s}{cell['img_s']:9.0f}{gain}{ideal}"
        )
    for target in report["targets"]:
        verdict = "met" if target["met"] else "NOT met"
        low, high = target["range"]
        where = {HOST: "from host memory", DEVICE: "on the device"}[target["place"]]
        lines.append(
            f"{target['name']}: {target['ratio']:.2f} ({low:.2f}-{high:.2f}), wanted "
            f"{target['wanted']:g}: {verdict} ({target['variant']}, {target['precision']}, {where})"
        )
    return lines
