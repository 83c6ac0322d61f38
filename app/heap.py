"""The C library's heap: shared by all threads, and its free pages go back to the system.

glibc lends each thread an arena of its own, up to eight for each core, and an arena keeps what is
freed in it. Photos and gradients are tens of megabytes a call, and calls come to other threads each
time, so the free rests of all arenas together grew beyond what was in use.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

ARENAS = 1
"""Threads of this app spend their time inside models; they seldom ask for memory together."""
M_ARENA_MAX = -8
"""As malloc.h names it."""
TRIM_S = 30.0
"""Between two times that free pages go back; what is needed again costs a page fault each."""


def share_heap(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether threads share one arena from here on; only glibc has arenas.

    Call it before other threads begin, since arenas that are there stay.

    Args:
        environ: Where `MALLOC_ARENA_MAX` leaves the choice to whoever set it.
    """
    library = _glibc()
    if library is None or "MALLOC_ARENA_MAX" in environ:
        return False
    return bool(library.mallopt(M_ARENA_MAX, ARENAS))


def trim_heap() -> bool:
    """Whether free pages went back to the system."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(ctypes.c_size_t(0)))


def keep_trimmed(every_s: float = TRIM_S) -> threading.Thread:
    """Trim every so often, in a thread that ends with the process."""

    def forever() -> None:
        while True:
            time.sleep(every_s)
            trim_heap()

    thread = threading.Thread(target=forever, name="heap", daemon=True)
    thread.start()
    return thread


def _glibc() -> Any | None:
    """The C library where it is glibc; others give these names to functions of other kinds."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    return library
