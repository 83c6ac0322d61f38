"""Which runs make up a study, and in which order.

A study is a list of waves. A wave runs its blocks seed by seed, so that whatever the time allows,
what is finished is a balanced study: all arms of one seed before the next seed, the most important
block first, all mitigations of a host and budget side by side. What an arm needs stands before it:
the dense model of its seed, from which it forks, and the same model trained on (`dense_plus`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nbcore.config import DataConfig, ModelConfig, PruneConfig, TrainConfig

DENSE, DENSE_PLUS, TWIN = "dense", "dense_plus", "twin"
"""Not pruned: the fork, the fork trained on as long as the arms, a small model from scratch."""
UNPRUNED = (DENSE, DENSE_PLUS, TWIN)
WEIGHTS = "weights"
"""The unstructured host; its budget is the share of block weights kept."""
NEEDS_REMOVAL = frozenset({"persistent_dynamic", "handoff", "burden_quota"})
"""Mitigations that act only when units leave: without pruning they change no bit of a training."""
PUBLISHED = ("token_merging", "persistent_dynamic")

HOSTS = ("taylor", "s2vite", "magnitude", "movement", "wdpruning", "vit_slim", "random")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run of a study."""

    pruner: str
    """Host, or "dense", "dense_plus", "twin"."""
    mitigation: str
    """Name as in `create_mitigation`, or "published"."""
    target_macs_ratio: float
    """Budget; 1 for what is not pruned, the share of weights kept for the host `weights`."""
    seed: int

    @property
    def key(self) -> str:
        """Says everything: taylor-0.3-handoff-seed1."""
        return f"{self.pruner}-{self.target_macs_ratio:g}-{self.mitigation}-seed{self.seed}"

    def columns(self) -> dict[str, str]:
        """What names the run in every table."""
        return {
            "pruner": self.pruner,
            "mitigation": self.mitigation,
            "target_macs_ratio": f"{self.target_macs_ratio:g}",
            "seed": str(self.seed),
        }

    @staticmethod
    def from_columns(row: Mapping[str, str]) -> Arm:
        """The run that a row of a table tells of."""
        return Arm(
            pruner=row["pruner"],
            mitigation=row["mitigation"],
            target_macs_ratio=float(row["target_macs_ratio"]),
            seed=int(row["seed"]),
        )

    def needs(self) -> tuple[Arm, ...]:
        """Arms whose results this one reads."""
        if self.pruner in (DENSE, TWIN):
            return ()
        dense, plus = references(self.seed)
        return (dense,) if self.pruner == DENSE_PLUS else (dense, plus)


