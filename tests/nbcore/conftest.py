"""Checkpoint folders that a test may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nbcore.checkpoint import read_manifest, withdraw_variant
from tests.nbcore.folders import CHILD, DENSE


@pytest.fixture
def two(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """A folder with the dense variant and one pruned one."""
    folder = Path(shutil.copytree(tiny_checkpoints, tmp_path / "checkpoints"))
    for variant in read_manifest(folder).variants:
        if variant.id not in (DENSE, CHILD):
            withdraw_variant(folder, variant.id)
            shutil.rmtree(folder / variant.id)
    return folder
