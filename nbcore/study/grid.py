"""Which runs make up a study, and in which order.

A study is a list of waves. A wave runs its blocks seed by seed, so that whatever the time allows,
what is finished is a balanced study: all arms of one seed before the next seed, the most important
block first, all mitigations of a host and budget side by side. What an arm needs stands before it:
the dense model of its seed, from which it forks, and the same model trained on (`dense_plus`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nbcore.config import DataConfig, ModelConfig, PruneConfig, TrainConfig
from nbcore.recipes import AVERAGED, RECIPES
from nbcore.registry import Registry

DENSE, DENSE_PLUS, TWIN = "dense", "dense_plus", "twin"
"""Not pruned: the fork, the fork trained on as long as the arms, a small model from scratch."""
UNPRUNED = (DENSE, DENSE_PLUS, TWIN)
WEIGHTS = "weights"
"""The unstructured host; its budget is the share of block weights kept."""
NEEDS_REMOVAL = frozenset({"persistent_dynamic", "handoff", "burden_quota"})
"""Mitigations that act only when units leave: without pruning they change no bit of a training."""
PUBLISHED = ("token_merging", "persistent_dynamic")

HOSTS = ("taylor", "s2vite", "magnitude", "movement", "wdpruning", "vit_slim", "random")
PAPER = ("none", "token_merging", "persistent_dynamic", "published")
ALL = (
    *PAPER,
    "handoff",
    "distillation",
    "handoff+distillation",
    "token_merging+handoff",
    "token_merging+handoff+distillation",
)


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


STUDIES: Registry[Callable[[], StudyConfig]] = Registry("study")


def _control(mitigations: tuple[str, ...]) -> Block:
    """The dense model trained on, with each mitigation."""
    return Block(hosts=(DENSE_PLUS,), mitigations=mitigations, ratios=(1.0,))


def _twins(ratios: tuple[float, ...]) -> Block:
    return Block(hosts=(TWIN,), mitigations=("none",), ratios=ratios)


def _four_layer(
    name: str,
    dataset: str,
    epochs: tuple[int, int],
    waves: tuple[Wave, ...],
) -> StudyConfig:
    """Dense and arms for `epochs`, in batches of 1024: smaller ones leave a large GPU idle."""
    dense = RECIPES[f"{dataset}-four-layer"]()[0]
    side = dense.data.img_size
    num_patches = (side // dense.model.kwargs["patch_size"]) ** 2
    train = replace(
        dense.train,
        epochs=((side, epochs[0]),),
        batch_size=1024,
        lr=2e-3,
        warmup_epochs=3,
        mixup=0.0,
        cutmix=0.0,
        ema_decay=0.998,
        record_every=100,
    )
    arm = replace(
        train, epochs=((side, epochs[1]),), lr=1e-3, warmup_epochs=0.5, ema_decay=0.99,
        record_every=20,
    )  # fmt: skip
    return StudyConfig(
        name=name,
        data=dense.data,
        model=dense.model,
        dense=train,
        arm=arm,
        prune=PruneConfig(pruner="taylor", macs_ratio=0.5, updates=12),
        mitigation_options={
            "token_merging": {"block": 1, "r": num_patches // 4},
            "persistent_dynamic": {"fade": 18},
        },
        waves=waves,
        choice_seeds=(0,),
        command=f"python -m nbcore study {name} --data DIR",
    )


def _tuned(study: StudyConfig) -> StudyConfig:
    """With the settings that had the smallest validation loss in `cifar10-tuning`."""
    merging = study.mitigation_options["token_merging"]
    # A gate that opens more slowly than masks change is never open.
    fade = 9 if study.data.dataset == "cifar10" else 5
    return replace(
        study,
        arm=replace(study.arm, lr=4e-3),
        prune=replace(study.prune, end=0.3),
        mitigation_options={
            "token_merging": {"block": 1, "r": 2 * merging["r"]},
            "persistent_dynamic": {"fade": fade, "margin": 1.0},
            "handoff": {"ridge": 0.3},
            "distillation": {"weight": 2.0, "temperature": 2.0},
        },
    )


CORE = (
    Block(hosts=("taylor", "s2vite"), mitigations=ALL, ratios=(0.1, 0.3)),
    Block(hosts=(WEIGHTS,), mitigations=PAPER, ratios=(0.05, 0.02, 0.2)),
    _control(ALL),
    _twins((0.3, 0.1)),
)
"""The paper's setting with a structured host that removes, one that grows back, and its own."""


