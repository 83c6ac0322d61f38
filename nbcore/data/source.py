"""A data set that was found and hashed but not decoded yet, and how files are hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nbcore.data.photos import Arrays, Photo


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that was found but not decoded yet."""

    classes: tuple[str, ...]
    checksum: str
    """sha256 of what the source consists of; another checksum means another content."""
    decode: Callable[[int, int | None], dict[str, Arrays]]
    """(img_size, workers) -> "train" and "test"."""
    photos: Mapping[str, Photo] = field(default_factory=dict)
    """Test photos by name, where each is an encoded file."""


def verified_sha256(path: Path) -> str:
    """The file's sha256.

    Raises:
        ValueError: If a SHA256SUMS in its folder or the one above lists the file with another sum,
            or it is missing.
    """
    path = path.absolute()
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    for folder in (path.parent, path.parent.parent):
        sums = folder / "SHA256SUMS"
        if not sums.is_file():
            continue
        for line in sums.read_text(encoding="utf-8").splitlines():
            expected, _, name = line.partition(" ")
            if folder / name.strip().removeprefix("*") == path and expected != found:
                raise ValueError(
                    f"{path} is damaged: it has sha256 {found}, {sums} says {expected}; "
                    "fetch it again"
                )
    return found


def sha256_of_lines(lines: Iterable[str]) -> str:
    """One checksum for several lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
