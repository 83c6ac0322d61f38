"""What a precision of serving does to the answers: accuracy on the test photos, beside that of the
file as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcore import checkpoint
from nbcore.checkpoint import Variant
from nbcore.complete import load_for
from nbcore.data import Split
from nbcore.evaluate import evaluate, predict_logits
from nbcore.provenance import device_name, library_versions, source_commit
from nbcore.serve import CPU, LOGITS, PRECISIONS, Serving, choose_provider, open_served

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PrecisionBench:
    """Which variants are measured, in what, on what."""

    checkpoints: Path
    data_dir: Path | None = None
    """Prepared photos; generated data needs none."""
    variants: tuple[str, ...] = ()
    """Ids; empty means all."""
    precisions: tuple[str, ...] = ()
    """Empty means all that the device computes in."""
    device: str = "auto"


def bench_precision(bench: PrecisionBench, *, command: str, out: Path) -> dict[str, Any]:
    """Measure and write a report; rows are written as they come.

    Args:
        bench: What to measure.
        command: How it was called, for the report.
        out: JSON file.

    Raises:
        ValueError: If the device does not compute in a precision.
    """
    provider = choose_provider(bench.device)
    place = "cpu" if provider == CPU else "cuda"
    can = [name for name, places in PRECISIONS.items() if place in places]
    chosen = bench.precisions or tuple(can)
    if wrong := [name for name in chosen if name not in can]:
        raise ValueError(f"{place} does not compute in {wrong}; it does in {can}")
    manifest = checkpoint.read_manifest(bench.checkpoints)
    variants = [manifest[name] for name in bench.variants] or list(manifest.variants)
    report: dict[str, Any] = {
        "subject": "precision",
        "command": command,
        "commit": source_commit(),
        "device": device_name(torch.device(place)),
        "provider": provider,
        "versions": library_versions(),
        "rows": [],
    }
    for variant in variants:
        for row in _rows(bench, variant, ("fp32", *(p for p in chosen if p != "fp32")), place):
            report["rows"].append(row)
            checkpoint.write_atomically(out, checkpoint.to_json(report))
    return report


def _rows(
    bench: PrecisionBench, variant: Variant, precisions: Sequence[str], place: str
) -> Iterator[dict[str, Any]]:
    checkpoint.verify_files(bench.checkpoints, variant)
    path = checkpoint.resolve(bench.checkpoints, variant.id, variant.files["onnx"])
    test = load_for(bench.checkpoints, variant, bench.data_dir).test
    exact: Tensor | None = None
    for precision in precisions:
        serving = Serving(device=place, precision=precision)
        logits = served_logits(path, serving, test, title=f"{variant.id}, {precision}")
        exact = logits if exact is None else exact
        yield {
            "variant": variant.id,
            "sha256": variant.files["onnx"].sha256,
            "precision": precision,
            **dict(evaluate(logits, test.targets)),
            "same_class": (logits.argmax(1) == exact.argmax(1)).double().mean().item(),
            "largest_difference": (logits - exact).abs().max().item(),
        }


def served_logits(path: Path, serving: Serving, split: Split, *, title: str | None) -> Tensor:
    """Logits of a split [n, K] as a session gives them."""
    session = open_served(path, serving, outputs=LOGITS)
    session.warm((BATCH,))
    return predict_logits(
        lambda images: torch.from_numpy(session.run(images.numpy())["logits"]),
        split.images,
        batch_size=BATCH,
        title=title,
    )


def precision_table(report: dict[str, Any]) -> Iterator[str]:
    """The report in lines: top-1, and what differs from fp32."""
    yield f"{'variant':48s} {'precision':9s} {'top-1':>8s} {'loss':>8s} {'same class':>10s} logits"
    for row in report["rows"]:
        yield (
            f"{row['variant']:48s} {row['precision']:9s} {row['top1']:8.4f} {row['loss']:8.4f} "
            f"{row['same_class']:10.4f} {row['largest_difference']:.1e}"
        )
