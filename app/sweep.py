"""Uploads and cached pictures that outlived their hour, whoever left them behind, are deleted.

Gradio deletes its files after an hour too, but forgets them when the process is killed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def sweep(folder: Path, max_age_s: float, spared: Set[Path] = frozenset()) -> int:
    """Delete old files below a folder, and folders that are left empty.

    Args:
        folder: The app's own; need not exist.
        max_age_s: Files last written before this many seconds go.
        spared: Files that stay whatever their age.

    Returns:
        How many files were deleted.
    """
    oldest, deleted = time.time() - max_age_s, 0
    # The deepest first, so that emptied folders can go.
    for path in sorted(folder.rglob("*"), reverse=True):
        # Another process may have deleted it, or have written into a folder, meanwhile.
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                if path.stat().st_mtime < oldest:
                    path.rmdir()
            elif path not in spared and path.lstat().st_mtime < oldest:
                path.unlink()
                deleted += 1
    return deleted


def files_named_in(config: Any, folder: Path) -> frozenset[Path]:
    """Files below a folder that a page's configuration names: its first photo and its examples,
    which every new visitor is shown."""
    return frozenset(path for path in map(Path, _strings(config)) if path.is_relative_to(folder))


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _strings(value)


def keep_swept(
    folder: Path, max_age_s: float, every_s: float, spared: Callable[[], Set[Path]] = frozenset
) -> threading.Thread:
    """Sweep now and every so often, in a thread that ends with the process; `spared` is asked
    each time."""

    def forever() -> None:
        while True:
            if deleted := sweep(folder, max_age_s, spared()):
                logger.info("deleted %d files older than %g s", deleted, max_age_s)
            time.sleep(every_s)

    thread = threading.Thread(target=forever, name="sweep", daemon=True)
    thread.start()
    return thread
