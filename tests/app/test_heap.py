"""Threads share one arena, where the C library has arenas."""

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


def arenas(kind: str) -> int:
    command = [sys.executable, "-c", COUNT, kind]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_one_arena() -> None:
    assert arenas("shared") == 1
    assert arenas("apart") > 1


def test_who_chose_a_number_of_arenas_keeps_it() -> None:
    assert share_heap({"MALLOC_ARENA_MAX": "4"}) is False
