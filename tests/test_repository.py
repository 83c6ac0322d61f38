"""What a clone promises: sizes, the Space's front matter, the image, its commands, no network."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.sources import ROOT

LARGEST_FILE_BYTES = 25_000_000
LARGEST_CHECKPOINTS_BYTES = 120_000_000
PICKLED = {".pt", ".pth", ".pkl", ".pickle", ".ckpt"}

# https://huggingface.co/docs/hub/spaces-config-reference; `license` as in every repository's card.
FRONT_MATTER_KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version"),
    *("suggested_hardware", "suggested_storage", "app_file", "app_port", "base_path", "fullWidth"),
    *("header", "short_description", "models", "datasets", "tags", "thumbnail", "pinned"),
    *("hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes", "disable_embedding"),
    *("startup_duration_timeout", "custom_headers", "preload_from_hub", "license"),
}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def repository_files() -> list[Path]:
    """Files that git tracks or would; all but hidden folders where this is no git checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        files = {ROOT / name for name in listed.stdout.split("\0") if name}
    else:
        tops = [path for path in ROOT.iterdir() if not path.name.startswith(".")]
        files = {path for top in tops for path in (top, *top.rglob("*"))}
    return sorted(path for path in files if path.is_file())


def too_large(files: Iterable[Path], limit_bytes: int) -> list[str]:
    """Names and sizes of the files above a limit."""
    sizes = [(path.name, path.stat().st_size) for path in files]
    return [f"{name}: {size} bytes" for name, size in sizes if size > limit_bytes]


def front_matter_faults(front: dict[str, Any]) -> list[str]:
    """What a Space would refuse or ignore in a README's front matter."""
    faults = [f"undocumented key {key}" for key in front.keys() - FRONT_MATTER_KEYS]
    faults += [f"{key} is missing" for key in ("title", "emoji", "sdk") if not front.get(key)]
    for key in ("colorFrom", "colorTo"):
        if front.get(key) not in COLOURS:
            faults.append(f"{key} must be one of {sorted(COLOURS)}, got {front.get(key)!r}")
    if len(front.get("short_description", "")) > 60:
        faults.append("short_description is longer than 60 characters")
    if not isinstance(front.get("pinned", False), bool):
        faults.append("pinned must be true or false")
    return faults + SDK_FAULTS.get(front.get("sdk", ""), lambda _: ["unknown sdk"])(front)


def docker_faults(front: dict[str, Any]) -> list[str]:
    """What a Docker Space needs on top."""
    port = front.get("app_port")
    return [] if port == 7860 else [f"app_port must be 7860, got {port!r}"]


def gradio_faults(front: dict[str, Any]) -> list[str]:
    """What a Gradio Space needs on top; its version of Gradio is installed beside requirements."""
    faults = []
    lines = [line for line in text_of("requirements.txt").splitlines() if line[:6] == "gradio"]
    if str(front.get("sdk_version")) not in Requirement(lines[0]).specifier:
        faults.append(f"sdk_version must fit {lines[0]}, got {front.get('sdk_version')!r}")
    if not (ROOT / str(front.get("app_file"))).is_file():
        faults.append(f"app_file is not there: {front.get('app_file')!r}")
    if not re.fullmatch(r"3\.\d+", str(front.get("python_version"))):
        faults.append(f"python_version must be text as '3.12', got {front.get('python_version')!r}")
    return faults


SDK_FAULTS = {"docker": docker_faults, "gradio": gradio_faults}


def front_matter(path: str = "README.md") -> dict[str, Any]:
    parts = text_of(path).split("---\n")
    assert parts[0] == "", f"the front matter must be the first thing in {path}"
    return yaml.safe_load(parts[1])


def test_no_file_is_too_large_for_the_hub() -> None:
    assert too_large(repository_files(), LARGEST_FILE_BYTES) == []


def test_checkpoints_keep_their_budget_and_hold_no_pickles() -> None:
    files = [path for path in repository_files() if path.is_relative_to(ROOT / "checkpoints")]
    assert sum(path.stat().st_size for path in files) <= LARGEST_CHECKPOINTS_BYTES
    assert [path.name for path in files if path.suffix in PICKLED] == []


