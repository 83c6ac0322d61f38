"""The folder of one variant: its entry, its record of the run, its model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nbcore.burden import MeteredViT
from nbcore.checkpoint.entry import to_json, variant_from_json, variant_to_json
from nbcore.checkpoint.files import resolve, verify_files, write_atomically
from nbcore.checkpoint.schema import TRAINED_FILES, CheckpointError, Variant
from nbcore.vit import build_model

VARIANT = "variant.json"


def read_trained(folder: Path, variant_id: str) -> Variant:
    """The entry of a variant that was trained, exported or not.

    Raises:
        CheckpointError: If there is none.
    """
    path = folder / variant_id / VARIANT
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in folder.glob(f"*/{VARIANT}"))) or "none"
        raise CheckpointError(f"no trained variant {variant_id!r} in {folder}; available: {known}")
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"variant {variant_id}: {path} is not valid JSON: {error}") from error
    return variant_from_json(entry)


def write_entry(folder: Path, variant: Variant) -> None:
    """Write a variant's own `variant.json`, which `add` and `export` read elsewhere."""
    write_atomically(folder / variant.id / VARIANT, to_json(variant_to_json(variant)))


def verify_trained(folder: Path, variant: Variant) -> None:
    """Re-hash what training left; what is derived from it can be made again.

    Raises:
        CheckpointError: As `verify_files`.
    """
    files = {k: entry for k, entry in variant.files.items() if k not in ("onnx", "burden")}
    verify_files(folder, replace(variant, files=files), TRAINED_FILES)


def recorded_run(folder: Path, variant_id: str) -> dict[str, Any]:
    """What `config.json` of a variant's folder says; empty where there is none to be read."""
    try:
        record = json.loads((folder / variant_id / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def check_base(folder: Path, variant: Variant, base: Variant) -> None:
    """Make sure that a pruned variant descends from this very dense base.

    Raises:
        CheckpointError: If its units are counted from another model, or its `config.json` names
            other weights.
    """
    mine, theirs = [s.total for s in variant.sites], [len(s.kept) for s in base.sites]
    recorded = recorded_run(folder, variant.id).get("base_sha256")
    found = base.files["weights"].sha256 if "weights" in base.files else None
    if mine != theirs or (recorded is not None and recorded != found):
        raise CheckpointError(
            f"variant {variant.id} was pruned from another {base.id} than the one given; "
            "bring that one or run the recipe again"
        )


def check_recorded_base(folder: Path, variant: Variant) -> None:
    """`check_base` against the base in the same folder, where there is one."""
    if variant.base is not None and (folder / variant.base / VARIANT).is_file():
        check_base(folder, variant, read_trained(folder, variant.base))


def store_weights(metered: MeteredViT) -> bytes:
    """The content of `model.safetensors`: parameters in half precision, to which they are rounded
    already, and buffers as they are."""
    parameters = {name for name, _ in metered.named_parameters()}
    return save(
        {
            name: (tensor.half() if name in parameters else tensor).cpu().contiguous()
            for name, tensor in metered.state_dict().items()
        }
    )


def load_weights(folder: Path, variant: Variant) -> dict[str, Tensor]:
    """Tensors of `model.safetensors` in single precision, as `MeteredViT.load_state_dict` takes
    them."""
    path = resolve(folder, variant.id, variant.files["weights"])
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"variant {variant.id}: {path.name} is unreadable: {error}"
        ) from error
    return {k: v.float() for k, v in state.items()}


def load_model(folder: Path, variant: Variant) -> MeteredViT:
    """Rebuild a variant in torch with its weights and calibration means, in evaluation mode on the
    CPU.

    Raises:
        CheckpointError: If the architecture of the manifest cannot be built, or the weights do not
            fit it.
    """
    try:
        model = build_model(variant.arch, variant.merge)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"variant {variant.id}: the manifest's arch cannot be built: {error}"
        ) from error
    shapes = [
        (site.num_units, variant.arch.head_dim) if site.kind == "heads" else (site.num_units,)
        for site in model.sites
    ]
    metered = MeteredViT(model, [torch.zeros(shape) for shape in shapes])
    try:
        metered.load_state_dict(load_weights(folder, variant))
    except RuntimeError as error:
        raise CheckpointError(
            f"variant {variant.id}: weights do not fit the manifest's arch: {error}"
        ) from error
    return metered.eval().requires_grad_(False)
