"""What every test runs under: few threads, loopback only; and the browser of the browser tests."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Read while torch, huggingface_hub, gradio and matplotlib are imported, so set before any test is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["MPLBACKEND"] = "Agg"
# Servers of test processes side by side must not sweep each other's uploads.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["GRADIO_TEMP_DIR"] = str(Path(tempfile.gettempdir()) / f"neural-burden-{worker}")

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    # A moving test picture in place of a camera, with leave to use it.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


Maker = Callable[[Path], None]
"""Fills a folder that does not exist yet."""


class NetworkBlockedError(OSError):
    """A test tried to leave this machine; an OSError, so that libraries believe to be offline."""


def is_loopback(host: object) -> bool:
    """Whether a host name or address stays on this machine; names other than its own do not."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%", 1)[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse_unless_loopback(host: object) -> None:
    """Raises NetworkBlockedError for any host but this machine."""
    if not is_loopback(host):
        raise NetworkBlockedError(f"tests may reach loopback addresses only, not {host!r}")


def guard_sockets(patch: pytest.MonkeyPatch) -> None:
    """Lets sockets of this process connect, send and resolve on this machine only."""

    def guarded(name: str, position: int) -> None:
        original = getattr(socket.socket, name)

        def method(self: socket.socket, *args: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse_unless_loopback(args[position][0])
            return original(self, *args)

        patch.setattr(socket.socket, name, method)

    guarded("connect", 0)
    guarded("connect_ex", 0)
    guarded("sendto", -1)

    def guarded_lookup(name: str) -> None:
        original = getattr(socket, name)

        def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
            refuse_unless_loopback(host)
            return original(host, *args, **kwargs)

        patch.setattr(socket, name, lookup)

    guarded_lookup("getaddrinfo")
    guarded_lookup("gethostbyname")


def pytest_configure(config: pytest.Config) -> None:
    """Guards before collection, as a module may ask for the network while it is imported."""
    patch = pytest.MonkeyPatch()
    guard_sockets(patch)
    config.add_cleanup(patch.undo)


@pytest.fixture(scope="session")
def chromium_executable() -> str | None:
    """Path of a Chromium that runs: $NB_CHROMIUM, else the system's; None: Playwright's own."""
    chosen = os.environ.get("NB_CHROMIUM")
    if chosen:
        return chosen
    for name in BROWSER_NAMES:
        path = shutil.which(name)
        # A stub that only asks for a snap is on the path too, but prints no version.
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


@pytest.fixture(scope="module")
def browser(chromium_executable: str | None) -> Iterator[Any]:
    """A headless Chromium (playwright.sync_api.Browser); its absence is a failure, never a skip.

    Per module, since Playwright's synchronous API holds the thread's event loop while it is open.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=chromium_executable, args=list(BROWSER_FLAGS)
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Maker], Path]:
    """Makes a folder on first use, once for all processes of a test run; read-only for tests."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, maker: Maker) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                unfinished = tmp_path_factory.mktemp(name) / name
                maker(unfinished)
                unfinished.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_checkpoints(made_once: Callable[[str, Maker], Path]) -> Path:
    """A checkpoint folder made by the real pipeline: recipe `shapes-quick` at one epoch per model.

    Read-only for tests: copy it (`shutil.copytree`) before changing anything.
    """
    from dataclasses import replace

    import torch

    from nbcore.pipeline import run_variant
    from nbcore.recipes import RECIPES

    def make(folder: Path) -> None:
        for config in RECIPES["shapes-quick"]():
            epochs = 3 if config.base is None else 1
            config = replace(config, train=replace(config.train, epochs=((32, epochs),)))
            done = run_variant(config, folder, None, torch.device("cpu"), command="tests")
            assert done == "exported"

    return made_once("tiny-checkpoints", make)


@pytest.fixture(scope="session")
def asked_checkpoints(tiny_checkpoints: Path, made_once: Callable[[str, Maker], Path]) -> Path:
    """The same with answers of its variants on all test photos, 24 of them packed; read-only."""
    import torch

    from nbcore.flips import renew_flips

    def make(folder: Path) -> None:
        shutil.copytree(tiny_checkpoints, folder)
        work = folder.parent / "work"
        device = torch.device("cpu")
        renew_flips(folder, "shapes", data_dir=None, device=device, work_dir=work, num_photos=24)

    return made_once("asked-checkpoints", make)
