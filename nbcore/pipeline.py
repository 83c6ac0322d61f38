"""The whole story of one variant: data, train, prune, measure, compact, export, register.

A run has two stages. `trained` leaves weights, history and measurements; `exported` adds the ONNX
graph and what is measured through it, and only then does the manifest name the variant. A host
without onnxruntime stops after the first; `export_variant` completes it anywhere.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nbcore import checkpoint
from nbcore.burden import BurdenReport, MeteredViT, calibrate
from nbcore.checkpoint import (
    CheckpointError,
    Preprocessing,
    Provenance,
    SiteEntry,
    Variant,
    file_entry,
    write_atomically,
)
from nbcore.compact import compact, kept_units
from nbcore.config import RunConfig
from nbcore.data import Dataset, Split, load_dataset
from nbcore.evaluate import evaluate, predict_logits, torch_predict
from nbcore.export import as_input, export, open_session, round_to_half
from nbcore.macs import macs_of
from nbcore.measure import mean_over_sites, measure_burden
from nbcore.mitigation import create_mitigation
from nbcore.provenance import device_name, library_versions, source_commit
from nbcore.pruning import PRUNERS, Budget, removal_steps
from nbcore.train import TrainResult, steps_per_epoch, train
from nbcore.vit import PrunableViT, create_dense, with_merge

PARITY_IMAGES = 256

logger = logging.getLogger(__name__)


def run_variant(
    config: RunConfig, out: Path, data_dir: Path | None, device: torch.device, *, command: str
) -> str:
    """Bring one variant as far as this host can; what is done already is not done again.

    Args:
        config: The run.
        out: Checkpoint folder.
        data_dir: Where prepared data lie.
        device: Where to train.
        command: The command line that reproduces this run, for the record.

    Returns:
        "exported" or "trained", the stage that was reached.
    """
    if _is_exported(config, out):
        logger.info("%s: already exported", config.id)
        return "exported"
    data = _load(config, data_dir)
    if not _is_trained(config, out):
        dense = _dense_base(config, out)
        model, result, kept = _train(config, data, dense, device, _state_path(out, config.id))
        variant = _write_trained(config, data, dense, model, result, kept, out, device, command)
        shutil.rmtree(_state_path(out, config.id).parent, ignore_errors=True)
        logger.info("%s: trained, top-1 %.4f", config.id, variant.metrics["top1"])
    if importlib.util.find_spec("onnxruntime") is None:
        return "trained"
    export_variant(config.id, out, data)
    return "exported"


def export_variant(variant_id: str, out: Path, data: Dataset) -> Variant:
    """Complete a trained variant: ONNX graph, parity, accuracy through ONNX Runtime, manifest
    entry.

    Args:
        variant_id: Folder below `out` that holds `variant.json`.
        out: Checkpoint folder.
        data: The variant's data set, at its image size.
    """
    variant = read_trained(out, variant_id)
    path = out / variant_id / "model.onnx"
    metered = checkpoint.load_model(out, variant)
    parity = export(metered, path, spread(data.test, PARITY_IMAGES).images, name=variant_id)
    metrics: dict[str, Any] = {
        "parity_logits": parity.logits,
        "parity_loads": parity.loads,
        "parity_images": parity.images,
    }
    if parity.tie_share is not None:
        metrics["tie_share"] = parity.tie_share
    metrics |= onnx_accuracy(path, data.test, title=f"{variant_id}: test through ONNX Runtime")
    variant = checkpoint.with_files(variant, {"onnx": file_entry(out, path)}, metrics)
    _write_entry(out, variant)
    checkpoint.register_variant(out, variant)
    return variant


def measure_variant(
    variant_id: str, out: Path, data: Dataset, *, num_images: int = 1024
) -> BurdenReport:
    """Measure the burden of a pruned variant again and record it.

    Raises:
        CheckpointError: If the variant is dense: it has no past to be compared with.
    """
    variant = read_trained(out, variant_id)
    if variant.base is None:
        raise CheckpointError(
            f"{variant_id} is dense; burden compares a pruned variant with its dense base"
        )
    dense = checkpoint.load_model(out, read_trained(out, variant.base))
    kept = [torch.tensor(site.kept) for site in variant.sites]
    images = spread(data.test, num_images).images
    report = measure_burden(dense, checkpoint.load_model(out, variant), kept, images)
    path = out / variant_id / "burden.json"
    write_atomically(path, json.dumps(asdict(report), indent=1))
    means = mean_over_sites(report, dense.model, kept)
    variant = checkpoint.with_files(variant, {"burden": file_entry(out, path)}, means)
    _write_entry(out, variant)
    if "onnx" in variant.files:
        checkpoint.register_variant(out, variant)
    return report


def onnx_accuracy(path: Path, split: Split, *, title: str) -> dict[str, Any]:
    """Metrics of an exported file on a split."""
    session = open_session(path)
    logits = predict_logits(
        lambda images: torch.from_numpy(
            session.run(["logits"], {"image": as_input(images).numpy()})[0]
        ),
        split.images,
        batch_size=32,
        title=title,
    )
    return dict(evaluate(logits, split.targets))


def spread(split: Split, limit: int) -> Split:
    """At most `limit` images, evenly spaced over a split."""
    count = min(limit, len(split.names))
    picks = torch.linspace(0, len(split.names) - 1, count).round().long()
    return Split(
        images=split.images[picks],
        targets=split.targets[picks],
        names=tuple(split.names[i] for i in picks.tolist()),
    )


def read_trained(out: Path, variant_id: str) -> Variant:
    """The entry of a variant that was trained, exported or not.

    Raises:
        CheckpointError: If there is none.
    """
    path = out / variant_id / checkpoint.VARIANT
    if not path.is_file():
        known = (
            ", ".join(sorted(p.parent.name for p in out.glob(f"*/{checkpoint.VARIANT}"))) or "none"
        )
        raise CheckpointError(f"no trained variant {variant_id!r} in {out}; available: {known}")
    return checkpoint.variant_from_json(json.loads(path.read_text(encoding="utf-8")))


def load_for(variant: Variant, data_dir: Path | None) -> Dataset:
    """The data set of a variant at its size."""
    return load_dataset(
        variant.dataset,
        data_dir,
        img_size=variant.img_size,
        crop_pct=variant.preprocessing.crop_pct,
    )


def _load(config: RunConfig, data_dir: Path | None) -> Dataset:
    return load_dataset(
        config.data.dataset,
        data_dir,
        img_size=config.data.img_size,
        crop_pct=config.data.crop_pct,
        validation_share=config.data.validation_share,
    )


def _state_path(out: Path, variant_id: str) -> Path:
    """Resumable state lies beside the checkpoint folder: nothing in it is for readers."""
    return out.with_name(f"{out.name}.runs") / variant_id / "state.pt"


def _run_record(config: RunConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def _is_trained(config: RunConfig, out: Path) -> bool:
    path = out / config.id / "config.json"
    if not path.is_file() or not (out / config.id / checkpoint.VARIANT).is_file():
        return False
    return json.loads(path.read_text(encoding="utf-8"))["run"] == _run_record(config)


def _is_exported(config: RunConfig, out: Path) -> bool:
    if not _is_trained(config, out) or not (out / checkpoint.MANIFEST).is_file():
        return False
    try:
        checkpoint.verify_files(out, checkpoint.read_manifest(out)[config.id])
    except CheckpointError as error:
        logger.info("%s: %s", config.id, error)
        return False
    return True


def _dense_base(config: RunConfig, out: Path) -> tuple[Variant, MeteredViT] | None:
    if config.base is None:
        return None
    variant = read_trained(out, config.base)
    return variant, checkpoint.load_model(out, variant)


def _train(
    config: RunConfig,
    data: Dataset,
    dense: tuple[Variant, MeteredViT] | None,
    device: torch.device,
    state_path: Path,
) -> tuple[PrunableViT, TrainResult, list[Tensor]]:
    """Train and compact; returns the compact model, the record, and the survivors of each site."""
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {
        "seed": config.seed,
        "device": device,
        "state_path": state_path,
        "title": config.id,
    }
    if dense is None or config.prune is None:
        model = create_dense(
            config.model, img_size=config.data.img_size, num_classes=len(data.classes)
        )
        result = train(
            model.to(device),
            data,
            config.train,
            mitigation=create_mitigation("none", {}),
            **options,
        )
    else:
        prune = config.prune
        mitigation = create_mitigation(prune.mitigation, prune.mitigation_options)
        start = copy.deepcopy(dense[1].model)
        model = with_merge(start, mitigation.merge()).requires_grad_(True).to(device)
        per_epoch = steps_per_epoch(len(data.train.names), config.train.batch_size)
        budget = Budget(
            macs=macs_of(model),
            dense_macs=dense[0].macs,
            macs_ratio=prune.macs_ratio,
            steps=removal_steps(
                per_epoch * config.train.total_epochs, prune.start, prune.end, prune.updates
            ),
        )
        pruner = PRUNERS[prune.pruner](model, budget, torch.Generator().manual_seed(config.seed))
        result = train(
            model,
            data,
            config.train,
            mitigation=mitigation,
            pruner=pruner,
            dense_macs=budget.dense_macs,
            **options,
        )
    kept = [units.cpu() for units in kept_units(result.model, result.keep)]
    return compact(result.model, result.keep), result, kept


def _write_trained(
    config: RunConfig,
    data: Dataset,
    dense: tuple[Variant, MeteredViT] | None,
    model: PrunableViT,
    result: TrainResult,
    kept: list[Tensor],
    out: Path,
    device: torch.device,
    command: str,
) -> Variant:
    """Round, calibrate, measure, and leave everything of stage `trained` in the variant's
    folder."""
    folder = out / config.id
    metered = MeteredViT(model, [torch.zeros(()) for _ in model.sites])
    round_to_half(metered)
    training = spread(data.train, config.calibration_images).images
    metered = MeteredViT(
        model, calibrate(model, (b.to(device).float() / 255 for b in training.split(64)))
    )
    metered = metered.to(device).eval().requires_grad_(False)
    logits = predict_logits(
        torch_predict(model, device), data.test.images, title=f"{config.id}: test"
    )
    metrics: dict[str, Any] = dict(evaluate(logits, data.test.targets))
    record = _run_record(config)
    files: dict[str, str | bytes] = {
        "model.safetensors": save(_stored_state(metered)),
        "config.json": json.dumps(
            {"run": record, "commit": source_commit(), "versions": library_versions()}, indent=1
        ),
        "history.jsonl": "".join(json.dumps(line) + "\n" for line in result.history),
    }
    if dense is not None:
        images = spread(data.test, config.measure_images).images
        report = measure_burden(dense[1].to(device).eval(), metered, kept, images)
        metrics |= mean_over_sites(report, dense[1].model, kept)
        files["burden.json"] = json.dumps(asdict(report), indent=1)
    for name, content in files.items():
        write_atomically(folder / name, content)
    variant = _describe(config, data, dense, model, kept, metrics, command, device)
    kinds = {"weights": "model.safetensors", "config": "config.json", "history": "history.jsonl"}
    if dense is not None:
        kinds["burden"] = "burden.json"
    variant = replace(
        variant, files={kind: file_entry(out, folder / name) for kind, name in kinds.items()}
    )
    _write_entry(out, variant)
    return variant


def _stored_state(metered: MeteredViT) -> dict[str, Tensor]:
    """Parameters in half precision (they are rounded already), buffers as they are."""
    parameters = {name for name, _ in metered.named_parameters()}
    return {
        name: (tensor.half() if name in parameters else tensor).cpu().contiguous()
        for name, tensor in metered.state_dict().items()
    }


def _describe(
    config: RunConfig,
    data: Dataset,
    dense: tuple[Variant, MeteredViT] | None,
    model: PrunableViT,
    kept: Sequence[Tensor],
    metrics: dict[str, Any],
    command: str,
    device: torch.device,
) -> Variant:
    macs = macs_of(model).total([site.num_units for site in model.sites])
    totals = [site.num_units for site in (dense[1].model if dense else model).sites]
    sites = tuple(
        SiteEntry(name=site.name, kind=site.kind, total=total, kept=tuple(units.tolist()))
        for site, total, units in zip(model.sites, totals, kept, strict=True)
    )
    return Variant(
        id=config.id,
        dataset=data.name,
        base=config.base,
        arch=model.arch,
        merge=model.merge,
        pruner=config.prune.pruner if config.prune else None,
        mitigation=config.prune.mitigation if config.prune else None,
        img_size=model.img_size,
        patch_size=model.patch_size,
        grid=model.grid,
        classes=data.classes,
        preprocessing=Preprocessing(crop_pct=config.data.crop_pct),
        num_params=sum(p.numel() for p in model.parameters()),
        macs=macs,
        macs_ratio=macs / (dense[0].macs if dense else macs),
        sites=sites,
        metrics=metrics,
        files={},
        provenance=Provenance(
            command=command,
            seed=config.seed,
            commit=source_commit(),
            versions=library_versions(),
            device=device_name(device),
        ),
    )


def _write_entry(out: Path, variant: Variant) -> None:
    entry = json.dumps(checkpoint.variant_to_json(variant), indent=1) + "\n"
    write_atomically(out / variant.id / checkpoint.VARIANT, entry)
