"""The Dockerfile: what a real linter says, that its steps are understood, and what the image leaves
out."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from space import SETTINGS
from tests.image.dockerfile import Step, context, parse
from tests.sources import ROOT

STEPS = parse((ROOT / "Dockerfile").read_text(encoding="utf-8"))
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def steps(name: str) -> list[Step]:
    return [step for step in STEPS if step.name == name]


def hadolint(dockerfile: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "style", "-"]
    return subprocess.run(command, input=dockerfile, capture_output=True, text=True)


def test_hadolint_finds_nothing() -> None:
    done = hadolint((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_is_the_real_one() -> None:
    done = hadolint("FROM debian\nRUN apt-get install curl\n")
    assert done.returncode != 0
    assert "DL3006" in done.stdout


def test_lines_are_joined_and_comments_left_out() -> None:
    text = '# one\nFROM a\n\nRUN b \\\n    && c\n# two\nENV A=1 \\\n    B=$A:2\nCMD ["x", "y"]\n'
    found = parse(text)
    assert [(step.line, step.name, step.value) for step in found] == [
        (2, "FROM", "a"),
        (4, "RUN", "b && c"),
        (7, "ENV", "A=1 B=$A:2"),
        (9, "CMD", '["x", "y"]'),
    ]
    assert found[2].variables == {"A": "1", "B": "$A:2"}
    assert found[3].command == ["x", "y"]
    with pytest.raises(ValueError, match="line 1: unknown instruction 'ADD'"):
        parse("ADD a b\n")
    with pytest.raises(ValueError, match="line 1: CMD must be in exec form"):
        _ = parse("CMD python -m app\n")[0].command


def test_the_last_matching_rule_decides_what_a_build_sees(tmp_path: Path) -> None:
    for name in ("app/a.py", "app/__pycache__/a.pyc", "app/b.pyc", "data/x", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    rules = ["# all but app", "*", "!app", "**/__pycache__", "**/*.pyc"]
    assert context(tmp_path, rules) == [Path("app/a.py")]


def test_the_image_is_served_by_user_1000_on_the_port_that_it_names() -> None:
    names = [step.name for step in STEPS]
    assert [step.value for step in steps("USER")] == ["1000"]
    assert names.index("USER") < names.index("COPY")
    variables = {k: v for step in steps("ENV") for k, v in step.variables.items()}
    assert variables["NB_PORT"] == steps("EXPOSE")[0].value == "7860"
    assert variables["NB_HOST"] == "0.0.0.0"
    assert variables["HF_HUB_OFFLINE"] == variables["ORT_DISABLE_TELEMETRY"] == "1"
    assert steps("CMD")[0].command == ["python", "-m", "app"]
    assert "127.0.0.1:7860/healthz" in steps("HEALTHCHECK")[0].value


def test_variables_of_the_image_are_settings_of_the_app() -> None:
    from app.settings import Settings

    variables = {k: v for step in steps("ENV") for k, v in step.variables.items()}
    settings = Settings.from_environment(variables)
    named = {key for key in variables if key.startswith("NB_")}
    assert named <= {f"NB_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert settings.log_format == "json"
    assert settings.trusted_proxies == SETTINGS["NB_TRUSTED_PROXIES"]


@pytest.mark.parametrize(
    ("told", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        # The first is what the visitor wrote.
        ("203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("203.0.113.9, 198.51.100.7, 10.20.0.3", "198.51.100.7"),
    ],
)
def test_a_visitor_behind_a_proxy_cannot_choose_the_address(told: str, client: str) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"][0])

    scope = {
        "type": "http",
        "scheme": "http",
        "client": ("10.1.2.3", 4000),
        "headers": [(b"x-forwarded-for", told.encode())],
    }
    guarded: Any = ProxyHeadersMiddleware(app, SETTINGS["NB_TRUSTED_PROXIES"])  # type: ignore[arg-type]
    asyncio.run(guarded(scope, None, None))
    assert seen == [client]


def test_every_file_that_is_copied_is_in_the_context() -> None:
    seen = context(ROOT, IGNORE)
    assert not any(path.suffix == ".pyc" for path in seen)
    sources = {Path(step.arguments[0]) for step in steps("COPY")}
    for source in sources:
        assert any(path == source or source in path.parents for path in seen), source
    assert {path.parts[0] for path in seen} == {str(source) for source in sources}


@pytest.mark.slow
def test_the_app_needs_nothing_that_the_image_leaves_out() -> None:
    run = next(step.value for step in steps("RUN") if "pip install" in step.value)
    mark = re.search(r"sed '/\^(.+?)/,\$d'", run)
    assert mark is not None
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    _, found, left_out = text.partition(f"\n{mark[1]}")
    assert found
    names = [re.split(r"[><=;\[]", line)[0] for line in left_out.splitlines()[1:]]
    names = [name for name in names if name and not name.startswith("#")]
    assert names == ["onnxscript", "accelerate", "statsmodels"]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
        "import app.__main__, app.memory, app.server, app.stopping, app.logs, app.sweep"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