@STUDIES.register("cifar10-four-layer")
def cifar10_four_layer() -> StudyConfig:
    """A four-layer ViT on CIFAR-10, the setting of arXiv:2407.16716: eight hosts, nine mitigations.

    Command: python -m nbcore study cifar10-four-layer --data DIR
    Time: not run yet; at the 4 to 6 s of one H100 that a run took in `cifar10-tuning`, 45 minutes.
    Expected: unknown; that is what it is for.
    """
    others = [
        Wave(
            seeds=(1, 2, 3),
            blocks=(Block(hosts=(host,), mitigations=ALL, ratios=(0.1, 0.3)),),
        )
        for host in ("magnitude", "movement", "wdpruning", "vit_slim", "random")
    ]
    waves = (Wave(seeds=(0, 1, 2, 3, 4), blocks=CORE), *others)
    return _tuned(_four_layer("cifar10-four-layer", "cifar10", (45, 8), waves))


@STUDIES.register("cifar10-tuning")
def cifar10_tuning() -> StudyConfig:
    """Five trials for every arm, the host alone included, on a seed of its own.

    Chosen is what has the smallest mean validation loss; test figures are not looked at.

    Command: python -m nbcore study cifar10-tuning --data DIR --workers 6
    Time: 8 minutes of one H100 for the first 96 of its 126 runs, six at a time.
    Expected: dense validation top-1 0.78; chosen are lr 4e-3 with pruning done after 30 % of the
        steps, half of the tokens merged, ridge 0.3, distillation with weight 2 and temperature 2.
    """
    trials: dict[str, list[dict[str, Any]]] = {
        "none": [
            {"lr": 1e-3, "end": 0.3},
            {"lr": 2e-3, "end": 0.3},
            {"lr": 4e-3, "end": 0.3},
            {"lr": 2e-3, "end": 0.6},
            {"lr": 4e-3, "end": 0.6},
        ],
        "token_merging": [
            {"block": 1, "r": 8},
            {"block": 1, "r": 16},
            {"block": 1, "r": 32},
            {"block": 2, "r": 16},
            {"block": 2, "r": 32},
        ],
        "persistent_dynamic": [
            {"fade": fade, "margin": margin}
            for fade, margin in ((18, 0.2), (18, 1.0), (18, 4.0), (0, 1.0), (54, 1.0))
        ],
        "handoff": [{"ridge": ridge} for ridge in (1e-3, 1e-2, 0.1, 0.3, 1.0)],
        "distillation": [
            {"weight": weight, "temperature": temperature}
            for weight, temperature in ((0.5, 2.0), (1.0, 2.0), (2.0, 2.0), (4.0, 2.0), (2.0, 4.0))
        ],
        "reconstruction": [{"weight": weight} for weight in (0.5, 1.0, 2.0, 4.0, 8.0)],
    }
    settings = {
        f"{name}@{i}": options
        for i in range(5)
        for name, tried in trials.items()
        for options in tried[i : i + 1]
    }
    blocks = tuple(
        Block(hosts=(host,), mitigations=("none", *settings), ratios=(ratio,))
        for host, ratio in (("taylor", 0.1), ("s2vite", 0.1), ("taylor", 0.3), ("s2vite", 0.3))
    )
    waves = (Wave(seeds=(100,), blocks=blocks),)
    study = _four_layer("cifar10-tuning", "cifar10", (45, 8), waves)
    return replace(study, settings=settings, choice_seeds=())


@STUDIES.register("mnist-four-layer")
def mnist_four_layer() -> StudyConfig:
    """A four-layer ViT on MNIST, the setting of arXiv:2407.16716: three hosts, nine mitigations.

    Command: python -m nbcore study mnist-four-layer --data DIR
    Time: not run yet.
    Expected: unknown; differences will be small, as MNIST is nearly solved at every budget.
    """
    waves = (Wave(seeds=(0, 1, 2, 3, 4), blocks=CORE),)
    return _tuned(_four_layer("mnist-four-layer", "mnist", (15, 4), waves))


