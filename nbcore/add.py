"""Take in a variant that was trained elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from nbcore import checkpoint
from nbcore.checkpoint import CheckpointError, Variant
from nbcore.verify import verify_variant


def add_variant(source: Path, folder: Path, data_dir: Path | None) -> Variant:
    """Take a variant folder into a checkpoint folder after checking it.

    Args:
        source: Folder with `variant.json` and the files it names, as `run` left it.
        folder: Checkpoint folder; its manifest gets the new entry.
        data_dir: Prepared photos for the parity check; generated pictures without.

    Raises:
        CheckpointError: If the variant is incomplete, damaged, or its dense base is not there.
        ExportError: If its graph and its weights differ.
    """
    source, folder = source.resolve(), folder.resolve()
    if source.parent == folder:
        raise CheckpointError(f"{source} lies in {folder} already; complete it with `export`")
    variant = checkpoint.read_trained(source.parent, source.name)
    if variant.id != source.name:
        raise CheckpointError(f"{source} holds variant {variant.id}; name the folder like it")
    if (folder / variant.id).exists():
        raise CheckpointError(
            f"{folder} has a {variant.id} already; remove one of them, or train under another "
            "name: an id tells recipe, host, budget and mitigation"
        )
    _check_entries(folder, source, variant)
    for finding in verify_variant(source.parent, variant, data_dir=data_dir):
        if not finding.ok:
            raise CheckpointError(f"variant {variant.id}: {finding.text}")
    staging = folder / f".{variant.id}.part"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for entry in variant.files.values():
            shutil.copy2(checkpoint.resolve(source.parent, variant.id, entry), staging)
        shutil.copy2(source / checkpoint.VARIANT, staging)
        staging.replace(folder / variant.id)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    try:
        checkpoint.register_variant(folder, variant)
    except BaseException:
        shutil.rmtree(folder / variant.id)
        raise
    return variant


def _check_entries(folder: Path, source: Path, variant: Variant) -> None:
    """Raise CheckpointError if a folder cannot take a variant in, whatever its files hold."""
    own = {f"{variant.id}/{Path(entry.path).name}" for entry in variant.files.values()}
    if {entry.path for entry in variant.files.values()} != own:
        raise CheckpointError(
            f"variant {variant.id} names files outside of its folder: "
            f"{sorted(entry.path for entry in variant.files.values())}"
        )
    exists = (folder / checkpoint.MANIFEST).exists()
    known = {v.id: v for v in checkpoint.read_manifest(folder).variants} if exists else {}
    if variant.id in known:
        raise CheckpointError(f"{folder} has a variant {variant.id} already; remove or rename it")
    if variant.base is not None:
        if variant.base not in known:
            raise CheckpointError(f"variant {variant.id} needs its base; add {variant.base} first")
        checkpoint.check_base(source.parent, variant, known[variant.base])
