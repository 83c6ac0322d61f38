"""Damaged files and paths that lead elsewhere are named; writes are whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nbcore.checkpoint import (
    CheckpointError,
    file_entry,
    resolve,
    verify_files,
    with_files,
    write_atomically,
)
from tests.nbcore.variants import (
    KINDS,
    truncate,
    write_files,
)


def lose(path: Path) -> None:
    path.unlink()


def change_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("damage", "text"),
    [(lose, "is missing"), (truncate, r"has \d+ bytes, manifest says"), (change_a_byte, "sha256")],
)
def test_damaged_file_is_named_with_its_remedy(
    kind: str, damage: Callable[[Path], None], text: str, tmp_path: Path
) -> None:
    variant = write_files(tmp_path)
    verify_files(tmp_path, variant)
    damage(tmp_path / "a-b" / KINDS[kind])
    remedy = "re-run `python -m nbcore export a-b`" if kind == "onnx" else "restore it"
    with pytest.raises(CheckpointError, match=f"variant a-b: .*{KINDS[kind]} .*{text}.*{remedy}"):
        verify_files(tmp_path, variant)


def test_variant_without_a_graph_is_to_be_completed(tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    files = {kind: entry for kind, entry in variant.files.items() if kind != "onnx"}
    with pytest.raises(CheckpointError, match="no onnx file; complete it with `python -m nbcore"):
        verify_files(tmp_path, replace(variant, files=files))


@pytest.mark.parametrize(
    "path", ["../out.txt", "a-b/../../out.txt", "a-b/link", "a-b/folder/out.txt"]
)
def test_path_that_leaves_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "a-b").mkdir(parents=True)
    out = tmp_path / "out.txt"
    out.write_text("outside")
    (folder / "a-b" / "link").symlink_to(out)
    (folder / "a-b" / "folder").symlink_to(tmp_path)
    entry = replace(file_entry(tmp_path, out), path=path)
    with pytest.raises(CheckpointError, match="leaves the checkpoint folder"):
        resolve(folder, "a-b", entry)


def test_absolute_path_is_refused_even_inside(tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    entry = replace(variant.files["onnx"], path=str(tmp_path / "a-b" / "model.onnx"))
    with pytest.raises(CheckpointError, match="leaves the checkpoint folder"):
        verify_files(tmp_path, with_files(variant, {"onnx": entry}, {}))


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "a-b/loop"])
def test_impossible_path_is_refused_like_any_other(path: str, tmp_path: Path) -> None:
    variant = write_files(tmp_path)
    (tmp_path / "a-b" / "loop").symlink_to("loop")
    entry = replace(variant.files["onnx"], path=path)
    with pytest.raises(CheckpointError, match="variant a-b"):
        verify_files(tmp_path, with_files(variant, {"onnx": entry}, {}))


def test_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644
