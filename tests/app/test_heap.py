"""Threads share one arena, where the C library has arenas, and free pages go back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from app.heap import share_heap
from tests.sources import ROOT

# Each thread holds and frees blocks too small to be mapped by themselves; malloc_info tells how
# many arenas that made.
COUNT = """
import ctypes, sys, threading
from app.heap import share_heap
if sys.argv[1] == "shared":
    assert share_heap({})
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.fopen.restype, library.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
met = threading.Barrier(4)
def work():
    block = library.malloc(60_000)
    met.wait(30)
    library.free(block)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
stream = library.fopen(b"/dev/stdout", b"w")
library.malloc_info(0, stream)
library.fclose(stream)
"""

# Blocks too small to be mapped by themselves, between others that stay: 100 MB of holes.
HOLES = """
import ctypes, psutil
from app.heap import keep_trimmed, share_heap, trim_heap
share_heap({})
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [library.malloc(100_000) for _ in range(2000)]
for block in blocks: ctypes.memset(block, 1, 100_000)
for block in blocks[::2]: library.free(block)
full = psutil.Process().memory_info().rss
keep_trimmed(0.0).join(0.5)
print(full - psutil.Process().memory_info().rss)
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")


def said(source: str, *arguments: str) -> str:
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def arenas(kind: str) -> int:
    return said(COUNT, kind).count("<heap nr=")


@GLIBC
def test_threads_share_one_arena() -> None:
    assert arenas("shared") == 1
    assert arenas("apart") > 1


def test_who_chose_a_number_of_arenas_keeps_it() -> None:
    assert share_heap({"MALLOC_ARENA_MAX": "4"}) is False


@GLIBC
def test_free_pages_between_others_go_back() -> None:
    assert int(said(HOLES)) > 80e6
