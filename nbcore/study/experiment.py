"""One arm of a study -> its rows: train, compact, evaluate, measure.

A `Laboratory` lives as long as its process: it holds the data on the device and the forks. What
one run compiled serves all later ones (`nbcore.vit.compiled_parts`).
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcore import checkpoint
from nbcore.burden import MeteredViT, PooledLoads, calibrate
from nbcore.compact import compact, kept_units
from nbcore.config import TrainConfig
from nbcore.data import Dataset, Split, load_dataset, spread
from nbcore.evaluate import evaluate, predict_logits, torch_predict
from nbcore.export import round_to_half
from nbcore.macs import macs_of
from nbcore.measure import measure_burden, pooled_loads
from nbcore.mitigation import create_mitigation
from nbcore.provenance import device_name, source_commit
from nbcore.pruning import PRUNERS, Pruner, plan_budget
from nbcore.study.forks import (
    Fork,
    fork_path,
    read_fork,
    read_loads,
    whole_macs,
    write_fork,
    write_loads,
)
from nbcore.study.grid import (
    DENSE,
    DENSE_PLUS,
    TWIN,
    UNPRUNED,
    WEIGHTS,
    Arm,
    StudyConfig,
    parts_of,
    references,
)
from nbcore.study.rows import history_rows, run_means, site_rows, whole_sites
from nbcore.study.twin import create_twin
from nbcore.train import TrainResult, steps_per_epoch, train
from nbcore.vit import PrunableViT, build_model, create_dense, with_merge

EVALUATION_BATCH = {"cuda": 2048, "cpu": 256}
MEASURE_BATCH = {"cuda": 512, "cpu": 64}
PIXELS = 2**24
"""Most in a batch that is evaluated, a quarter of it where it is measured: the processes of a study
share the memory of a GPU."""
REHEARSAL_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is recorded of one run."""

    run: dict[str, Any]
    sites: list[dict[str, Any]]
    history: list[dict[str, Any]]


