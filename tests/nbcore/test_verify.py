"""Every broken promise of a checkpoint folder is a finding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbcore import verify as verification
from nbcore.checkpoint import (
    METRICS,
    CheckpointError,
    Variant,
    file_entry,
    read_manifest,
    verify_files,
    with_files,
    write_manifest,
)
from nbcore.export import open_session
from nbcore.verify import Finding, check_contract, verify
from tests.nbcore.folders import CHILD, DENSE, flip, rewrite


def faults(folder: Path, **options: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in verify(folder, **options):
        if not finding.ok:
            found.setdefault(finding.variant, []).append(finding.text)
    return found


def test_sound_folder_keeps_every_promise(tiny_checkpoints: Path) -> None:
    findings = list(verify(tiny_checkpoints))
    assert [f.text for f in findings if not f.ok] == []
    ids = [v.id for v in read_manifest(tiny_checkpoints).variants]
    assert [f.variant for f in findings] == ["manifest", *(i for i in ids for _ in range(3))]


def test_every_number_is_explained_and_ties_are_stated_where_tokens_merge(
    tiny_checkpoints: Path,
) -> None:
    explained = {metric.name for metric in METRICS}
    parity = {"parity_logits", "parity_loads", "parity_loads_largest", "parity_images"}
    for variant in read_manifest(tiny_checkpoints).variants:
        assert set(variant.metrics) <= explained
        assert parity <= set(variant.metrics)
        assert ("tie_share" in variant.metrics) == (variant.merge is not None)
        assert 0 <= variant.metrics.get("tie_share", 0) <= 1


def test_parity_is_measured_on_test_photos_where_data_are_given(two: Path, tmp_path: Path) -> None:
    for data_dir, count in ((None, 10), (tmp_path, 256)):
        texts = [f.text for f in verify(two, only=[CHILD], data_dir=data_dir)]
        assert f"ONNX = torch on {count} images: " in texts[-1]


def test_only_the_variants_that_were_asked_for_are_checked(tiny_checkpoints: Path) -> None:
    child = read_manifest(tiny_checkpoints).variants[1].id
    findings = list(verify(tiny_checkpoints, only=[child]))
    assert [f.variant for f in findings] == ["manifest", child, child, child]
    with pytest.raises(CheckpointError, match="unknown variant 'ghost'"):
        list(verify(tiny_checkpoints, only=["ghost"]))


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "model.safetensors",
        "config.json",
        "history.jsonl",
        "burden.json",
        "variant.json",
    ],
)
def test_one_changed_byte_is_a_fault_of_its_variant_alone(name: str, two: Path) -> None:
    flip(two / CHILD / name)
    found = faults(two)
    assert list(found) == [CHILD]
    assert name in found[CHILD][0]


def test_entry_that_differs_from_the_folder_is_a_fault(two: Path) -> None:
    variant = with_files(read_manifest(two)[CHILD], {}, {"top1": 1.0})
    write_manifest(two, (read_manifest(two)[DENSE], variant))
    assert faults(two) == {
        CHILD: [f"variant {CHILD}: variant.json and the manifest disagree"],
    }


def test_weights_of_another_model_are_found_by_running_both(two: Path) -> None:
    variant = read_manifest(two)[CHILD]
    path = two / CHILD / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40  # an exponent bit of the last weight
    path.write_bytes(bytes(data))
    rewrite(two, with_files(variant, {"weights": file_entry(two, path)}, {}))
    verify_files(two, read_manifest(two)[CHILD])
    assert any("ONNX and torch" in text for text in faults(two)[CHILD])


def test_graph_that_does_not_load_is_a_fault(two: Path) -> None:
    path = two / CHILD / "model.onnx"
    path.write_bytes(b"no graph")
    rewrite(two, with_files(read_manifest(two)[CHILD], {"onnx": file_entry(two, path)}, {}))
    (text,) = faults(two)[CHILD]
    assert "model.onnx does not load" in text


def test_graph_of_another_variant_is_a_fault(two: Path) -> None:
    shutil.copy(two / DENSE / "model.onnx", two / CHILD / "model.onnx")
    entry = file_entry(two, two / CHILD / "model.onnx")
    rewrite(two, with_files(read_manifest(two)[CHILD], {"onnx": entry}, {}))
    (text,) = faults(two)[CHILD]
    assert "of model.onnx is" in text
    assert "the contract says" in text


def test_variant_of_another_base_is_a_fault(two: Path) -> None:
    path = two / CHILD / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"base_sha256": "0" * 64}))
    rewrite(two, with_files(read_manifest(two)[CHILD], {"config": file_entry(two, path)}, {}))
    (text,) = faults(two)[CHILD]
    assert f"was pruned from another {DENSE}" in text


def test_a_file_above_the_limit_is_a_fault(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(e.size_bytes for v in read_manifest(two).variants for e in v.files.values())
    monkeypatch.setattr(verification.checkpoint, "MAX_FILE_BYTES", largest - 1)
    found = faults(two)
    assert set(found) == {DENSE}
    assert "model.onnx" in found[DENSE][0]


def test_variants_of_ones_own_may_go_beyond_what_is_shipped(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> Finding:
        return next(found for found in verify(two) if "MB in all" in found.text)

    assert (told().ok, "more than" in told().text) == (True, False)
    monkeypatch.setattr(verification, "SHIPPED_BYTES", 1000)
    assert (told().ok, "more than" in told().text) == (True, True)


def test_unreadable_entries_and_empty_manifests_are_faults(tmp_path: Path) -> None:
    data = {"schema_version": 1, "variants": [{"id": "x"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    found = faults(tmp_path)
    assert "unreadable manifest entry" in found["x"][0]
    assert found["manifest"] == ["names no readable variant"]


def test_accuracy_is_measured_again(two: Path) -> None:
    assert faults(two, accuracy=True) == {}
    variant = read_manifest(two)[CHILD]
    top1, loss = variant.metrics["top1"], variant.metrics["loss"]
    found = f"top-1 {top1:.4f}, loss {loss:.4f} on 1024 images, manifest says"
    for changed, stated in (
        ({"top1": top1 + 0.002}, f"top-1 {top1 + 0.002:.4f}, loss {loss:.4f} on 1024 images"),
        ({"loss": loss - 0.002}, f"top-1 {top1:.4f}, loss {loss - 0.002:.4f} on 1024 images"),
        ({"num_images": 1023}, f"top-1 {top1:.4f}, loss {loss:.4f} on 1023 images"),
    ):
        rewrite(two, with_files(variant, {}, changed))
        assert faults(two, only=[CHILD], accuracy=True) == {CHILD: [f"{found} {stated}"]}


def test_metrics_that_are_not_stated_are_a_fault(two: Path) -> None:
    variant = read_manifest(two)[CHILD]
    rewrite(two, replace(variant, metrics={}))
    (text,) = faults(two, only=[CHILD], accuracy=True)[CHILD]
    assert text.endswith("manifest says top-1 nan, loss nan on nan images")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: replace(v, classes=(*v.classes, "more")), r"outputs of model.onnx"),
        (lambda v: replace(v, id="other"), "variant of model.onnx is .*contract says other"),
        (lambda v: replace(v, grid=(2, 8)), r"grid of model.onnx is \[4, 4\].*says \[2, 8\]"),
        (lambda v: replace(v, img_size=64), "inputs of model.onnx"),
        (lambda v: replace(v, merge=None), "outputs of model.onnx"),
        (lambda v: replace(v, sites=v.sites[:-1]), "inputs of model.onnx"),
    ],
)
def test_contract_is_checked_part_by_part(
    change: Callable[[Variant], Variant], text: str, tiny_checkpoints: Path
) -> None:
    variant = read_manifest(tiny_checkpoints)[CHILD]
    session = open_session(tiny_checkpoints / CHILD / "model.onnx")
    check_contract(session, variant)
    with pytest.raises(CheckpointError, match=text):
        check_contract(session, change(variant))


def test_contract_knows_each_sites_name_and_where_it_begins(tiny_checkpoints: Path) -> None:
    variant = read_manifest(tiny_checkpoints)[CHILD]
    session = open_session(tiny_checkpoints / CHILD / "model.onnx")
    first, second, *others = variant.sites
    swapped = (replace(second, name=first.name), replace(first, name=second.name), *others)
    with pytest.raises(CheckpointError, match=r"site_sizes of model.onnx"):
        check_contract(session, replace(variant, sites=swapped))
    renamed = (replace(first, name="blocks.9.attn"), second, *others)
    with pytest.raises(CheckpointError, match=r"site_names of model.onnx .*export"):
        check_contract(session, replace(variant, sites=renamed))