@STUDIES.register("imagenette-vit-tiny")
def imagenette_vit_tiny() -> StudyConfig:
    """ViT-Tiny with a convolutional stem on Imagenette: four hosts, five mitigations.

    All seeds fork from the shipped dense variant, which is too dear to train for each: seeds differ
    in data order, augmentation and what the host draws.

    Command: python -m nbcore study imagenette-vit-tiny --data DIR
    Time: not run yet.
    Expected: unknown; it tests whether what won on CIFAR-10 wins on photos.
    """
    dense, first, *_ = RECIPES["imagenette-vit-tiny"]()
    best = "token_merging+handoff"
    mitigations = ("none", "published", best, "distillation", f"{best}+distillation")
    core = (
        Block(hosts=("taylor", "s2vite", "magnitude"), mitigations=mitigations, ratios=(0.25,)),
        _control(mitigations),
    )
    half = (Block(hosts=("taylor",), mitigations=mitigations, ratios=(0.5,)),)
    more = (Block(hosts=("movement",), mitigations=mitigations, ratios=(0.25,)),)
    return StudyConfig(
        name="imagenette-vit-tiny",
        data=dense.data,
        model=dense.model,
        dense=dense.train,
        fork=f"checkpoints/{dense.id}",
        arm=replace(
            first.train,
            epochs=((224, 12),),
            batch_size=512,
            warmup_epochs=0.5,
            ema_decay=0.99,
            record_every=20,
        ),
        prune=PruneConfig(pruner="taylor", macs_ratio=0.5, updates=10),
        mitigation_options={
            "token_merging": {"block": 4, "r": 64},
            "persistent_dynamic": {"fade": 12, "margin": 1.0},
            "handoff": {"ridge": 0.3},
            "distillation": {"weight": 2.0, "temperature": 2.0},
        },
        waves=(
            Wave(seeds=(0, 1, 2), blocks=core),
            Wave(seeds=(0, 1, 2), blocks=half),
            Wave(seeds=(0, 1, 2), blocks=more),
        ),
        measure_images=1024,
        calibration_images=1024,
        command="python -m nbcore study imagenette-vit-tiny --data DIR",
    )


@STUDIES.register("cifar10-smoke")
def cifar10_smoke() -> StudyConfig:
    """The whole road of a study in little, on drawn shapes in place of CIFAR-10's photos.

    Command: python -m nbcore study cifar10-smoke --out DIR
    Time: under 2 minutes on 2 CPU cores, report included.
    Expected: every table, figure and sentence of a study; far too small to decide any claim.
    """
    train = TrainConfig(
        epochs=((32, 2),),
        batch_size=64,
        lr=3e-3,
        warmup_epochs=0.5,
        mixup=0.0,
        cutmix=0.0,
        smoothing=0.0,
        crop_scale=(0.7, 1.0),
        jitter=0.1,
        ema_decay=0.9,
    )
    blocks = (
        Block(
            hosts=("taylor", "magnitude"),
            mitigations=("none", "token_merging", "handoff"),
            ratios=(0.5,),
        ),
        _control(("none", "token_merging", "handoff")),
        _twins((0.5,)),
    )
    return StudyConfig(
        name="cifar10-smoke",
        data=DataConfig(dataset="shapes", img_size=32, validation_share=0.2),
        data_options={"n_train": 960, "n_test": 192},
        model=ModelConfig(
            name="vit_tiny_patch16_224",
            kwargs=AVERAGED | {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4},
            stem="conv",
        ),
        dense=replace(train, epochs=((32, 10),)),
        arm=replace(train, lr=1e-3),
        prune=PruneConfig(pruner="taylor", macs_ratio=0.5, updates=4),
        mitigation_options={"token_merging": {"block": 1, "r": 4}},
        waves=(Wave(seeds=(0, 1, 2), blocks=blocks),),
        measure_images=96,
        calibration_images=96,
        command="python -m nbcore study cifar10-smoke --out DIR",
    )
