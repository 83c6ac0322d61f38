"""Checks what a checkpoint folder promises: hashes, sizes, contract, parity, accuracy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nbcore import checkpoint
from nbcore.checkpoint import CheckpointError, Variant
from nbcore.data import load_dataset
from nbcore.export import GROUP_OUTPUT, INPUTS, OUTPUTS, ExportError, compare, open_session
from nbcore.pipeline import PARITY_IMAGES, load_for, onnx_accuracy, read_trained, spread

if TYPE_CHECKING:
    import onnxruntime

QUICK_IMAGES = 10
MAX_TOTAL_BYTES = 120_000_000
TOP1_TOLERANCE = 1e-3
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One checked promise."""

    variant: str
    ok: bool
    text: str


def verify(
    folder: Path,
    *,
    only: Sequence[str] = (),
    data_dir: Path | None = None,
    accuracy: bool = False,
) -> Iterator[Finding]:
    """Check a checkpoint folder; every promise is one finding.

    Args:
        folder: Holds `manifest.json`.
        only: Ids of the variants to check; empty means all.
        data_dir: Prepared photos: parity is then measured on 256 test photos per variant instead of
            ten generated pictures.
        accuracy: Also measure the test metrics again through ONNX Runtime; needs `data_dir`, except
            for generated data.

    Raises:
        CheckpointError: If the manifest itself cannot be read, or does not name a variant of
            `only`.
        ValueError: If accuracy is asked for without photos.
    """
    manifest = checkpoint.read_manifest(folder)
    chosen = [manifest[name] for name in only if name not in manifest.refused]
    for name, reason in manifest.refused.items():
        yield Finding(variant=name, ok=False, text=reason)
    if not manifest.variants:
        yield Finding(variant="manifest", ok=False, text="names no readable variant")
    yield _total_size(folder)
    for variant in chosen if only else manifest.variants:
        try:
            yield from _verify_variant(folder, variant, data_dir, accuracy)
        except (CheckpointError, ExportError) as error:
            yield Finding(variant=variant.id, ok=False, text=str(error))


def _total_size(folder: Path) -> Finding:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    text = f"{total / 1e6:.1f} MB in all, at most {MAX_TOTAL_BYTES / 1e6:.0f} MB"
    return Finding(variant="manifest", ok=total <= MAX_TOTAL_BYTES, text=text)


def _verify_variant(
    folder: Path, variant: Variant, data_dir: Path | None, accuracy: bool
) -> Iterator[Finding]:
    def finding(text: str, ok: bool = True) -> Finding:
        return Finding(variant=variant.id, ok=ok, text=text)

    checkpoint.verify_files(folder, variant)
    if read_trained(folder, variant.id) != variant:
        raise CheckpointError(f"variant {variant.id}: variant.json and the manifest disagree")
    _check_descent(folder, variant)
    yield finding(f"{len(variant.files)} files have their hashes")
    big = [e.path for e in variant.files.values() if e.size_bytes > checkpoint.MAX_FILE_BYTES]
    if big:
        yield finding(f"{big} are above {checkpoint.MAX_FILE_BYTES / 1e6:.0f} MB", False)
    metered = checkpoint.load_model(folder, variant)
    path = checkpoint.resolve(folder, variant.id, variant.files["onnx"])
    session = _open(path, variant)
    check_contract(session, variant)
    yield finding("the graph keeps the contract")
    parity = compare(session, metered, _photos(folder, variant, data_dir))
    parity.check(variant.id)
    ties = "" if parity.tie_share is None else f", {parity.tie_share:.1%} matched differently"
    yield finding(
        f"ONNX = torch on {parity.images} images: logits {parity.logits:.1e}, "
        f"loads {parity.loads:.1e}{ties}"
    )
    if accuracy:
        found = onnx_accuracy(path, load_for(folder, variant, data_dir).test, title=variant.id)
        close = (
            abs(found["top1"] - variant.metrics["top1"]) <= TOP1_TOLERANCE
            and abs(found["loss"] - variant.metrics["loss"]) <= LOSS_TOLERANCE
            and found["num_images"] == variant.metrics["num_images"]
        )
        yield finding(
            f"top-1 {found['top1']:.4f} on {found['num_images']} images, "
            f"manifest says {variant.metrics['top1']:.4f}",
            close,
        )


