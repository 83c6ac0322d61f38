"""Checks what a checkpoint folder promises: hashes, sizes, contract, parity, accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nbcore import checkpoint
from nbcore.answers import FOLDER, read_answers, stale
from nbcore.checkpoint import CheckpointError, Manifest, Variant
from nbcore.complete import load_for, onnx_accuracy
from nbcore.data import load_dataset, spread
from nbcore.export import GROUP_OUTPUT, INPUTS, OUTPUTS, open_session
from nbcore.parity import PARITY_IMAGES, ExportError, compare

if TYPE_CHECKING:
    import onnxruntime

QUICK_IMAGES = 10
SHIPPED_BYTES = 120_000_000
"""Within which this project ships. Variants of one's own may go beyond it."""
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
            yield from verify_variant(folder, variant, data_dir=data_dir, accuracy=accuracy)
        except (CheckpointError, ExportError) as error:
            yield Finding(variant=variant.id, ok=False, text=str(error))
    if not only:
        yield from _flips(folder, manifest)


def _flips(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """Whether answers on test photos are those of the manifest's variants."""
    for path in sorted((folder / FOLDER).glob("*.npz")):
        name = f"{FOLDER}/{path.name}"
        try:
            answers = read_answers(path)
        except CheckpointError as error:
            yield Finding(variant=name, ok=False, text=str(error))
            continue
        reasons = stale(answers, manifest)
        for reason in reasons.values():
            yield Finding(variant=name, ok=False, text=reason)
        if not reasons:
            count = f"{len(answers.answers)} variants on {len(answers.names)} photos"
            yield Finding(variant=name, ok=True, text=f"answers of {count} are up to date")


def _total_size(folder: Path) -> Finding:
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    more = total > SHIPPED_BYTES
    beyond = f", more than the {SHIPPED_BYTES / 1e6:.0f} MB that this project ships" if more else ""
    return Finding(variant="manifest", ok=True, text=f"{total / 1e6:.1f} MB in all{beyond}")


def verify_variant(
    folder: Path, variant: Variant, *, data_dir: Path | None = None, accuracy: bool = False
) -> Iterator[Finding]:
    """Check one variant; arguments as for `verify`.

    Raises:
        CheckpointError, ExportError: At the first promise after which others cannot be checked.
    """

    def finding(text: str, ok: bool = True) -> Finding:
        return Finding(variant=variant.id, ok=ok, text=text)

    checkpoint.verify_files(folder, variant)
    if checkpoint.read_trained(folder, variant.id) != variant:
        raise CheckpointError(f"variant {variant.id}: variant.json and the manifest disagree")
    checkpoint.check_recorded_base(folder, variant)
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
    parity.check(f"variant {variant.id}", f"re-run `python -m nbcore export {variant.id}`")
    ties = "" if parity.tie_share is None else f", {parity.tie_share:.1%} matched differently"
    yield finding(
        f"ONNX = torch on {parity.images} images: logits {parity.logits:.1e}, loads "
        f"{parity.loads:.1e}, single loads {parity.loads_largest:.1e}{ties}"
    )
    if accuracy:
        found = onnx_accuracy(path, load_for(folder, variant, data_dir).test, title=variant.id)
        yield finding(*_compare_metrics(found, variant.metrics))


def _compare_metrics(found: Mapping[str, Any], stated: Mapping[str, Any]) -> tuple[str, bool]:
    """What was measured again, in words, and whether it is what the manifest says."""
    limits = {"top1": TOP1_TOLERANCE, "loss": LOSS_TOLERANCE, "num_images": 0}

    def said(metrics: Mapping[str, Any]) -> str:
        top1, loss, count = (metrics.get(name, math.nan) for name in limits)
        return f"top-1 {top1:.4f}, loss {loss:.4f} on {count} images"

    same = all(
        name in stated and abs(found[name] - stated[name]) <= limit
        for name, limit in limits.items()
    )
    return f"{said(found)}, manifest says {said(stated)}", same


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
    units, side, patches = variant.num_units, variant.img_size, variant.grid[0] * variant.grid[1]
    given = [*session.get_inputs(), *session.get_overridable_initializers()]
    inputs = {i.name: (i.type, i.shape[1:]) for i in given}
    shapes = ([3, side, side], [units], [units])
    outputs = [len(variant.classes)], [units], [len(variant.sites), patches], [len(variant.sites)]
    wanted = dict(zip(OUTPUTS, outputs, strict=True))
    if variant.merge is not None:
        wanted[GROUP_OUTPUT] = [patches]
    metadata = session.get_modelmeta().custom_metadata_map
    parts: tuple[tuple[str, object, object], ...] = (
        ("inputs", inputs, {n: ("tensor(float)", s) for n, s in zip(INPUTS, shapes, strict=True)}),
        ("outputs", {o.name: o.shape[1:] for o in session.get_outputs()}, wanted),
        ("variant", metadata.get("variant"), variant.id),
        ("num_units", metadata.get("num_units"), json.dumps(units)),
        ("grid", metadata.get("grid"), json.dumps(variant.grid)),
        ("site_names", metadata.get("site_names"), json.dumps([s.name for s in variant.sites])),
        (
            "site_sizes",
            metadata.get("site_sizes"),
            json.dumps([len(s.kept) for s in variant.sites]),
        ),
    )
    for what, found, right in parts:
        if found != right:
            raise CheckpointError(
                f"variant {variant.id}: {what} of model.onnx is {found}, the contract says "
                f"{right}; re-run `python -m nbcore export {variant.id}`"
            )
