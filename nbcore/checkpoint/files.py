"""Files of a variant: described, re-hashed, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from nbcore.checkpoint.schema import EXPORTED_FILES, CheckpointError, FileEntry, Variant


def verify_files(
    folder: Path, variant: Variant, required: tuple[str, ...] = EXPORTED_FILES
) -> None:
    """Re-hash every file of a variant.

    Args:
        folder: Checkpoint folder.
        variant: What its manifest entry says.
        required: Kinds of files that must be there.

    Raises:
        CheckpointError: On a path that leaves the folder, a missing file, or one whose bytes
            differ.
    """
    for kind in required:
        if kind not in variant.files:
            raise CheckpointError(
                f"variant {variant.id}: no {kind} file; complete it with `python -m nbcore export "
                f"{variant.id}`"
            )
    for kind, entry in variant.files.items():
        path = resolve(folder, variant.id, entry)
        try:
            fault = _fault(path, entry)
        except OSError as error:
            fault = f"{entry.path} cannot be read ({error})"
        if fault:
            raise CheckpointError(
                f"variant {variant.id}: {fault}; {_redo(folder, variant.id, kind)}"
            )


def _fault(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file, or None."""
    if not path.is_file():
        return f"{entry.path} is missing"
    size = path.stat().st_size
    if size != entry.size_bytes:
        return f"{path.name} has {size} bytes, manifest says {entry.size_bytes}"
    found = sha256_of(path)
    if found != entry.sha256:
        return f"{path.name} has sha256 {found[:12]}…, manifest says {entry.sha256[:12]}…"
    return None


def _redo(folder: Path, variant_id: str, kind: str) -> str:
    """How a damaged file can be had again."""
    if kind == "onnx":
        return f"re-run `python -m nbcore export {variant_id}`"
    if kind == "burden":
        return f"re-run `python -m nbcore measure {variant_id}`"
    return f"restore it, or remove {folder / variant_id} and train the variant again"


def resolve(folder: Path, variant_id: str, entry: FileEntry) -> Path:
    """Absolute path of a file entry.

    Raises:
        CheckpointError: If it would leave the folder, links followed.
    """
    root = folder.resolve()
    try:
        path = (root / entry.path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"variant {variant_id}: path {entry.path!r}: {error}") from error
    if Path(entry.path).is_absolute() or not path.is_relative_to(root):
        raise CheckpointError(
            f"variant {variant_id}: path {entry.path!r} leaves the checkpoint folder"
        )
    return path


def file_entry(folder: Path, path: Path) -> FileEntry:
    """Describe a file below `folder`."""
    relative = path.resolve().relative_to(folder.resolve()).as_posix()
    return FileEntry(path=relative, sha256=sha256_of(path), size_bytes=path.stat().st_size)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
