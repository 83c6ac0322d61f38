"""A study written by hand: two hosts, three seeds, numbers that can be checked in the head."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

SEEDS = (0, 1, 2)
TOP1 = {
    ("dense", "1", "none"): (0.90, 0.90, 0.90),
    ("dense_plus", "1", "none"): (0.91, 0.91, 0.91),
    ("taylor", "0.5", "none"): (0.80, 0.82, 0.84),
    ("taylor", "0.5", "handoff"): (0.84, 0.85, 0.86),
    ("taylor", "0.25", "none"): (0.70, 0.70, 0.70),
    ("random", "0.5", "none"): (0.60, 0.62, 0.64),
}
"""Accuracy of each seed by host, budget and mitigation."""
CLAIMS = (
    ("`handoff` makes pruned models more accurate.", "supported", "+3.00 points [+0.5, +5.5]"),
    ("`handoff` <beats> distillation.", "undecided", "not run"),
    ("Hosts beat removal at random.", "not supported", "-1.00 points"),
)


def write_study(folder: Path, name: str = "by-hand", *, tuning: bool = False) -> Path:
    """Write a study into a checkpoint folder; one for tuning has no summary, claims or figures."""
    here = folder / "study" / name
    (here / "figures").mkdir(parents=True)
    _csv(here / "runs.csv", [_run(arm, seed) for seed in SEEDS for arm in TOP1])
    told: dict[str, Any] = {
        "study": name,
        "facts": ["Command: `python -m nbcore study by-hand`", "Devices: a *made-up* one."],
        "rule": "*Supported*: above zero.",
        "topics": [],
        "figures": [],
        "trials": [],
    }
    if tuning:
        told["trials"] = [_trial("0.001", 0.9, chosen=False), _trial("0.1", 0.8, chosen=True)]
    else:
        _csv(here / "summary.csv", [_summary(arm) for arm in TOP1])
        Image.new("RGB", (8, 4), "teal").save(here / "figures" / "accuracy.png")
        told["figures"] = [{"file": "figures/accuracy.png", "caption": "Accuracy & cost."}]
        keys = ("sentence", "verdict", "numbers")
        told["topics"] = [
            {"title": "Gains", "claims": [dict(zip(keys, c, strict=True)) for c in CLAIMS[:2]]},
            {"title": "Controls", "claims": [dict(zip(keys, CLAIMS[2], strict=True))]},
        ]
    (here / "verdicts.json").write_text(json.dumps(told))
    (here / "README.md").write_text(
        f"# Study `{name}`\n\n![accuracy](figures/accuracy.png)\n\n*Accuracy.*\n\nAll told.\n\n"
        "| claim | verdict |\n|---|---|\n| Helps. | undecided |\n"
    )
    return here


def _run(arm: tuple[str, str, str], seed: int) -> dict[str, Any]:
    pruner, budget, mitigation = arm
    unpruned = pruner == "dense"
    return {
        "pruner": pruner,
        "mitigation": mitigation,
        "target_macs_ratio": budget,
        "macs_ratio": budget,
        "seed": seed,
        "top1": TOP1[arm][seed],
        "val_top1": TOP1[arm][seed] + 0.01,
        "burden": "" if unpruned else 1.5 + 0.5 * seed,
        "burden_null": "" if unpruned else 0.5,
        "burden_dense_plus": "" if unpruned else 1.25,
        "takeover": "",
        "residual": "",
        "num_params": 1000,
        "seconds": 1.5,
        "device": "made up",
        "commit": "0" * 12,
    }


def _summary(arm: tuple[str, str, str]) -> dict[str, Any]:
    pruner, budget, mitigation = arm
    mean = sum(TOP1[arm]) / len(SEEDS)
    gains = mitigation != "none"
    return {
        "pruner": pruner,
        "target_macs_ratio": budget,
        "mitigation": mitigation,
        "seeds": len(SEEDS),
        "top1": round(mean, 6),
        "top1_low": round(mean - 0.05, 6),
        "top1_high": round(mean + 0.05, 6),
        "gain": 0.03 if gains else "",
        "gain_low": 0.005 if gains else "",
        "gain_high": 0.055 if gains else "",
        "recovered": 0.33 if gains else "",
        "recovered_low": "",
        "recovered_high": "",
        "did": 0.03 if gains else "",
        "did_low": -0.01 if gains else "",
        "did_high": 0.07 if gains else "",
    }


def _trial(ridge: str, loss: float, *, chosen: bool) -> dict[str, Any]:
    return {
        "mitigation": "handoff",
        "setting": "handoff@0",
        "options": f"ridge {ridge}",
        "cells": 3,
        "val_loss": loss,
        "val_top1": 0.5,
        "chosen": chosen,
    }


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
