"""Accuracy by precision: fp32 is what the manifest states, int8 is near it, others are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nbcore import checkpoint
from nbcore.__main__ import main
from nbcore.bench.precision import PrecisionBench, bench_precision


def test_accuracy_in_each_precision(
    tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = checkpoint.read_manifest(tiny_checkpoints), tmp_path / "bench.json"
    chosen = [variant.id for variant in manifest.variants[:2]]
    command = ["bench", "precision", "--checkpoints", str(tiny_checkpoints), "--device", "cpu"]
    assert main([*command, "--variants", *chosen, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["command"] == f"python -m nbcore {' '.join(command)} --variants " + (
        f"{' '.join(chosen)} --out {out}"
    )
    rows = report["rows"]
    assert [(row["variant"], row["precision"]) for row in rows] == [
        (name, precision) for name in chosen for precision in ("fp32", "int8")
    ]
    for single, eight in zip(rows[::2], rows[1::2], strict=True):
        variant = manifest[single["variant"]]
        assert single["sha256"] == eight["sha256"] == variant.files["onnx"].sha256
        # What is served in single precision is what was measured at export.
        assert single["top1"] == pytest.approx(variant.metrics["top1"], abs=1e-3)
        assert single["loss"] == pytest.approx(variant.metrics["loss"], abs=1e-4)
        assert single["num_images"] == eight["num_images"] == variant.metrics["num_images"]
        assert (single["same_class"], single["largest_difference"]) == (1.0, 0.0)
        # Eight bits round, and change few answers.
        assert eight["largest_difference"] > 0
        assert eight["same_class"] >= 0.9
        assert eight["top1"] == pytest.approx(single["top1"], abs=0.1)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert printed[2].split()[:2] == [chosen[0], "int8"]


def test_a_precision_of_another_device_is_refused(
    tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench = PrecisionBench(checkpoints=tiny_checkpoints, precisions=("fp16",))
    with pytest.raises(ValueError, match=r"cpu does not compute in \['fp16'\]; it does in \['fp32"):
        bench_precision(bench, command="tests", out=tmp_path / "none.json")
