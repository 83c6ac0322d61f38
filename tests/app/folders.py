"""Copies of a checkpoint folder that tests may damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbcore.checkpoint import sha256_of


def copy_of(folder: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint folder."""
    return Path(shutil.copytree(folder, tmp_path / "checkpoints"))


def ids_by_mitigation(folder: Path) -> dict[str, str]:
    """Variant ids by mitigation, the dense one under "dense"."""
    entries = json.loads((folder / "manifest.json").read_text())["variants"]
    return {e["mitigation"] or "dense": e["id"] for e in entries}


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON in place."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def edit_variant(folder: Path, variant_id: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change one entry of the manifest in place."""

    def both(data: dict[str, Any]) -> None:
        edit(next(e for e in data["variants"] if e["id"] == variant_id))

    edit_manifest(folder, both)


def flip_byte(path: Path) -> None:
    """Flip all bits of the byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def register_again(folder: Path, variant_id: str, kind: str) -> None:
    """Bring the manifest's size and hash up to a changed file, as someone who means harm would."""

    def edit(entry: dict[str, Any]) -> None:
        path = folder / entry["files"][kind]["path"]
        entry["files"][kind] |= {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}

    edit_variant(folder, variant_id, edit)


def with_second_dataset(folder: Path, tmp_path: Path, dataset: str) -> Path:
    """A copy that holds every variant twice, the second time for a data set of other classes."""
    copied = copy_of(folder, tmp_path)

    def edit(data: dict[str, Any]) -> None:
        for entry in list(data["variants"]):
            twin = json.loads(json.dumps(entry))
            name = f"{dataset}-{entry['id']}"
            shutil.copytree(copied / entry["id"], copied / name)
            twin |= {"id": name, "dataset": dataset}
            twin["base"] = entry["base"] and f"{dataset}-{entry['base']}"
            twin["classes"] = [f"other {label}" for label in entry["classes"]]
            for file in twin["files"].values():
                file["path"] = f"{name}/{file['path'].split('/', 1)[1]}"
            data["variants"].append(twin)

    edit_manifest(copied, edit)
    return copied
