"""Run configuration: one frozen dataclass per stage, checked on construction.

Functions take plain values; only `pipeline.py` unpacks these. Recipes derive from each other with
`dataclasses.replace`, so that two runs differ in the lines that are written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """One pass of token merging (Bolya et al., arXiv:2210.09461) before a block."""

    block: int
    """Index of the block whose input is merged, >= 1 so that something was mixed before."""
    r: int
    """Patches that disappear: r tokens are averaged into their most similar ones. In training at a
    smaller side as many in proportion, rounded down."""

    def __post_init__(self) -> None:
        _require(self.block >= 1, f"merge.block must be >= 1, got {self.block}")
        _require(self.r >= 1, f"merge.r must be >= 1, got {self.r}")


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Everything that decides tensor shapes of a model, dense or compact."""

    name: str
    """A timm VisionTransformer, e.g. "vit_tiny_patch16_224"."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that override timm's own for `name`: img_size, num_classes, depth, num_heads,
    ..."""
    stem: str = "patch"
    """Patch embedding, a name from `nbcore.vit.STEMS`."""
    num_heads: tuple[int, ...]
    """Heads of each block."""
    hidden_features: tuple[int, ...]
    """MLP hidden neurons of each block."""
    head_dim: int
    """Width of one head, equal in all blocks."""

    def __post_init__(self) -> None:
        _require(
            len(self.num_heads) == len(self.hidden_features),
            f"num_heads lists {len(self.num_heads)} blocks, hidden_features "
            f"{len(self.hidden_features)}; both need one entry per block",
        )
        _require(
            min((*self.num_heads, *self.hidden_features), default=0) >= 1,
            f"every block needs at least one head and one neuron, got {self.num_heads} and "
            f"{self.hidden_features}",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which photos, and how they are cut."""

    dataset: str
    """A name from `nbcore.data.DATASETS`."""
    img_size: int
    """Side of the square input in pixels."""
    crop_pct: float = 1.0
    """Share of the resized shorter side that the centre crop keeps, in (0, 1]."""
    validation_share: float = 0.05
    """Share of the training set that is set aside for choices, in (0, 0.5]."""

    def __post_init__(self) -> None:
        _require(self.img_size > 0, f"img_size must be positive, got {self.img_size}")
        _require(0 < self.crop_pct <= 1, f"crop_pct must lie in (0, 1], got {self.crop_pct}")
        _require(
            0 < self.validation_share <= 0.5,
            f"validation_share must lie in (0, 0.5], got {self.validation_share}",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The dense model before anything is pruned."""

    name: str
    """A timm VisionTransformer."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of timm's arguments: depth, num_heads, patch_size, class_token, global_pool, ..."""
    stem: str = "patch"
    """Patch embedding, a name from `nbcore.vit.STEMS`."""
    pretrained: bool = False
    """Start from timm's published weights (needs a network)."""
    weights: str | None = None
    """Start from this local file (.safetensors, or .pth/.pt read without pickle code)."""

    def __post_init__(self) -> None:
        _require(
            not (self.pretrained and self.weights),
            "give either pretrained or weights, not both: they name two different starting points",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    epochs: tuple[tuple[int, int], ...]
    """Consecutive stages (image side in pixels, epochs); the last one is normally the full size."""
    batch_size: int = 512
    """Images per optimiser step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    final_lr: float = 1e-6
    """Learning rate at the last step of the cosine."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.05
    """AdamW weight decay of matrices; vectors, positions and tokens are not decayed."""
    clip_grad: float = 1.0
    """Largest gradient norm."""
    smoothing: float = 0.1
    """Label smoothing, in [0, 1)."""
    mixup: float = 0.8
    """Alpha of mixup, 0 switches it off."""
    cutmix: float = 1.0
    """Alpha of CutMix, 0 switches it off."""
    crop_scale: tuple[float, float] = (0.25, 1.0)
    """Area of random resized crops as shares of the image."""
    jitter: float = 0.3
    """Strength of brightness, contrast and saturation changes."""
    flip: bool = True
    """Mirror half of the images."""
    erasing: float = 0.0
    """Share of images that lose a random rectangle."""
    three_augment: bool = False
    """Grey, solarise or blur each image, as DeiT III (arXiv:2204.07118)."""
    ema_decay: float = 0.9998
    """Decay of the weight average that is kept as the result; 0 keeps the raw weights."""
    eval_every: int = 20
    """Epochs between looks at the validation split."""
    save_every: int = 25
    """Epochs between resumable states on disk."""
    record_every: int | None = None
    """Steps between records of loss and loads in the history; None records each epoch's end. Where
    the validation split is looked at there is always one."""

    def __post_init__(self) -> None:
        _require(
            bool(self.epochs) and all(size > 0 and n > 0 for size, n in self.epochs),
            f"epochs needs (image side, epochs > 0) pairs, got {self.epochs}",
        )
        _require(self.batch_size > 0, f"batch_size must be positive, got {self.batch_size}")
        _require(self.lr > 0, f"lr must be positive, got {self.lr}")
        _require(self.warmup_epochs >= 0, f"warmup_epochs must be >= 0, got {self.warmup_epochs}")
        for name in ("eval_every", "save_every"):
            _require(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")
        _require(
            self.record_every is None or self.record_every >= 1,
            f"record_every must be >= 1 or None, got {self.record_every}",
        )
        _require(0 <= self.smoothing < 1, f"smoothing must lie in [0, 1), got {self.smoothing}")
        _require(0 <= self.ema_decay < 1, f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        low, high = self.crop_scale
        _require(
            0 < low <= high <= 1, f"crop_scale must satisfy 0 < low <= high <= 1, got {low, high}"
        )

    @property
    def total_epochs(self) -> int:
        return sum(n for _, n in self.epochs)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A convolutional network that is trained first and then teaches the dense model."""

    name: str
    """A timm network."""
    train: TrainConfig
    """Its own training."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of timm's arguments."""
    weight: float = 1.0
    """Weight of its part in the dense model's loss, beside 1 for the labels."""
    temperature: float = 2.0
    """Both answers are softened by this before they are compared."""

    def __post_init__(self) -> None:
        _require(self.weight > 0, f"teacher.weight must be > 0, got {self.weight}")
        _require(self.temperature > 0, f"temperature must be > 0, got {self.temperature}")
        _require(self.train.ema_decay > 0, "a teacher is the average of its weights: ema_decay > 0")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """What is removed, when, and what is done about it."""

    pruner: str
    """Host, a name from `nbcore.pruning.PRUNERS`."""
    macs_ratio: float
    """MACs of the compact model over MACs of its dense base, in (0, 1)."""
    mitigation: str = "none"
    """A name from `nbcore.mitigation.MITIGATIONS`, or several joined by "+"."""
    mitigation_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the mitigations by name, e.g. {"token_merging": {"block": 4, "r": 63}}."""
    start: float = 0.0
    """Share of the training steps after which removal begins, in [0, 1)."""
    end: float = 0.6
    """Share of the training steps by which the budget is met, in (start, 1]."""
    updates: int = 30
    """Number of steps at which units are removed between start and end."""
    freeze: float = 0.8
    """Share of the training steps after which masks stay as they are, where units may return; if it
    is not later than `end`, they stay as the last removal left them. Early enough that the gates of
    units which return last can open."""

    def __post_init__(self) -> None:
        _require(0 < self.macs_ratio < 1, f"macs_ratio must lie in (0, 1), got {self.macs_ratio}")
        _require(
            0 <= self.start < self.end <= 1,
            f"need 0 <= start < end <= 1, got start={self.start}, end={self.end}",
        )
        _require(self.updates >= 1, f"updates must be >= 1, got {self.updates}")
        _require(
            0 < self.freeze <= 1,
            f"freeze must lie in (0, 1], got {self.freeze}",
        )


ID_RULE = (
    "an id holds only letters, digits, '-', '_', '+' and '.', and starts with a letter or digit"
)


def is_id(text: str) -> bool:
    """Whether a variant may be called so: its id is also the name of its folder."""
    return (
        bool(text)
        and text[0].isalnum()
        and all(c.isascii() and (c.isalnum() or c in "-_+.") for c in text)
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One variant: from data to a registered checkpoint."""

    id: str
    """Name of the variant and of its folder."""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    base: str | None = None
    """Id of the dense variant this one forks from; None for a dense variant itself."""
    prune: PruneConfig | None = None
    """None for a dense variant."""
    teacher: TeacherConfig | None = None
    """Teaches a dense variant; None for none."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    calibration_images: int = 1024
    """Training photos from which the mean contributions are taken."""
    measure_images: int = field(default=1024)
    """Test photos on which the burden is measured."""

    def __post_init__(self) -> None:
        _require(is_id(self.id), f"{self.id!r}: {ID_RULE}")
        _require(
            (self.base is None) == (self.prune is None),
            f"{self.id}: a pruned run needs `base` and `prune`, a dense one neither",
        )
        _require(
            self.prune is None or self.teacher is None,
            f"{self.id}: a teacher is for dense runs; a pruned run learns from its dense base "
            "through the mitigation `distillation`",
        )
