"""What can be made again from a trained variant: its graph with the metrics measured through it,
and its burden."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nbcore import checkpoint
from nbcore.burden import BurdenReport
from nbcore.checkpoint import CheckpointError, ExportRecord, Variant, file_entry
from nbcore.data import Dataset, Split, load_dataset, spread
from nbcore.evaluate import evaluate, predict_logits
from nbcore.export import export, open_session
from nbcore.measure import mean_over_sites, measure_burden
from nbcore.parity import PARITY_IMAGES
from nbcore.preprocessing import as_input
from nbcore.provenance import device_name, library_versions, source_commit


def export_variant(variant_id: str, out: Path, data: Dataset) -> Variant:
    """Complete a trained variant: ONNX graph, parity, accuracy through ONNX Runtime, manifest
    entry.

    Args:
        variant_id: Folder below `out` that holds `variant.json`.
        out: Checkpoint folder.
        data: The variant's data set, at its image size.

    Raises:
        CheckpointError: If what training left is damaged or its dense base was replaced.
        ExportError: If graph and model differ; the variant stays as it was.
    """
    variant = checkpoint.read_trained(out, variant_id)
    checkpoint.verify_trained(out, variant)
    checkpoint.check_recorded_base(out, variant)
    path = out / variant_id / "model.onnx"
    metered = checkpoint.load_model(out, variant)
    with checkpoint.withdrawn(out, variant_id) as position:
        parity = export(metered, path, spread(data.test, PARITY_IMAGES).images, name=variant_id)
        metrics: dict[str, Any] = {
            "parity_logits": parity.logits,
            "parity_loads": parity.loads,
            "parity_loads_largest": parity.loads_largest,
            "parity_images": parity.images,
        }
        if parity.tie_share is not None:
            metrics["tie_share"] = parity.tie_share
        metrics |= onnx_accuracy(path, data.test, title=f"{variant_id}: test through ONNX Runtime")
        variant = checkpoint.with_files(variant, {"onnx": file_entry(out, path)}, metrics)
        variant = replace(
            variant, provenance=replace(variant.provenance, export=_export_record(variant_id))
        )
        checkpoint.write_entry(out, variant)
        checkpoint.register_variant(out, variant, position)
    return variant


def _export_record(variant_id: str) -> ExportRecord:
    return ExportRecord(
        command=f"python -m nbcore export {variant_id} --data DIR",
        commit=source_commit(),
        versions=library_versions(),
        device=device_name(torch.device("cpu")),
    )


def measure_variant(
    variant_id: str, out: Path, data: Dataset, *, num_images: int = 1024
) -> BurdenReport:
    """Measure the burden of a pruned variant again and record it.

    Raises:
        CheckpointError: If the variant is dense: it has no past to be compared with.
    """
    variant = checkpoint.read_trained(out, variant_id)
    if variant.base is None:
        raise CheckpointError(
            f"{variant_id} is dense; burden compares a pruned variant with its dense base"
        )
    base = checkpoint.read_trained(out, variant.base)
    checkpoint.check_base(out, variant, base)
    for one in (base, variant):
        checkpoint.verify_trained(out, one)
    dense = checkpoint.load_model(out, base)
    kept = [torch.tensor(site.kept) for site in variant.sites]
    images = spread(data.test, num_images).images
    report = measure_burden(dense, checkpoint.load_model(out, variant), kept, images)
    path = out / variant_id / "burden.json"
    means = mean_over_sites(report, dense.model, kept)
    with checkpoint.withdrawn(out, variant_id) as position:
        checkpoint.write_atomically(path, checkpoint.to_json(asdict(report)))
        variant = checkpoint.with_files(variant, {"burden": file_entry(out, path)}, means)
        checkpoint.write_entry(out, variant)
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
