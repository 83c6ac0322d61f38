"""Manifest -> verified, lazily loaded, locked models."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from app.errors import UserError
from nbcore.checkpoint import (
    CheckpointError,
    Variant,
    load_model,
    read_manifest,
    resolve,
    sha256_of,
    verify_files,
)

if TYPE_CHECKING:
    from nbcore.burden import MeteredViT

logger = logging.getLogger(__name__)


class Model:
    """One verified variant; its torch twin is loaded at first use and lent to one thread."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        self.folder = folder
        self.variant = variant
        self._lock = threading.RLock()
        self._twin: MeteredViT | None = None

    @property
    def id(self) -> str:
        return self.variant.id

    def file(self, kind: str) -> Path:
        """Path of a file whose hash was checked again just now.

        Raises:
            UserError: If it changed since the start.
        """
        entry = self.variant.files[kind]
        path = resolve(self.folder, self.id, entry)
        if not path.is_file() or sha256_of(path) != entry.sha256:
            raise UserError(
                f"{self.id}: {path.name} changed on disk since the start; restart the app"
            )
        return path

    @contextmanager
    def twin(self, device: str = "cpu") -> Iterator[MeteredViT]:
        """The same weights in torch on a device, for this thread alone until the block ends.

        The lock is needed because Captum's methods may put hooks on the model, which other threads
        would run too.
        """
        with self._lock:
            if self._twin is None:
                self.file("weights")
                self._twin = load_model(self.folder, self.variant)
            if next(self._twin.parameters()).device.type != device:
                # Asking each layer takes a GPU's host as long as a prediction.
                self._twin.to(device)
            yield self._twin


class ModelRegistry:
    """The variants of a checkpoint folder that keep the contract, and why others don't."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest, re-hash all files and check all graphs.

        Args:
            folder: Holds `manifest.json`.

        Raises:
            CheckpointError: If the manifest is unreadable as a whole or leaves nothing to serve.
        """
        manifest = read_manifest(folder)
        self.folder = folder
        self._refused = dict(manifest.refused)
        self._models: dict[str, Model] = {}
        self._lock = threading.Lock()
        for variant in manifest.variants:
            try:
                verify_files(folder, variant)
                check_graph(resolve(folder, variant.id, variant.files["onnx"]), variant)
            except CheckpointError as error:
                self.refuse(variant.id, str(error))
            else:
                self._models[variant.id] = Model(folder, variant)
        if not self._models:
            reasons = "; ".join(self._refused.values()) or "it lists no variants"
            raise CheckpointError(f"nothing to serve from {folder}: {reasons}")

    @property
    def refused(self) -> dict[str, str]:
        """Reason by id."""
        with self._lock:
            return dict(self._refused)

    def refuse(self, variant_id: str, reason: str) -> None:
        """Stop serving a variant."""
        logger.warning("refused %s: %s", variant_id, reason)
        with self._lock:
            self._refused[variant_id] = reason
            self._models.pop(variant_id, None)

    def models(self) -> tuple[Model, ...]:
        """Served models in the order of the manifest."""
        with self._lock:
            return tuple(self._models.values())

    def __getitem__(self, variant_id: str) -> Model:
        with self._lock:
            if variant_id in self._models:
                return self._models[variant_id]
            if variant_id in self._refused:
                raise UserError(f"{variant_id} is not served: {self._refused[variant_id]}")
            available = ", ".join(self._models)
        raise UserError(f"unknown variant {variant_id!r}; available: {available}")

    def base_of(self, model: Model) -> Model | None:
        """The dense model a variant is held against, itself for a dense one; None if unusable."""
        return self._find_base(model)[0]

    def base_problem(self, model: Model) -> str | None:
        """Why `base_of` is None."""
        return self._find_base(model)[1]

    def _find_base(self, model: Model) -> tuple[Model | None, str | None]:
        variant = model.variant
        if variant.base is None:
            return model, None
        try:
            base = self[variant.base]
        except UserError as error:
            return None, f"its dense base cannot be used: {error}"
        for what in ("dataset", "classes", "img_size", "grid", "preprocessing"):
            if getattr(base.variant, what) != getattr(variant, what):
                return None, f"its dense base {base.id} has another {what}"
        if [(s.name, len(s.kept)) for s in base.variant.sites] != [
            (s.name, s.total) for s in variant.sites
        ]:
            return None, f"its dense base {base.id} has other sites or units than the manifest says"
        return base, None


def check_graph(path: Path, variant: Variant) -> None:
    """Hold an ONNX file against what the manifest says of it.

    Raises:
        CheckpointError: If inputs, outputs, their shapes or the metadata differ, or weights lie
            outside the file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise CheckpointError(
            f"variant {variant.id}: {path.name} is no ONNX file: {error}"
        ) from error
    graph = model.graph
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer):
        raise CheckpointError(
            f"variant {variant.id}: {path.name} keeps weights in other files; they must be inside"
        )
    units, sites, patches = variant.num_units, len(variant.sites), variant.grid[0] * variant.grid[1]
    side = variant.img_size
    inputs = {"image": [3, side, side], "unit_gate": [units], "unit_keep": [units]}
    outputs = {
        "logits": [len(variant.classes)],
        "unit_load": [units],
        "token_load": [sites, patches],
        "stream": [sites],
    } | ({} if variant.merge is None else {"token_group": [patches]})
    metadata = {p.key: p.value for p in model.metadata_props}
    defaults = {t.name for t in graph.initializer}
    found = [
        ("inputs", _shapes(graph.input), inputs),
        ("outputs", _shapes(graph.output), outputs),
        (
            "inputs with a default",
            sorted({"unit_gate", "unit_keep"} & defaults),
            ["unit_gate", "unit_keep"],
        ),
        ("num_units", _number(metadata.get("num_units")), units),
        ("site_sizes", _number(metadata.get("site_sizes")), [len(s.kept) for s in variant.sites]),
        ("site_names", _number(metadata.get("site_names")), [s.name for s in variant.sites]),
        ("grid", _number(metadata.get("grid")), list(variant.grid)),
    ]
    for what, has, wanted in found:
        if has != wanted:
            raise CheckpointError(
                f"variant {variant.id}: {path.name} breaks the contract: its {what} are {has}, the "
                f"manifest wants {wanted}; re-run `python -m nbcore export {variant.id}`"
            )


def _shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[int]]:
    """Shape without the batch dimension by name."""
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:] for v in values}


def _number(text: str | None) -> object:
    try:
        return None if text is None else json.loads(text)
    except json.JSONDecodeError:
        return text
