"""The manifest: which variants of a checkpoint folder are whole.

Refusal is per variant; only an unknown schema version, or no list of variants, refuses the whole
file. Nothing in it is trusted until `verify_files` has re-hashed the files. Writes are atomic, and
a lock beside the file keeps processes that change it at the same time from losing each other's
entries.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from nbcore.checkpoint.entry import to_json, variant_from_json, variant_to_json
from nbcore.checkpoint.files import verify_files, write_atomically
from nbcore.checkpoint.schema import METRICS, SCHEMA_VERSION, CheckpointError, Manifest, Variant

MANIFEST = "manifest.json"
LOCK = ".manifest.lock"
LOCK_SECONDS = 60.0


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a checkpoint folder; bad entries are refused one by one.

    Raises:
        CheckpointError: If the file is missing, no JSON, of an unknown schema version, or lists no
            variants.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; train a variant with `python -m nbcore run shapes-quick "
            f"--out {folder}`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema_version {version!r}; this program reads {SCHEMA_VERSION}"
        )
    entries = data.get("variants", [])
    if not isinstance(entries, list):
        raise CheckpointError(f"{path}: variants must be a list, got {entries!r:.100}")
    variants: list[Variant] = []
    refused: dict[str, str] = {}
    for position, entry in enumerate(entries):
        name = (
            str(entry.get("id", f"entry {position}"))
            if isinstance(entry, dict)
            else f"entry {position}"
        )
        try:
            variant = variant_from_json(entry)
            if any(v.id == variant.id for v in variants):
                raise CheckpointError(f"variant {variant.id}: listed twice")
            variants.append(variant)
        except CheckpointError as error:
            refused[name] = str(error)
    return Manifest(variants=tuple(variants), refused=refused)


def write_manifest(folder: Path, variants: tuple[Variant, ...]) -> None:
    """Write the manifest atomically: readers see the old or the new file, never a part."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "metrics": [asdict(metric) for metric in METRICS],
        "variants": [variant_to_json(variant) for variant in variants],
    }
    write_atomically(folder / MANIFEST, to_json(data))


def register_variant(folder: Path, variant: Variant, position: int | None = None) -> None:
    """Add or replace one variant after its files were verified.

    Args:
        folder: Checkpoint folder.
        variant: Replaces an entry of the same id where that stands.
        position: Where a new entry goes; by default before the variants pruned from it, else last.

    Raises:
        CheckpointError: If a file is missing or differs, other entries are unreadable (they would
            be lost), or another process keeps the manifest locked.
    """
    verify_files(folder, variant)
    with _locked(folder):
        variants = _rewritable(folder)
        ids = [v.id for v in variants]
        if variant.id in ids:
            variants[ids.index(variant.id)] = variant
        else:
            children = [i for i, v in enumerate(variants) if v.base == variant.id]
            first = min(children, default=len(variants))
            variants.insert(first if position is None else position, variant)
        write_manifest(folder, tuple(variants))


def withdraw_variant(folder: Path, variant_id: str) -> tuple[int, Variant] | None:
    """Take a variant out of the manifest, so that its files may change.

    Returns:
        Position and entry for `register_variant`, or None if the manifest does not name it.

    Raises:
        CheckpointError: If other entries are unreadable (they would be lost), or another process
            keeps the manifest locked.
    """
    if not (folder / MANIFEST).exists():
        return None
    with _locked(folder):
        variants = _rewritable(folder)
        for position, variant in enumerate(variants):
            if variant.id == variant_id:
                write_manifest(folder, tuple(variants[:position] + variants[position + 1 :]))
                return position, variant
    return None


@contextlib.contextmanager
def withdrawn(folder: Path, variant_id: str) -> Iterator[int | None]:
    """Keep a variant out of the manifest while its files change; gives the place it had.

    If the change fails before a file was touched, the old entry comes back.
    """
    old = withdraw_variant(folder, variant_id)
    try:
        yield old[0] if old else None
    except BaseException:
        if old:
            with contextlib.suppress(CheckpointError):
                register_variant(folder, old[1], old[0])
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the manifest against other processes from reading it until it is written.

    The lock file stays: who removes one may remove it from under another process that waits for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise CheckpointError(
            f"another process has kept {folder / MANIFEST} locked for {LOCK_SECONDS:.0f} seconds; "
            "let it finish, or end it, and run the same command again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _rewritable(folder: Path) -> list[Variant]:
    """The manifest's variants, if a rewrite loses nothing."""
    old = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest()
    if old.refused:
        raise CheckpointError(
            f"{folder / MANIFEST} holds unreadable entries that a rewrite would lose: "
            f"{dict(old.refused)}"
        )
    return list(old.variants)
