"""The app that a bench measures: one that is served already, or one that is started for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from nbcore.provenance import device_name, library_versions, source_commit

START_S = 300
STOP_S = 60


def about(command: str) -> dict[str, Any]:
    """Command, device, versions and commit, for the record of a bench on this machine."""
    cuda = torch.cuda.is_available()
    return {
        "command": command,
        "device": device_name(torch.device("cuda" if cuda else "cpu")),
        "device_type": "cuda" if cuda else "cpu",
        "versions": library_versions(),
        "commit": source_commit(),
    }


@contextlib.contextmanager
def served(url: str | None, options: Sequence[str]) -> Iterator[str]:
    """Address of a ready app.

    Args:
        url: Of one that is served; None starts one, which ends with the block.
        options: Of `python -m app`, for the one that is started.

    Raises:
        RuntimeError: If it cannot be started, or is not ready in time.
    """
    if url is not None:
        _wait_ready(url, None)
        yield url.rstrip("/")
        return
    command = [sys.executable, "-m", "app", "--port", "0", *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ.copy(),
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                process.wait(10)
                log.seek(0)
                last = log.read().strip().splitlines()[-1:] or ["it said nothing"]
                raise RuntimeError(f"the app did not start: {last[0]}")
            _wait_ready(found[0], process)
            yield found[0]
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what was started is stopped too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_ready(url: str, process: subprocess.Popen[str] | None) -> None:
    deadline, standing = time.monotonic() + START_S, "it does not answer"
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the app ended with status {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"{url}/readyz", timeout=30)
            if answer.status_code == 200:
                return
            standing = answer.text
        time.sleep(0.2)
    raise RuntimeError(f"{url} is not ready after {START_S} s: {standing}")