class Laboratory:
    """Runs the arms of one study on one device.

    Args:
        study: What is studied.
        data_dir: Where prepared data lie.
        work: Folder for the forks.
        device: Where to train.
    """

    def __init__(
        self, study: StudyConfig, data_dir: Path | None, work: Path, device: torch.device
    ) -> None:
        self.study = study
        self.work = work
        self.device = device
        self.commit = source_commit()
        data = load_dataset(
            study.data.dataset,
            data_dir,
            img_size=study.data.img_size,
            crop_pct=study.data.crop_pct,
            validation_share=study.data.validation_share,
            **study.data_options,
        )
        self.data = replace(
            data,
            train=_on(device, data.train),
            validation=_on(device, data.validation),
            test=_on(device, data.test),
        )
        self.measured = spread(self.data.test, study.measure_images).images
        pixels = study.data.img_size**2
        self.evaluation_batch = min(EVALUATION_BATCH[device.type], PIXELS // pixels)
        self.measure_batch = min(MEASURE_BATCH[device.type], PIXELS // 4 // pixels)
        dense = self._create()
        self.dense_arch = dense.arch
        self.dense_macs = whole_macs(dense)
        self.site_macs = whole_sites(dense)
        self._forks: dict[int, Fork] = {}

    def run(self, arm: Arm) -> Outcome:
        """Train an arm and measure all that is recorded of it."""
        began = time.perf_counter()
        sites: list[dict[str, Any]] = []
        history: list[dict[str, Any]] = []
        if arm.pruner == DENSE and self.study.fork:
            metered = self._shipped()
            row = self._evaluated(arm, metered.model)
            write_fork(self._path(arm), metered, row["top1"])
            row["base_top1"] = row["top1"]
        elif arm.pruner in (DENSE, TWIN):
            result = self._train_from_scratch(arm, self.data)
            history = result.history
            small = compact(result.model, torch.ones_like(result.keep))
            if arm.pruner == DENSE:
                round_to_half(MeteredViT(small, [torch.zeros(()) for _ in small.sites]))
            row = self._evaluated(arm, small)
            if arm.pruner == DENSE:
                write_fork(self._path(arm), self._metered(small), row["top1"])
                row["base_top1"] = row["top1"]
        else:
            fork = self.fork(arm.seed)
            result = self._train_from_fork(arm, fork.metered.model.state_dict(), self.data)
            history = result.history
            small = compact(result.model, result.keep)
            row = self._evaluated(arm, small) | {"base_top1": fork.top1}
            kept = kept_units(result.model, result.keep)
            metered = self._metered(small)
            report = measure_burden(
                fork.metered,
                metered,
                kept,
                self.measured,
                batch_size=self.measure_batch,
                cut=_cut(fork.metered, small) if arm.pruner == WEIGHTS else None,
            )
            loads = self._loads_of_dense_plus(arm, metered, row["top1"])
            sites = site_rows(arm, fork, loads, report, kept)
        row |= run_means(sites, self.site_macs)
        row["seconds"] = round(time.perf_counter() - began, 2)
        return Outcome(run=row, sites=sites, history=history_rows(arm, history))

    def _shipped(self) -> MeteredViT:
        """The dense variant that all seeds fork from."""
        folder = Path(self.study.fork)
        variant = checkpoint.read_trained(folder.parent, folder.name)
        checkpoint.verify_files(folder.parent, variant, ("weights",))
        return checkpoint.load_model(folder.parent, variant).to(self.device)

    def rehearse(self, arm: Arm) -> None:
        """Train an arm for a few steps, so that its structure is compiled; from random weights if
        there are no others yet."""
        steps = REHEARSAL_STEPS
        images = self.data.train.images
        count = min(len(images), steps * self.study.arm.batch_size)
        few = Split(
            images=images[:count],
            targets=self.data.train.targets[:count],
            names=self.data.train.names[:count],
        )
        data = replace(self.data, train=few)
        if arm.pruner in (DENSE, TWIN):
            self._train_from_scratch(arm, data, rehearsal=True)
        else:
            start = self._shipped().model if self.study.fork else build_model(self.dense_arch)
            state = start.to(self.device).state_dict()
            self._train_from_fork(arm, state, data, rehearsal=True)

    def fork(self, seed: int) -> Fork:
        """The dense model of a seed, whose run is finished."""
        dense, _ = references(seed)
        if seed not in self._forks:
            self._forks[seed] = read_fork(
                self._path(dense), self.dense_arch, self.measured, self.measure_batch
            )
        return self._forks[seed]

    def _loads_of_dense_plus(
        self, arm: Arm, metered: MeteredViT, top1: float
    ) -> PooledLoads | None:
        """Loads of the seed's dense model trained on, which is what `metered` holds or what was
        saved; None for the dense model trained on with a mitigation, which has no such control."""
        _, plus = references(arm.seed)
        if arm == plus:
            loads = pooled_loads(metered, self.measured, batch_size=self.measure_batch)
            write_loads(self._path(plus), loads, top1)
            return loads
        return None if arm.pruner == DENSE_PLUS else read_loads(self._path(plus), self.device)

    def _train_from_scratch(
        self, arm: Arm, data: Dataset, *, rehearsal: bool = False
    ) -> TrainResult:
        torch.manual_seed(arm.seed)
        start, config = self._create(), self.study.dense
        if arm.pruner == TWIN:
            start = create_twin(start, arm.target_macs_ratio)
            config = replace(config, epochs=(*config.epochs, *self.study.arm.epochs))
        return train(
            start.to(self.device),
            data,
            _quiet(config, rehearsal),
            seed=arm.seed,
            device=self.device,
            mitigation=create_mitigation("none", {}),
            dense_macs=self.dense_macs,
            title=None,
        )

    def _train_from_fork(
        self, arm: Arm, start: dict[str, Tensor], data: Dataset, *, rehearsal: bool = False
    ) -> TrainResult:
        config = _quiet(self.study.arm_config(arm), rehearsal)
        mitigation = create_mitigation(
            "+".join(parts_of(arm.mitigation)), self.study.options_of(arm.mitigation)
        )
        if rehearsal:
            mitigation.fade_steps = 0  # Its few steps are too short for gates to open in.
        model = with_merge(build_model(self.dense_arch), mitigation.merge()).to(self.device)
        model.load_state_dict(start)
        model.requires_grad_(True)  # A folded BatchNorm leaves constants behind.
        torch.manual_seed(arm.seed)
        return train(
            model,
            data,
            config,
            seed=arm.seed,
            device=self.device,
            mitigation=mitigation,
            pruner=self._pruner(arm, model, len(data.train.names), config),
            dense_macs=self.dense_macs,
            title=None,
        )

    def _pruner(
        self, arm: Arm, model: PrunableViT, num_images: int, config: TrainConfig
    ) -> Pruner | None:
        if arm.pruner in UNPRUNED:
            return None
        prune = self.study.prune_config(arm)
        budget = plan_budget(
            macs_of(model),
            dense_macs=self.dense_macs,
            macs_ratio=prune.macs_ratio,
            total_steps=steps_per_epoch(num_images, config.batch_size) * config.total_epochs,
            start=prune.start,
            end=prune.end,
            updates=prune.updates,
            freeze=prune.freeze,
        )
        return PRUNERS[arm.pruner](model, budget, torch.Generator().manual_seed(arm.seed))

    def _evaluated(self, arm: Arm, model: PrunableViT) -> dict[str, Any]:
        """A row of `runs.csv` without what is measured against the fork."""
        row: dict[str, Any] = {
            "dataset": self.data.name,
            "arch": model.arch.name,
            **arm.columns(),
            "macs_ratio": f"{whole_macs(model) / self.dense_macs:.6g}",
            "base_top1": "",
            "num_params": sum(
                int(p.count_nonzero()) if arm.pruner == WEIGHTS else p.numel()
                for p in model.parameters()
            ),
            "device": device_name(self.device),
            "commit": self.commit,
            "config": self.study.fingerprint(arm),
        }
        for prefix, split in (("", self.data.test), ("val_", self.data.validation)):
            logits = predict_logits(
                torch_predict(model, self.device),
                split.images,
                batch_size=self.evaluation_batch,
            )
            metrics = dict(evaluate(logits, split.targets))
            row |= {f"{prefix}top1": metrics["top1"], f"{prefix}loss": metrics["loss"]}
        return row

    def _metered(self, model: PrunableViT) -> MeteredViT:
        images = spread(self.data.train, self.study.calibration_images).images
        batches = (b.float() / 255 for b in images.split(self.measure_batch))
        metered = MeteredViT(model, calibrate(model, batches))
        return metered.to(self.device).eval().requires_grad_(False)

    def _path(self, arm: Arm) -> Path:
        return fork_path(self.work, self.study, arm)

    def _create(self) -> PrunableViT:
        return create_dense(
            self.study.model,
            img_size=self.study.data.img_size,
            num_classes=len(self.data.classes),
        )


def structure_of(study: StudyConfig, arm: Arm) -> str | None:
    """Arms with the same answer run the same compiled code; None for one that trains nothing."""
    if arm.pruner == DENSE and study.fork:
        return None
    if arm.pruner in (DENSE, TWIN):
        return f"{arm.pruner}-{arm.target_macs_ratio:g}"
    mitigation = create_mitigation(
        "+".join(parts_of(arm.mitigation)), study.options_of(arm.mitigation)
    )
    gates = "none"
    if arm.pruner not in UNPRUNED:
        host = PRUNERS[arm.pruner]
        gates = f"{getattr(host, 'wants_unit_gradients', '')}/{getattr(host, 'gate', '')}"
        gates += f"/{getattr(host, 'regrows', '')}/{mitigation.regrows}"
    return f"{gates}/{mitigation.merge()}/{mitigation.wants_blocks}"


def _on(device: torch.device, split: Split) -> Split:
    return replace(split, images=split.images.to(device), targets=split.targets.to(device))


def _quiet(config: TrainConfig, rehearsal: bool = False) -> TrainConfig:
    """Without looks at the validation split before the end; a rehearsal sees each side once."""
    if rehearsal:
        sides = dict.fromkeys(side for side, _ in config.epochs)
        config = replace(config, epochs=tuple((side, 1) for side in sides))
    return replace(config, eval_every=config.total_epochs)


@torch.no_grad()
def _cut(dense: MeteredViT, pruned: PrunableViT) -> MeteredViT:
    """The dense model without the block weights that are zero in the pruned one."""
    cut = copy.deepcopy(dense)
    for mine, other in zip(
        cut.model.vit.blocks.parameters(), pruned.vit.blocks.parameters(), strict=True
    ):
        if mine.ndim == 2:
            mine.mul_(other != 0)
    return cut
