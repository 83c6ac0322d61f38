"""The entry of a plain Gradio Space."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

import space
from app.settings import Settings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Arguments of each start; variables that are set go again."""
    for name in (*space.SETTINGS, "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
        # So that what `serve` sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    found: list[Sequence[str]] = []
    monkeypatch.setattr(space, "main", lambda arguments: found.append(arguments) or 0)
    return found


def test_it_serves_the_app_where_a_space_looks(started: list[Sequence[str]]) -> None:
    os.environ["NB_LOG_FORMAT"] = "text"
    assert space.serve() == 0
    assert started == [[]]
    settings = Settings.from_environment(os.environ)
    assert (settings.host, settings.port, settings.device) == ("0.0.0.0", 7860, "cpu")
    assert settings.log_format == "text"


def test_on_zero_gpu_it_says_what_to_choose(
    started: list[Sequence[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["SPACES_ZERO_GPU"] = "true"
    assert space.serve() == 2
    assert "choose CPU hardware" in capsys.readouterr().err
    assert started == []