def test_a_large_file_is_named(tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    with large.open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    small.touch()
    assert too_large([large, small], LARGEST_FILE_BYTES) == ["large: 25000001 bytes"]


@pytest.mark.parametrize(
    ("path", "sdk"), [("README.md", "docker"), ("deploy/README.gradio.md", "gradio")]
)
def test_front_matter_is_what_a_space_takes(path: str, sdk: str) -> None:
    front = front_matter(path)
    assert front["sdk"] == sdk
    assert front_matter_faults(front) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("sdk_version", "5.0.0"), ("app_file", "app.py"), ("python_version", 3), ("header", "mini")],
)
def test_wrong_front_matter_of_a_gradio_space_is_found(key: str, value: object) -> None:
    faults = front_matter_faults({**front_matter("deploy/README.gradio.md"), key: value})
    assert len(faults) == (key != "header")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sdk", "static"),
        ("app_port", 8080),
        ("colorFrom", "orange"),
        ("colour", "red"),
        ("emoji", ""),
        ("short_description", "x" * 61),
        ("pinned", "no"),
    ],
)
def test_wrong_front_matter_is_found(key: str, value: object) -> None:
    assert len(front_matter_faults({**front_matter(), key: value})) == 1


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("win32", "AMD64", "onnxruntime"),
    ],
)
def test_exactly_one_onnxruntime_is_required(system: str, machine: str, expected: str) -> None:
    lines = [line for line in text_of("requirements.txt").splitlines() if line[:1] not in ("#", "")]
    here = {"sys_platform": system, "platform_machine": machine}
    chosen = [r for r in map(Requirement, lines) if not r.marker or r.marker.evaluate(here)]
    assert [r.name for r in chosen if r.name.startswith("onnxruntime")] == [expected]


def test_ci_runs_the_second_command_of_the_readme() -> None:
    commands = re.findall(r"^bash (\S+)", text_of("README.md"), re.M)
    assert commands[:2] == ["start.sh", "tests/run"]
    assert text_of(".ci/run").splitlines()[-1] == "bash tests/run"


def test_readme_names_only_files_that_exist() -> None:
    names = re.findall(r"\]\((?!https?:)([^)#]+)\)", text_of("README.md"))
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_readme_commands_are_commands_of_nbcore() -> None:
    from nbcore.__main__ import parser

    commands = re.findall(r"python -m nbcore ([^`\n]+)", text_of("README.md"))
    commands = [command for command in commands if "--help" not in command]
    assert {command.split()[0] for command in commands} >= {
        "run",
        "data",
        "verify",
        "add",
        "export",
    }
    for command in commands:
        parser().parse_args(shlex.split(command))


def test_sockets_refuse_to_leave_this_machine() -> None:
    with socket.socket() as tcp, pytest.raises(OSError, match=r"not '192\.0\.2\.1'"):
        tcp.connect(("192.0.2.1", 80))
    with pytest.raises(OSError, match=r"not 'example\.org'"):
        socket.create_connection(("example.org", 80), timeout=1)


def test_sockets_reach_this_machine() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(("localhost", server.getsockname()[1])) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(b"here")
        assert accepted.recv(4) == b"here"


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine whose path holds only stubs; each writes its name and arguments to `calls`."""
    bin_folder = tmp_path / "bin"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    bin_folder.mkdir()
    (bin_folder / "env").symlink_to(shutil.which("env") or "")
    add_command(tmp_path, "id", "echo 1000")
    add_command(tmp_path, "sudo", '"$@"')
    add_command(tmp_path, "../.venv/bin/python", "exit 0")
    return tmp_path


def add_command(machine: Path, name: str, body: str) -> None:
    path = machine / "bin" / name
    log = f'printf "%s\\n" "{path.name} $*" >> "{machine}/calls"\n'
    path.write_text(f"#!{shutil.which('bash')}\n{log}{body}\n", encoding="utf-8")
    path.chmod(0o755)


def run_there(machine: Path, function: str, **environment: str) -> tuple[str, list[str]]:
    """What a function of environment.sh prints on that machine, and the commands it ran there."""
    done = subprocess.run(
        [shutil.which("bash") or "", "-euc", f'. "{ROOT}/environment.sh"; {function}'],
        cwd=machine,
        env={"PATH": str(machine / "bin"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), (machine / "calls").read_text(encoding="utf-8").splitlines()


def test_a_browser_counts_only_if_it_runs(machine: Path) -> None:
    add_command(machine, "chromium-browser", "exit 1")
    add_command(machine, "google-chrome", "exit 0")
    add_command(machine, "mine", "exit 0")
    assert run_there(machine, "find_chromium")[0] == f"{machine}/bin/google-chrome"
    chosen, _ = run_there(machine, "find_chromium", NB_CHROMIUM=f"{machine}/bin/mine")
    assert chosen == f"{machine}/bin/mine"


def test_a_missing_browser_comes_by_apt(machine: Path) -> None:
    add_command(machine, "apt-get", f'cp "{machine}/bin/id" "{machine}/bin/chromium"')
    (machine / "bin" / "cp").symlink_to(shutil.which("cp") or "")
    _, calls = run_there(machine, "make_browser")
    assert "apt-get install -qy --no-install-recommends chromium fonts-dejavu-core" in calls
    assert any(call.startswith("sudo env") for call in calls)
    assert not any("playwright" in call for call in calls)


def test_without_apts_browser_playwright_brings_its_own(machine: Path) -> None:
    _, calls = run_there(machine, "make_browser")
    assert calls[-1] == "python -m playwright install chromium"
    add_command(machine, "apt-get", "exit 100")
    _, calls = run_there(machine, "make_browser")
    assert calls[-1] == "python -m playwright install --with-deps chromium"
