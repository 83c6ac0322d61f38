"""The whole story of one variant: data, train, prune, measure, compact, export, register.

A run has two stages. `trained` leaves weights, history and measurements; `exported` adds the ONNX
graph and what is measured through it, and only then does the manifest name the variant. A host
without onnxruntime stops after the first; `export_variant` completes it anywhere.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from nbcore import checkpoint
from nbcore.burden import BurdenReport, MeteredViT, calibrate
from nbcore.checkpoint import (
    TRAINED_FILES,
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
from nbcore.mitigation import Mitigation, create_mitigation
from nbcore.mitigation.distillation import Distillation
from nbcore.provenance import device_name, library_versions, source_commit
from nbcore.pruning import PRUNERS, plan_budget
from nbcore.teacher import train_teacher
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

    Raises:
        CheckpointError: If files of this variant or its base are damaged, or training would
            replace a dense base under the variants that were pruned from it.
        ValueError: If the host removes no units, so that there is no smaller model to export.
    """
    if config.prune is not None and not PRUNERS[config.prune.pruner].compacts:
        raise ValueError(
            f"{config.id}: host {config.prune.pruner!r} sets single weights to zero and removes no "
            "unit, so there is nothing to compact and nothing gets faster; it runs in studies only "
            "(`python -m nbcore study`)"
        )
    if _is_exported(config, out):
        logger.info("%s: already exported", config.id)
        return "exported"
    trained = _is_trained(config, out)
    if not trained:
        _refuse_to_orphan(config.id, out)
    data = _load(config, data_dir)
    if not trained:
        dense = _dense_base(config, out)
        state_path = _state_path(config, out)
        model, result, kept = _train(config, data, dense, device, state_path)
        variant = _write_trained(config, data, dense, model, result, kept, out, device, command)
        shutil.rmtree(state_path.parent, ignore_errors=True)
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

    Raises:
        CheckpointError: If what training left is damaged or its dense base was replaced.
    """
    variant = read_trained(out, variant_id)
    _verify_trained(out, variant)
    if variant.base is not None and (out / variant.base / checkpoint.VARIANT).is_file():
        checkpoint.check_base(out, variant, read_trained(out, variant.base))
    path = out / variant_id / "model.onnx"
    metered = checkpoint.load_model(out, variant)
    with _withdrawn(out, variant_id) as position:
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
        checkpoint.register_variant(out, variant, position)
    return variant


@contextlib.contextmanager
def _withdrawn(out: Path, variant_id: str) -> Iterator[int | None]:
    """Keep a variant out of the manifest while its files change; gives the place it had.

    If the change fails before a file was touched, the old entry comes back.
    """
    old = checkpoint.withdraw_variant(out, variant_id)
    try:
        yield old[0] if old else None
    except BaseException:
        if old:
            with contextlib.suppress(CheckpointError):
                checkpoint.register_variant(out, old[1], old[0])
        raise


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
    base = read_trained(out, variant.base)
    checkpoint.check_base(out, variant, base)
    for one in (base, variant):
        _verify_trained(out, one)
    dense = checkpoint.load_model(out, base)
    kept = [torch.tensor(site.kept) for site in variant.sites]
    images = spread(data.test, num_images).images
    report = measure_burden(dense, checkpoint.load_model(out, variant), kept, images)
    path = out / variant_id / "burden.json"
    means = mean_over_sites(report, dense.model, kept)
    with _withdrawn(out, variant_id) as position:
        write_atomically(path, checkpoint.to_json(asdict(report)))
        variant = checkpoint.with_files(variant, {"burden": file_entry(out, path)}, means)
        _write_entry(out, variant)
        if "onnx" in variant.files:
            checkpoint.register_variant(out, variant, position)
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
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"variant {variant_id}: {path} is not valid JSON: {error}") from error
    return checkpoint.variant_from_json(entry)


def _verify_trained(out: Path, variant: Variant) -> None:
    """Re-hash what training left; what is derived from it can be made again."""
    files = {k: entry for k, entry in variant.files.items() if k not in ("onnx", "burden")}
    checkpoint.verify_files(out, replace(variant, files=files), TRAINED_FILES)


def load_for(out: Path, variant: Variant, data_dir: Path | None) -> Dataset:
    """The data set of a variant, cut and split as in its training.

    Raises:
        CheckpointError: If its `config.json` does not say how it was split.
    """
    try:
        share = checkpoint.recorded_run(out, variant.id)["run"]["data"]["validation_share"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"variant {variant.id}: config.json does not tell the validation share it was trained "
            "with; restore the file"
        ) from error
    return load_dataset(
        variant.dataset,
        data_dir,
        img_size=variant.img_size,
        crop_pct=variant.preprocessing.crop_pct,
        validation_share=share,
    )


def _load(config: RunConfig, data_dir: Path | None) -> Dataset:
    return load_dataset(
        config.data.dataset,
        data_dir,
        img_size=config.data.img_size,
        crop_pct=config.data.crop_pct,
        validation_share=config.data.validation_share,
    )


def _state_path(config: RunConfig, out: Path) -> Path:
    """Resumable state lies beside the checkpoint folder: nothing in it is for readers.

    Its name depends on all that decides the run, so that a changed run does not go on from it.
    """
    run = json.dumps([_run_record(config), _base_sha256(config, out)], sort_keys=True)
    name = f"{hashlib.sha256(run.encode()).hexdigest()[:16]}.pt"
    out = out.absolute()
    return out.with_name(f"{out.name}.runs") / config.id / name


def _run_record(config: RunConfig) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def _base_sha256(config: RunConfig, out: Path) -> str | None:
    """Hash of the weights that a pruned run forks from."""
    return read_trained(out, config.base).files["weights"].sha256 if config.base else None


def _is_trained(config: RunConfig, out: Path) -> bool:
    """Whether this very run, forked from this very base, has left its files."""
    record = checkpoint.recorded_run(out, config.id)
    if record.get("run") != _run_record(config):
        return False
    if not (out / config.id / checkpoint.VARIANT).is_file():
        return False
    # Records of earlier versions do not name the base's weights.
    return "base_sha256" not in record or record["base_sha256"] == _base_sha256(config, out)


def _refuse_to_orphan(variant_id: str, out: Path) -> None:
    """Raise CheckpointError if other variants of the manifest were pruned from this one."""
    if not (out / checkpoint.MANIFEST).exists():
        return
    children = [v.id for v in checkpoint.read_manifest(out).variants if v.base == variant_id]
    if children:
        raise CheckpointError(
            f"{out / variant_id} does not hold what this run would train (another seed, recipe or "
            f"starting weights, or files are missing), and training it again would replace the "
            f"dense base of {', '.join(children)}; give another --out, or restore the files"
        )


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
    _verify_trained(out, variant)
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
            mitigation=_teaching(config, data, device, state_path),
            **options,
        )
    else:
        prune = config.prune
        mitigation = create_mitigation(prune.mitigation, prune.mitigation_options)
        start = copy.deepcopy(dense[1].model)
        model = with_merge(start, mitigation.merge()).requires_grad_(True).to(device)
        per_epoch = steps_per_epoch(len(data.train.names), config.train.batch_size)
        budget = plan_budget(
            macs_of(model),
            dense_macs=dense[0].macs,
            macs_ratio=prune.macs_ratio,
            total_steps=per_epoch * config.train.total_epochs,
            start=prune.start,
            end=prune.end,
            updates=prune.updates,
            freeze=prune.freeze,
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


def _teaching(
    config: RunConfig, data: Dataset, device: torch.device, state_path: Path
) -> Mitigation:
    """What a dense model learns from beside the labels: its teacher's answers, or nothing."""
    if config.teacher is None:
        return create_mitigation("none", {})
    teacher = train_teacher(
        config.teacher,
        data,
        seed=config.seed,
        device=device,
        state_path=state_path.with_name(f"teacher-{state_path.name}"),
        title=f"{config.id}: teacher {config.teacher.name}",
    )
    return Distillation(
        teacher=teacher, weight=config.teacher.weight, temperature=config.teacher.temperature
    )


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
    record = {
        "run": _run_record(config),
        "base_sha256": dense[0].files["weights"].sha256 if dense else None,
        "commit": source_commit(),
        "versions": library_versions(),
    }
    files: dict[str, str | bytes] = {
        "model.safetensors": save(_stored_state(metered)),
        "config.json": json.dumps(record, indent=1),
        "history.jsonl": "".join(json.dumps(line) + "\n" for line in result.history),
    }
    if dense is not None:
        images = spread(data.test, config.measure_images).images
        report = measure_burden(dense[1].to(device).eval(), metered, kept, images)
        metrics |= mean_over_sites(report, dense[1].model, kept)
        files["burden.json"] = checkpoint.to_json(asdict(report))
    # Whoever stops here leaves no entry that names files of two runs; `variant.json` comes last.
    checkpoint.withdraw_variant(out, config.id)
    (folder / checkpoint.VARIANT).unlink(missing_ok=True)
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
    entry = checkpoint.to_json(checkpoint.variant_to_json(variant))
    write_atomically(out / variant.id / checkpoint.VARIANT, entry)
