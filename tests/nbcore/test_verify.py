"""Every broken promise is a finding, and only sound variants are taken in."""

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
    CheckpointError,
    Variant,
    file_entry,
    read_manifest,
    variant_to_json,
    verify_files,
    with_files,
    withdraw_variant,
    write_manifest,
)
from nbcore.export import open_session
from nbcore.verify import add_variant, check_contract, verify

CHILD = "shapes-vit-mini-taylor-m50-token_merging"
DENSE = "shapes-vit-mini-dense"


@pytest.fixture
def folder(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints, tmp_path / "checkpoints"))


@pytest.fixture
def two(folder: Path) -> Path:
    """The dense variant and one pruned one."""
    manifest = read_manifest(folder)
    for variant in manifest.variants:
        if variant.id not in (DENSE, CHILD):
            withdraw_variant(folder, variant.id)
            shutil.rmtree(folder / variant.id)
    return folder


def faults(folder: Path, **options: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in verify(folder, **options):
        if not finding.ok:
            found.setdefault(finding.variant, []).append(finding.text)
    return found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_sound_folder_keeps_every_promise(tiny_checkpoints: Path) -> None:
    findings = list(verify(tiny_checkpoints))
    assert [f.text for f in findings if not f.ok] == []
    ids = [v.id for v in read_manifest(tiny_checkpoints).variants]
    assert [f.variant for f in findings] == ["manifest", *(i for i in ids for _ in range(3))]


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


def rewrite(folder: Path, variant: Variant) -> None:
    """Put an entry into manifest and folder, as someone who means harm would."""
    others = read_manifest(folder).variants
    write_manifest(folder, tuple(variant if v.id == variant.id else v for v in others))
    (folder / variant.id / "variant.json").write_text(json.dumps(variant_to_json(variant)))


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


def test_sizes_above_the_limits_are_faults(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = max(e.size_bytes for v in read_manifest(two).variants for e in v.files.values())
    monkeypatch.setattr(verification.checkpoint, "MAX_FILE_BYTES", largest - 1)
    monkeypatch.setattr(verification, "MAX_TOTAL_BYTES", 1000)
    found = faults(two)
    assert set(found) == {"manifest", DENSE}
    assert "in all, at most" in found["manifest"][0]
    assert "model.onnx" in found[DENSE][0]


def test_unreadable_entries_and_empty_manifests_are_faults(tmp_path: Path) -> None:
    data = {"schema_version": 1, "variants": [{"id": "x"}]}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    found = faults(tmp_path)
    assert "unreadable manifest entry" in found["x"][0]
    assert found["manifest"] == ["names no readable variant"]


def test_accuracy_is_measured_again(two: Path) -> None:
    assert faults(two, accuracy=True) == {}
    variant = read_manifest(two)[CHILD]
    true = variant.metrics["top1"]
    rewrite(two, with_files(variant, {}, {"top1": true + 0.002}))
    (text,) = faults(two, accuracy=True)[CHILD]
    assert text == f"top-1 {true:.4f} on 1024 images, manifest says {true + 0.002:.4f}"


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


def test_contract_knows_where_each_site_begins(tiny_checkpoints: Path) -> None:
    variant = read_manifest(tiny_checkpoints)[CHILD]
    session = open_session(tiny_checkpoints / CHILD / "model.onnx")
    sites = (variant.sites[1], variant.sites[0], *variant.sites[2:])
    with pytest.raises(CheckpointError, match=r"site_sizes of model.onnx"):
        check_contract(session, replace(variant, sites=sites))


@pytest.fixture
def elsewhere(two: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint folder with the dense variant alone, and a folder with the pruned one."""
    withdraw_variant(two, CHILD)
    source = tmp_path / "elsewhere" / CHILD
    source.parent.mkdir()
    shutil.move(two / CHILD, source)
    return two, source


def test_sound_variant_is_taken_in(elsewhere: tuple[Path, Path]) -> None:
    folder, source = elsewhere
    variant = add_variant(source, folder, None)
    assert [v.id for v in read_manifest(folder).variants] == [DENSE, CHILD]
    assert read_manifest(folder)[CHILD] == variant
    verify_files(folder, variant)
    assert {p.name for p in folder.iterdir()} == {"manifest.json", DENSE, CHILD}
    with pytest.raises(CheckpointError, match=f"has a {CHILD} already"):
        add_variant(source, folder, None)
    with pytest.raises(CheckpointError, match=r"lies in .* already; complete it with `export`"):
        add_variant(folder / CHILD, folder, None)


def spoil_weights(folder: Path, source: Path) -> None:
    flip(source / "model.safetensors")


def lose_entry(folder: Path, source: Path) -> None:
    (source / "variant.json").unlink()


def lose_base(folder: Path, source: Path) -> None:
    withdraw_variant(folder, DENSE)


def lose_manifest(folder: Path, source: Path) -> None:
    (folder / "manifest.json").unlink()


def change_base(folder: Path, source: Path) -> None:
    entry = file_entry(folder, folder / DENSE / "history.jsonl")
    rewrite(folder, with_files(read_manifest(folder)[DENSE], {"weights": entry}, {}))


def point_outside(folder: Path, source: Path) -> None:
    shutil.copytree(source, source.with_name("other"))
    path = source / "variant.json"
    path.write_text(path.read_text().replace(f'"{CHILD}/model.onnx"', '"other/model.onnx"'))


def forget_graph(folder: Path, source: Path) -> None:
    data = json.loads((source / "variant.json").read_text())
    del data["files"]["onnx"]
    (source / "variant.json").write_text(json.dumps(data))


def spoil_manifest(folder: Path, source: Path) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["variants"].append({"id": "newer"})
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (spoil_weights, "model.safetensors has sha256"),
        (lose_entry, "no trained variant"),
        (lose_base, f"needs its base; add {DENSE} first"),
        (lose_manifest, f"needs its base; add {DENSE} first"),
        (change_base, f"was pruned from another {DENSE}"),
        (point_outside, "names files outside of its folder"),
        (forget_graph, "no onnx file; complete it"),
        (spoil_manifest, "unreadable entries that a rewrite would lose"),
    ],
)
def test_unsound_variant_is_refused_and_leaves_nothing(
    spoil: Callable[[Path, Path], None], text: str, elsewhere: tuple[Path, Path]
) -> None:
    folder, source = elsewhere
    spoil(folder, source)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=text):
        add_variant(source, folder, None)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (folder / CHILD).exists()


def test_folder_of_another_name_is_refused(elsewhere: tuple[Path, Path]) -> None:
    folder, source = elsewhere
    source.rename(source.with_name("mine"))
    with pytest.raises(CheckpointError, match=f"holds variant {CHILD}; name the folder like it"):
        add_variant(source.with_name("mine"), folder, None)


def test_relative_folder_is_taken_in(
    elsewhere: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = elsewhere
    monkeypatch.chdir(source)
    assert add_variant(Path(), folder, None).id == CHILD
