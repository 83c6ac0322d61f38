"""Only sound variants are taken in, and nothing of the others is left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nbcore import checkpoint
from nbcore.add import add_variant
from nbcore.checkpoint import (
    CheckpointError,
    file_entry,
    read_manifest,
    verify_files,
    with_files,
    withdraw_variant,
)
from tests.nbcore.folders import CHILD, DENSE, flip, rewrite


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
    names = {p.name for p in folder.iterdir()}
    assert names == {"manifest.json", ".manifest.lock", DENSE, CHILD}
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


def test_too_large_a_file_is_not_taken_in(
    elsewhere: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = elsewhere
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"model.onnx'.* are above 0 MB"):
        add_variant(source, folder, None)
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
