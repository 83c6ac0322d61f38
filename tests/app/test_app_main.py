"""The command line: help, refusals with exit code 2, and a real start."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.__main__ import listen, main, own_folder
from app.settings import Settings, option, variable
from tests.app.folders import copy_of, flip_byte, ids_by_mitigation
from tests.sources import ROOT


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`main` sets a variable and the logs of its process; other tests must not see that."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_help_names_every_option_with_its_variable_and_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    # Help breaks lines at the hyphens of a path too.
    shown = "".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Settings):
        assert option(field.name) in shown
        assert f"(default{field.default};${variable(field.name)})" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "NB_PORT (--port) must be a whole number from 0 to 65535"),
        (
            ["--device", "tpu"],
            "NB_DEVICE (--device) must be one of auto, cpu, cuda, tensorrt, got 'tpu'",
        ),
        (["--checkpoints", "/no/such", "--port", "0"], "/no/such/manifest.json does not exist"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen on 192.0.2.1 port 0"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert words in said
    assert "Traceback" not in said


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in (
        capsys.readouterr().err
    )


def test_a_folder_of_damaged_variants_is_not_served(
    tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_of(tiny_checkpoints, tmp_path)
    for key in ids_by_mitigation(folder).values():
        flip_byte(folder / key / "model.onnx")
    assert main(["--checkpoints", str(folder), "--port", "0", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "sha256" in said


def test_port_zero_takes_a_free_one() -> None:
    with contextlib.closing(listen(Settings(port=0))) as bound:
        host, port = bound.getsockname()
    assert host == "127.0.0.1"
    assert port > 0


def test_uploads_lie_where_no_other_user_looks(tmp_path: Path) -> None:
    folder = own_folder(str(tmp_path / "gradio"))
    assert folder == tmp_path / "gradio" / f"neural-burden-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert own_folder(str(tmp_path / "gradio")) == folder


@pytest.mark.slow
def test_it_starts_says_where_and_on_what_and_answers(tiny_checkpoints: Path) -> None:
    command = [sys.executable, "-m", "app", "--checkpoints", str(tiny_checkpoints), "--port", "0"]
    environment = os.environ | {"NB_DEVICE": "cpu", "NB_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    guard = threading.Timer(120, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        found = re.search(r"http://127\.0\.0\.1:\d+", said[0])
        assert found is not None, said
        assert said[1] == "Predictions run on CPUExecutionProvider, gradients on cpu.\n"
        ids = ids_by_mitigation(tiny_checkpoints)
        assert all(key in said[2] for key in ids.values())
        assert httpx.get(f"{found[0]}/healthz", timeout=60).json() == {"status": "ok"}
        assert "<gradio-app" in httpx.get(found[0], timeout=60).text
    finally:
        guard.cancel()
        process.terminate()
        process.wait(30)
