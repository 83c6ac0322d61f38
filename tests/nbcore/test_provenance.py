"""Where a variant came from is told truly, also without git."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from nbcore import provenance
from nbcore.provenance import device_name, library_versions, source_commit


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that the source seems to lie in, with one commit."""
    monkeypatch.delenv("NBCORE_COMMIT", raising=False)
    source = tmp_path / "nbcore" / "provenance.py"
    source.parent.mkdir()
    source.write_text("old")
    monkeypatch.setattr(provenance, "__file__", str(source))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_is_that_of_the_checkout(checkout: Path) -> None:
    assert source_commit() == git(checkout, "rev-parse", "HEAD")[:12]


def test_changed_source_is_marked_and_other_changes_are_not(checkout: Path) -> None:
    commit = source_commit()
    (checkout / "notes.txt").write_text("new")
    assert source_commit() == commit
    (checkout / "nbcore" / "provenance.py").write_text("new")
    assert source_commit() == f"{commit}+changes"


def test_given_commit_wins(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBCORE_COMMIT", "abc123")
    assert source_commit() == "abc123"


def test_without_git_the_commit_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert source_commit() == "unknown"


def test_outside_of_a_checkout_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NBCORE_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "nbcore" / "provenance.py"))
    assert source_commit() == "unknown"


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    expected = {"python": platform.python_version(), "torch": metadata.version("torch")}
    assert library_versions() == expected


def test_processor_is_named_by_kind_and_cores() -> None:
    name = device_name(torch.device("cpu"))
    assert name.startswith(f"CPU ({platform.machine()}, ")
    assert name.endswith(" cores)")