def _check_descent(folder: Path, variant: Variant) -> None:
    if variant.base is not None and (folder / variant.base / checkpoint.VARIANT).is_file():
        checkpoint.check_base(folder, variant, read_trained(folder, variant.base))


def _open(path: Path, variant: Variant) -> onnxruntime.InferenceSession:
    try:
        return open_session(path)
    except RuntimeError:
        raise
    except Exception as error:  # ONNX Runtime's own errors share no base class.
        raise CheckpointError(
            f"variant {variant.id}: {path.name} does not load: {error}"
        ) from error


def _photos(folder: Path, variant: Variant, data_dir: Path | None) -> Tensor:
    """Test photos if there are any; otherwise generated shapes, which every machine has."""
    if data_dir is not None:
        return spread(load_for(folder, variant, data_dir).test, PARITY_IMAGES).images
    drawn = load_dataset("shapes", None, img_size=variant.img_size, n_train=64, n_test=QUICK_IMAGES)
    return drawn.test.images


def check_contract(session: onnxruntime.InferenceSession, variant: Variant) -> None:
    """Compare a graph's interface with what the manifest says.

    Raises:
        CheckpointError: If inputs, outputs, shapes or metadata differ from the contract.
    """

    def require(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise CheckpointError(
                f"variant {variant.id}: {what} of model.onnx is {found}, the contract says {wanted}"
            )

    units, side = variant.num_units, variant.img_size
    inputs = {i.name: (i.type, i.shape[1:]) for i in session.get_inputs()}
    inputs |= {i.name: (i.type, i.shape[1:]) for i in session.get_overridable_initializers()}
    outputs = {o.name: o.shape[1:] for o in session.get_outputs()}
    wanted = dict(
        zip(
            OUTPUTS,
            (
                [len(variant.classes)],
                [units],
                [len(variant.sites), variant.grid[0] * variant.grid[1]],
                [len(variant.sites)],
            ),
            strict=True,
        )
    )
    if variant.merge is not None:
        wanted[GROUP_OUTPUT] = [variant.grid[0] * variant.grid[1]]
    require(
        "inputs",
        inputs,
        dict(
            zip(
                INPUTS,
                (
                    ("tensor(float)", [3, side, side]),
                    ("tensor(float)", [units]),
                    ("tensor(float)", [units]),
                ),
                strict=True,
            )
        ),
    )
    require("outputs", outputs, wanted)
    metadata = session.get_modelmeta().custom_metadata_map
    require("variant", metadata.get("variant"), variant.id)
    require("num_units", metadata.get("num_units"), str(units))
    require("grid", json.loads(metadata.get("grid", "null")), list(variant.grid))
    sizes = [len(site.kept) for site in variant.sites]
    require("site_sizes", json.loads(metadata.get("site_sizes", "null")), sizes)


def add_variant(source: Path, folder: Path, data_dir: Path | None) -> Variant:
    """Take a variant folder into a checkpoint folder after checking it.

    Args:
        source: Folder with `variant.json` and the files it names, as `run` left it.
        folder: Checkpoint folder; its manifest gets the new entry.
        data_dir: Prepared photos for the parity check; generated pictures without.

    Raises:
        CheckpointError: If the variant is incomplete, damaged, or its dense base is not there.
    """
    source, folder = source.resolve(), folder.resolve()
    if source.parent == folder:
        raise CheckpointError(f"{source} lies in {folder} already; complete it with `export`")
    variant = read_trained(source.parent, source.name)
    if variant.id != source.name:
        raise CheckpointError(f"{source} holds variant {variant.id}; name the folder like it")
    if (folder / variant.id).exists():
        raise CheckpointError(f"{folder} has a {variant.id} already; remove or rename one of them")
    _check_entries(folder, source, variant)
    for finding in _verify_variant(source.parent, variant, data_dir, accuracy=False):
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
    except CheckpointError:
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
