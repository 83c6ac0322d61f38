"""The app as a process of its own, as operators run it, and calls by plain HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from tests.sources import ROOT

API = "/gradio_api"


@dataclass(frozen=True, kw_only=True)
class AppProcess:
    """A running `python -m app`."""

    process: subprocess.Popen[str]
    url: str
    log: IO[str]
    """Where its standard error goes."""

    def said(self) -> str:
        """Its log so far."""
        self.log.flush()
        return Path(self.log.name).read_text(encoding="utf-8")

    def gauge(self, name: str) -> float:
        """A value of /metrics, 0 where it has not been counted yet."""
        lines = httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    def wait_until(self, name: str, least: float, seconds: float = 60) -> None:
        """Wait for a value of /metrics."""
        deadline = time.monotonic() + seconds
        while self.gauge(name) < least:
            assert time.monotonic() < deadline, f"{name} stayed below {least}"

    def upload(self, path: Path) -> str:
        """Path of an uploaded file on the server."""
        files = {"files": (path.name, path.read_bytes())}
        return str(httpx.post(f"{self.url}{API}/upload", files=files, timeout=60).json()[0])

    def ask(self, endpoint: str, uploaded: str, **values: Any) -> str:
        """Begin a call; its id."""
        photo = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
        asked = {"image": photo, **values}
        answer = httpx.post(f"{self.url}{API}/call/v2/{endpoint}", json=asked, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["event_id"])

    def fetch(self, endpoint: str, event: str) -> str:
        """The stream of a call's answer."""
        return httpx.get(f"{self.url}{API}/call/{endpoint}/{event}", timeout=120).text


@contextlib.contextmanager
def app_process(
    checkpoints: Path, folder: Path, *options: str, port: int = 0
) -> Iterator[AppProcess]:
    """Start the app on a checkpoint folder; killed at the end if it still runs.

    Args:
        checkpoints: What it serves.
        folder: Uploads and the log go here.
        options: More of its command line.
        port: Where it listens; 0 takes a free one.
    """
    command = [sys.executable, "-m", "app", "--checkpoints", str(checkpoints), "--device", "cpu"]
    command += ["--threads", "1", "--port", str(port), *options]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(folder)}
    with (folder / "log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        guard = threading.Timer(240, process.kill)
        guard.start()
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", first)
            assert found is not None, Path(log.name).read_text(encoding="utf-8")
            yield AppProcess(process=process, url=found[0], log=log)
        finally:
            guard.cancel()
            process.kill()
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()
