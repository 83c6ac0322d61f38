"""Damage to checkpoint folders, and the two variants it is done to."""

from __future__ import annotations

import json
from pathlib import Path

from nbcore.checkpoint import Variant, read_manifest, variant_to_json, write_manifest

CHILD = "shapes-vit-mini-taylor-m50-token_merging"
DENSE = "shapes-vit-mini-dense"


def flip(path: Path) -> None:
    """Flip all bits of the byte in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def rewrite(folder: Path, variant: Variant) -> None:
    """Put an entry into manifest and folder, as someone who means harm would."""
    others = read_manifest(folder).variants
    write_manifest(folder, tuple(variant if v.id == variant.id else v for v in others))
    (folder / variant.id / "variant.json").write_text(json.dumps(variant_to_json(variant)))