def references(seed: int) -> tuple[Arm, Arm]:
    """The dense fork of a seed and the same model trained on."""
    dense = Arm(pruner=DENSE, mitigation="none", target_macs_ratio=1.0, seed=seed)
    return dense, replace(dense, pruner=DENSE_PLUS)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Hosts x mitigations x budgets that answer one question together."""

    hosts: tuple[str, ...]
    mitigations: tuple[str, ...]
    ratios: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Blocks that are run seed by seed, in this order."""

    seeds: tuple[int, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study: what is trained and what is compared."""

    name: str
    data: DataConfig
    model: ModelConfig
    dense: TrainConfig
    """Training of each seed's dense model."""
    arm: TrainConfig
    """Training of every arm from its seed's dense model, equal for all."""
    fork: str = ""
    """Folder of a trained dense variant from which the arms of all seeds fork; empty: each seed
    trains its own dense model."""
    prune: PruneConfig
    """When removal happens; host, budget and mitigation are each arm's own."""
    mitigation_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options by mitigation, given to each arm that uses it."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What is tried in a tuning study, by name: "handoff@2" is handoff with these options instead,
    "none@2" the host alone with these fields of the arm's training or pruning."""
    waves: tuple[Wave, ...]
    choice_seeds: tuple[int, ...] = ()
    """Seeds on whose validation split the best mitigation is chosen; it is confirmed on all
    others. Empty: chosen on the validation split of all seeds."""
    best: str = ""
    """The mitigation to judge, where another study chose it. Empty: chosen in this one."""
    small_effect: float = 0.002
    """Smallest difference in top-1 that would matter; an interval below it refutes a claim."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """What only this data set takes, such as `n_train` of `shapes`."""
    measure_images: int = 2048
    """Test photos on which the burden is measured."""
    calibration_images: int = 2048
    """Training photos from which mean contributions are taken."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: how settings were tuned, what was left out and why."""
    command: str = ""
    """How to run it, for the report."""

    def arms(self, seeds: Sequence[int] | None = None) -> tuple[Arm, ...]:
        """All runs in order, each once.

        Args:
            seeds: Only these; None means all.
        """
        listed = {
            arm: None
            for wave in self.waves
            for seed in wave.seeds
            if seeds is None or seed in seeds
            for arm in (*references(seed), *_arms_of(wave.blocks, seed))
        }
        return tuple(listed)

    def prune_config(self, arm: Arm) -> PruneConfig:
        """How an arm is pruned."""
        return replace(
            self.prune,
            pruner=arm.pruner,
            macs_ratio=arm.target_macs_ratio,
            mitigation="+".join(parts_of(arm.mitigation)),
            mitigation_options=self.options_of(arm.mitigation),
            **self._own_fields(arm, PruneConfig),
        )

    def arm_config(self, arm: Arm) -> TrainConfig:
        """How an arm is trained: all alike, but where that is what is tried."""
        return replace(self.arm, **self._own_fields(arm, TrainConfig))

    def _own_fields(self, arm: Arm, kind: type) -> dict[str, Any]:
        if not arm.mitigation.startswith("none@"):
            return {}
        known = {f.name for f in fields(kind)}
        return {k: v for k, v in self.settings[arm.mitigation].items() if k in known}

    def options_of(self, mitigation: str) -> dict[str, Mapping[str, Any]]:
        """Options of the parts of a mitigation."""
        found: dict[str, Mapping[str, Any]] = {}
        for label in _labels_of(mitigation):
            name = label.partition("@")[0]
            if "@" in label and name != "none":
                found[name] = self.settings[label]
            elif name in self.mitigation_options:
                found[name] = self.mitigation_options[name]
        return found

    def fingerprint(self, arm: Arm) -> str:
        """Eight hex digits that depend on everything that decides an arm's result but the code."""
        decides: dict[str, Any] = {
            "arm": asdict(arm),
            "data": [asdict(self.data), dict(self.data_options)],
            "model": asdict(self.model),
            "dense": self.fork or asdict(self.dense),
            "measured_on": [self.measure_images, self.calibration_images],
        }
        if arm.pruner != DENSE:
            decides["train"] = asdict(self.arm_config(arm))
            decides["options"] = self.options_of(arm.mitigation)
        if arm.pruner not in UNPRUNED:
            decides["prune"] = asdict(self.prune_config(arm))
        text = json.dumps(decides, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _arms_of(blocks: Sequence[Block], seed: int) -> Iterator[Arm]:
    for block in blocks:
        for ratio in block.ratios:
            for host in block.hosts:
                for mitigation in block.mitigations:
                    if host == DENSE_PLUS:
                        mitigation = acting_without_removal(mitigation)
                    yield Arm(
                        pruner=host, mitigation=mitigation, target_macs_ratio=ratio, seed=seed
                    )


def _labels_of(mitigation: str) -> tuple[str, ...]:
    parts = mitigation.split("+")
    return tuple(p for part in parts for p in (PUBLISHED if part == "published" else (part,)))


def parts_of(mitigation: str) -> tuple[str, ...]:
    """The mitigations of a composition, without their settings; "published" is taken apart."""
    return tuple(label.partition("@")[0] for label in _labels_of(mitigation))


def acting_without_removal(mitigation: str) -> str:
    """What is left of a mitigation when nothing is pruned: the dense control it is held against."""
    acting = [part for part in parts_of(mitigation) if part not in NEEDS_REMOVAL]
    return "+".join(acting) or "none"
