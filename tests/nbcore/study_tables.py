"""Tables of a study that was never run, with effects planted by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nbcore.study.grid import (
    DENSE,
    DENSE_PLUS,
    TWIN,
    UNPRUNED,
    WEIGHTS,
    Arm,
    StudyConfig,
    parts_of,
)
from nbcore.study.rows import as_text
from nbcore.study.tables import RUN_COLUMNS, StudyTables

SITES = [f"blocks.{block}.{part}" for block in range(4) for part in ("attn", "mlp")]


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true in a made-up study; accuracies in 0..1."""

    dense: float = 0.86
    cost: Mapping[str, float] = field(default_factory=dict)
    """What each host loses at budget 0.1; a third of it at 0.3."""
    relief: Mapping[str, float] = field(default_factory=dict)
    """Share of the loss that each mitigation brings back."""
    general: Mapping[str, float] = field(default_factory=dict)
    """What each mitigation adds to any model, dense or pruned."""
    noise: float = 0.002
    excess: float = 0.3
    """log of B/B0 over dense+ at budget 0.1; half of it at 0.3."""
    damage: float = 1.0
    """By how much the log of a site's residual rises with its excess."""


def write_tables(study: StudyConfig, world: World, folder: Path, *, seed: int = 0) -> None:
    """Tables as if every arm of the study had been run in that world."""
    rng = np.random.default_rng(seed)
    tables = StudyTables(folder)
    of_seed = {s: rng.normal(0, 0.004) for s in range(200)}
    runs, sites, history = [], [], []
    for arm in study.arms():
        run, own = _run(study, arm, world, rng, of_seed[arm.seed])
        runs.append(run)
        sites += own
        history += _history(arm, rng)
    tables.history.replace(history)
    tables.sites.append(sites)
    tables.runs.append(runs)


def _run(
    study: StudyConfig, arm: Arm, world: World, rng: np.random.Generator, shift: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    ratio, host = arm.target_macs_ratio, arm.pruner
    hardness = 1.0 if ratio <= 0.1 else 1 / 3
    lost = 0.0 if host in UNPRUNED else world.cost.get(host, 0.05) * hardness
    top1 = world.dense + shift + world.general.get(arm.mitigation, 0.0)
    top1 -= lost * (1 - world.relief.get(arm.mitigation, 0.0))
    top1 -= {DENSE: 0.01, TWIN: 0.08 * hardness}.get(host, 0.0)
    excess = world.excess * (1 if ratio <= 0.1 else 0.5) * (0.5 + 10 * world.cost.get(host, 0.05))
    run = dict.fromkeys(RUN_COLUMNS, "") | {
        "dataset": study.data.dataset,
        "arch": study.model.name,
        **arm.columns(),
        "macs_ratio": as_text(_macs(arm)),
        "top1": round(top1 + rng.normal(0, world.noise), 4),
        "val_top1": round(top1 + rng.normal(0, world.noise), 4),
        "base_top1": round(world.dense + shift - 0.01, 4),
        "num_params": 1_000_000,
        "seconds": 3.2,
        "device": "made up",
        "commit": "0" * 12,
        "config": study.fingerprint(arm),
    }
    run["loss"], run["val_loss"] = (round(1.2 - run[k], 4) for k in ("top1", "val_top1"))
    own = []
    if host not in (DENSE, TWIN):
        for position, site in enumerate(SITES):
            heads = site.endswith("attn")
            total = 6 if heads else 768
            whole = host in (DENSE_PLUS, WEIGHTS)
            kept = total if whole else max(1, round(total * ratio * rng.uniform(0.5, 1.5)))
            own_excess = 0.0 if host == DENSE_PLUS else excess + rng.normal(0, 0.15)
            plus, null = rng.uniform(1.0, 1.1), rng.uniform(0.95, 1.2)
            own.append(
                {
                    **arm.columns(),
                    "site": site,
                    "kind": "heads" if heads else "neurons",
                    "total": total,
                    "kept": kept,
                    "removed_macs": (total - kept) * (1_000_000 if heads else 24_576),
                    "burden": as_text(null * plus * np.exp(own_excess)),
                    "burden_null": as_text(null),
                    "burden_dense_plus": as_text(plus),
                    "selection": as_text(1.5),
                    "takeover": "" if whole else as_text(0.4),
                    "residual": as_text(0.2 * np.exp(world.damage * own_excess + 0.1 * position)),
                    "stream": as_text(0.9),
                    "occupancy": "",
                    "occupancy_dense": "",
                }
            )
        for name in ("burden", "burden_null", "burden_dense_plus", "residual"):
            run[name] = as_text(float(np.mean([float(row[name]) for row in own])))
    return run, own


def _macs(arm: Arm) -> float:
    """The budget where a host compacts; elsewhere merging makes a model cheaper."""
    if arm.pruner in (DENSE_PLUS, WEIGHTS):
        return 0.6 if "token_merging" in parts_of(arm.mitigation) else 1.0
    return arm.target_macs_ratio * (1 if arm.pruner in UNPRUNED else 0.995)


def _history(arm: Arm, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, 21):
        progress = min(1.0, epoch / 12)
        left = arm.target_macs_ratio + (1 - arm.target_macs_ratio) * (1 - progress) ** 3
        rise = (
            1
            if arm.pruner in UNPRUNED
            else 1 + (1 - left) * (2 if "handoff" in arm.mitigation else 0.6)
        )
        rows.append(
            {
                **arm.columns(),
                "step": epoch * 97,
                "macs_ratio": as_text(left),
                "load_heads": as_text(0.3 * rise * rng.uniform(0.97, 1.03)),
                "load_neurons": as_text(0.5 * rise * rng.uniform(0.97, 1.03)),
                "unit_load_heads": as_text(0.12 * rise * rng.uniform(0.97, 1.03)),
                "unit_load_neurons": as_text(0.02 * rise * rng.uniform(0.97, 1.03)),
                "loss": as_text(1.5 - 0.02 * epoch),
            }
        )
    return rows
