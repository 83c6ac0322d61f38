"""What a precision costs is read from the bench, for the very files that are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app import markup
from app.precision import effects
from app.registry import ModelRegistry
from app.service import Service
from app.settings import Settings
from tests.app.folders import copy_of


def row(sha256: str, precision: str, top1: float, same: float = 1.0) -> dict[str, Any]:
    return {
        "sha256": sha256,
        "precision": precision,
        "top1": top1,
        "same_class": same,
        "num_images": 400,
    }


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / "bench" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": rows}))


def test_only_rows_of_served_files_count(
    tiny_checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(tiny_checkpoints, tmp_path)
    variants = [model.variant for model in ModelRegistry(folder).models()]
    own, other = (variant.files["onnx"].sha256 for variant in variants[:2])
    write(folder, "precision-cpu.json", [
        row("0" * 64, "fp32", 0.5), row("0" * 64, "int8", 0.1),
        row(own, "fp32", 0.75), row(own, "int8", 0.7475, 0.99),
        row(other, "fp32", 0.5),
    ])  # fmt: skip
    write(folder, "precision-bad.json", [{"precision": "int8"}])
    found = effects(folder, variants, "int8")
    assert list(found) == [variants[0].id]
    assert found[variants[0].id].change == pytest.approx(-0.0025)
    assert (found[variants[0].id].same_class, found[variants[0].id].num_images) == (0.99, 400)
    assert "precision-bad.json is left out" in caplog.text
    assert effects(folder, variants, "fp16") == {}


def test_the_page_says_what_is_served_and_what_it_costs(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny_checkpoints, tmp_path)

    def standing(precision: str) -> str:
        settings = Settings(checkpoints=folder, device="cpu", threads=1, precision=precision)
        return markup.standing(Service.from_settings(settings).status())

    assert "int8" not in standing("fp32")
    assert "was not measured" in standing("int8")
    rows = []
    for count, model in enumerate(ModelRegistry(folder).models()):
        sha256 = model.variant.files["onnx"].sha256
        rows += [row(sha256, "fp32", 0.75), row(sha256, "int8", 0.75 - 0.005 * count, 0.98)]
    write(folder, "precision-cpu.json", rows)
    # Four variants lose 0, 0.5, 1.0 and 1.5 points.
    said = standing("int8")
    assert "int8" in said
    assert "between −1.5 and ±0.0 points" in said
    assert "98.0\u202f% of all answers stay" in said
