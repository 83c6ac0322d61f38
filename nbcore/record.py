"""Stage `trained`: round, calibrate and measure a fitted model, and write its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcore import checkpoint
from nbcore.burden import MeteredViT, calibrate
from nbcore.checkpoint import Preprocessing, Provenance, SiteEntry, Variant
from nbcore.config import RunConfig
from nbcore.data import Dataset, spread
from nbcore.evaluate import evaluate, predict_logits, torch_predict
from nbcore.export import round_to_half
from nbcore.fit import Base, Fitted
from nbcore.macs import macs_of
from nbcore.measure import mean_over_sites, measure_burden
from nbcore.preprocessing import as_input
from nbcore.provenance import device_name, library_versions, source_commit
from nbcore.stages import run_record
from nbcore.vit import PrunableViT

NAMES = {
    "weights": "model.safetensors",
    "config": "config.json",
    "history": "history.jsonl",
    "burden": "burden.json",
}


def record(
    config: RunConfig,
    data: Dataset,
    base: Base | None,
    fitted: Fitted,
    out: Path,
    device: torch.device,
    *,
    command: str,
) -> Variant:
    """Leave everything of stage `trained` in a variant's folder; returns its entry.

    Weights are rounded before the means and every metric are computed, so that what is measured is
    what is stored.

    Args:
        config: The run.
        data: Its data set.
        base: What a pruned run forked from, None for a dense run.
        fitted: What the training left; its model is rounded in place.
        out: Checkpoint folder.
        device: Where to measure.
        command: The command line that reproduces the run.
    """
    images = spread(data.train, config.calibration_images).images
    metered = _round_and_calibrate(fitted.model, images, device)
    logits = predict_logits(
        torch_predict(metered.model, device), data.test.images, title=f"{config.id}: test"
    )
    metrics: dict[str, Any] = dict(evaluate(logits, data.test.targets))
    contents: dict[str, str | bytes] = {
        "weights": checkpoint.store_weights(metered),
        "config": json.dumps(_run(config, base), indent=1),
        "history": "".join(json.dumps(line) + "\n" for line in fitted.result.history),
    }
    if base is not None:
        dense = base.metered.to(device).eval()
        photos = spread(data.test, config.measure_images).images
        report = measure_burden(dense, metered, fitted.kept, photos)
        metrics |= mean_over_sites(report, dense.model, fitted.kept)
        contents["burden"] = checkpoint.to_json(asdict(report))
    provenance = Provenance(
        command=command,
        seed=config.seed,
        commit=source_commit(),
        versions=library_versions(),
        device=device_name(device),
    )
    return _write(out, _describe(config, data, base, fitted, metrics, provenance), contents)


def _round_and_calibrate(model: PrunableViT, images: Tensor, device: torch.device) -> MeteredViT:
    round_to_half(model)
    batches = (as_input(batch.to(device)) for batch in images.split(64))
    metered = MeteredViT(model, calibrate(model, batches))
    return metered.to(device).eval().requires_grad_(False)


def _run(config: RunConfig, base: Base | None) -> dict[str, Any]:
    """What `config.json` says, by which a run is known again."""
    return {
        "run": run_record(config),
        "base_sha256": base.variant.files["weights"].sha256 if base else None,
        "commit": source_commit(),
        "versions": library_versions(),
    }


def _write(out: Path, variant: Variant, contents: dict[str, str | bytes]) -> Variant:
    """Write files by kind, then the entry that names them.

    Who is stopped here leaves no entry that names files of two runs: the old one goes first, the
    new one comes last.
    """
    folder = out / variant.id
    checkpoint.withdraw_variant(out, variant.id)
    (folder / checkpoint.VARIANT).unlink(missing_ok=True)
    for kind, content in contents.items():
        checkpoint.write_atomically(folder / NAMES[kind], content)
    files = {kind: checkpoint.file_entry(out, folder / NAMES[kind]) for kind in contents}
    variant = replace(variant, files=files)
    checkpoint.write_entry(out, variant)
    return variant


def _describe(
    config: RunConfig,
    data: Dataset,
    base: Base | None,
    fitted: Fitted,
    metrics: dict[str, Any],
    provenance: Provenance,
) -> Variant:
    model = fitted.model
    macs = macs_of(model).total([site.num_units for site in model.sites])
    totals = [site.num_units for site in (base.metered.model if base else model).sites]
    sites = tuple(
        SiteEntry(name=site.name, kind=site.kind, total=total, kept=tuple(units.tolist()))
        for site, total, units in zip(model.sites, totals, fitted.kept, strict=True)
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
        macs_ratio=macs / (base.variant.macs if base else macs),
        sites=sites,
        metrics=metrics,
        files={},
        provenance=provenance,
    )
