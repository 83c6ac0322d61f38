"""The C library's heap, shared by all threads, so that what one of them freed serves the next.

glibc lends each thread an arena of its own, up to eight for each core, and an arena keeps what is
freed in it. Photos and gradients are tens of megabytes a call, and calls come to other threads each
time, so the free rests of all arenas together grew beyond what was in use.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

ARENAS = 1
"""Threads of this app spend their time inside models; they seldom ask for memory together."""
M_ARENA_MAX = -8
"""As malloc.h names it."""


def share_heap(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether threads share one arena from here on; only glibc has arenas.

    Call it before other threads begin, since arenas that are there stay.

    Args:
        environ: Where `MALLOC_ARENA_MAX` leaves the choice to whoever set it.
    """
    if "MALLOC_ARENA_MAX" in environ:
        return False
    try:
        library = ctypes.CDLL(None)
        # Others call a function so too, and take its argument for something else.
        library.gnu_get_libc_version  # noqa: B018
        return bool(library.mallopt(M_ARENA_MAX, ARENAS))
    except (AttributeError, OSError, TypeError):
        return False
