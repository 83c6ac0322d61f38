"""Every variant of a family asked about every photo: logits, and burdens against the dense base.

Photos go through in chunks. A finished chunk is written to the work folder, so what was stopped
goes on where it was. On a CPU the exported file is run by ONNX Runtime where both are to be had;
otherwise the weights are run by torch, in single precision without TF32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nbcore import checkpoint
from nbcore.burden import sum_to_sites
from nbcore.checkpoint import Variant
from nbcore.export import open_session
from nbcore.preprocessing import as_input

logger = logging.getLogger(__name__)

CHUNK = 256
BATCH = {"cpu": 32, "cuda": 256}
HALF_MAX = float(np.finfo(np.float16).max)

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [B, 3, S, S] in [0, 1] on the CPU -> logits [B, K] and unit loads [B, U], on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A variant that can be asked."""

    variant: Variant
    forward: Forward
    engine: str
    """onnxruntime or torch."""

    def run(self, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Logits and unit loads of uint8 images [n, 3, S, S]."""
        pairs = [self.forward(as_input(batch)) for batch in images.split(batch_size)]
        logits, loads = zip(*pairs, strict=True)
        return torch.cat(logits), torch.cat(loads)


def open_model(folder: Path, variant: Variant, device: torch.device) -> Model:
    """A variant whose files were re-hashed.

    Raises:
        CheckpointError: If a file is missing or differs from the manifest.
    """
    checkpoint.verify_files(folder, variant, required=("weights",))
    exported = variant.files.get("onnx")
    if device.type == "cpu" and exported and importlib.util.find_spec("onnxruntime"):
        path = checkpoint.resolve(folder, variant.id, exported)
        return Model(variant=variant, forward=_onnx(path), engine="onnxruntime")
    return Model(variant=variant, forward=_torch(folder, variant, device), engine="torch")


def _onnx(path: Path) -> Forward:
    session = open_session(path)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, loads = session.run(["logits", "unit_load"], {"image": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(loads)

    return forward


def _torch(folder: Path, variant: Variant, device: torch.device) -> Forward:
    metered = checkpoint.load_model(folder, variant).to(device)

    @torch.inference_mode()
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits, loads, *_ = metered(images.to(device))
        return logits.cpu(), loads.cpu()

    return forward


Arrays = dict[str, np.ndarray]


def ask(
    base: Model | None,
    others: Sequence[Model],
    images: Tensor,
    *,
    photos_sha256: str,
    device: torch.device,
    work_dir: Path,
    title: str,
) -> Mapping[str, Arrays]:
    """Answers of a family by variant: logits float16 [n, K], predicted int16 [n] and, of those
    pruned from `base`, burden float16 [n, L].

    Args:
        base: The dense model, or None where there is none to compare with.
        others: Models pruned from it.
        images: uint8 [n, 3, S, S].
        photos_sha256: Digest of `images`.
        device: On which torch runs.
        work_dir: Where finished chunks lie until all are there.
        title: Of the progress bar.
    """
    models = [*([base] if base else []), *others]
    key = [photos_sha256, *(f"{m.engine} {checkpoint.to_json(_identity(m))}" for m in models)]
    folder = work_dir / hashlib.sha256("\n".join(key).encode()).hexdigest()[:16]
    chunks = []
    with tqdm(total=len(images) * len(models), desc=title, unit="answer") as bar:
        for start in range(0, len(images), CHUNK):
            batch, path = images[start : start + CHUNK], folder / f"{start:06d}.npz"
            if path.is_file():
                bar.update(len(batch) * len(models))
            else:
                found = _ask_chunk(base, others, batch, BATCH[device.type], bar)
                content = io.BytesIO()
                np.savez(content, **found)  # type: ignore[arg-type]
                checkpoint.write_atomically(path, content.getvalue())
            with np.load(path, allow_pickle=False) as archive:
                chunks.append({name: archive[name] for name in archive.files})
    joined = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    for path in folder.glob("*.npz"):
        path.unlink()
    folder.rmdir()
    return {
        m.variant.id: {
            name.rpartition("/")[2]: values
            for name, values in joined.items()
            if name.rpartition("/")[0] == m.variant.id
        }
        for m in models
    }


def _identity(model: Model) -> dict[str, str]:
    return {"id": model.variant.id, "weights": model.variant.files["weights"].sha256}


def _ask_chunk(
    base: Model | None, others: Sequence[Model], images: Tensor, batch_size: int, bar: tqdm
) -> Arrays:
    found: Arrays = {}
    past: Tensor | None = None
    if base is not None:
        logits, past = base.run(images, batch_size)
        found |= _answers(base.variant.id, logits)
        bar.update(len(images))
    for model in others:
        logits, loads = model.run(images, batch_size)
        found |= _answers(model.variant.id, logits)
        bar.update(len(images))
        if past is not None:
            found[f"{model.variant.id}/burden"] = _burden(model.variant, loads, past)
    return found


def _answers(name: str, logits: Tensor) -> Arrays:
    half = logits.clamp(-HALF_MAX, HALF_MAX).half().numpy()
    return {f"{name}/logits": half, f"{name}/predicted": logits.argmax(1).short().numpy()}


def _burden(variant: Variant, loads: Tensor, past: Tensor) -> np.ndarray:
    """load_S(variant) / load_S(dense) of every photo and site; not a number where dense is still.

    Args:
        variant: Whose sites tell the survivors S.
        loads: Unit loads of the variant [n, U].
        past: Unit loads of the dense base [n, U of the base].
    """
    sizes = [len(site.kept) for site in variant.sites]
    own = sum_to_sites(loads.double(), sizes)
    before = sum_to_sites(past[:, variant.kept_in_base()].double(), sizes)
    ratio = torch.where(before > 0, own / before, torch.nan)
    return ratio.clamp_max(HALF_MAX).half().numpy()
