from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from app.settings import Settings, option, variable


def test_environment_gives_typed_values_and_overrides_win() -> None:
    environ = {
        "NB_HOST": " 0.0.0.0 ",
        "NB_PORT": "8000",
        "NB_CHECKPOINTS": "~/here",
        "NB_DEVICE": "CPU",
        "NB_MAX_UPLOAD_MB": "2.5",
        "NB_CONCURRENCY": "",
        "PORT": "1",
    }
    found = Settings.from_environment(environ, port="9000", threads=3, host=None)
    assert found == Settings(
        host="0.0.0.0",
        port=9000,
        checkpoints=Path.home() / "here",
        device="cpu",
        threads=3,
        max_upload_mb=2.5,
    )


def test_defaults_are_those_of_the_readme() -> None:
    found = Settings.from_environment({})
    assert (found.port, found.device, found.max_upload_mb, found.max_megapixels) == (
        7860,
        "auto",
        20,
        40,
    )
    assert found.checkpoints == Path(__file__).parents[2] / "checkpoints"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", " "),
        ("port", "seven"),
        ("port", "65536"),
        ("port", "-1"),
        ("device", "tpu"),
        ("threads", "1.5"),
        ("concurrency", "0"),
        ("queue_size", "0"),
        ("max_upload_mb", "nan"),
        ("max_upload_mb", "0"),
        ("max_megapixels", "inf"),
        ("max_megapixels", "-3"),
        ("max_request_mb", "0"),
        ("rate_per_minute", "-1"),
        ("trusted_proxies", " "),
        ("stop_seconds", "0"),
        ("log_format", "xml"),
    ],
)
def test_a_wrong_value_is_answered_with_its_names_and_what_is_right(name: str, value: str) -> None:
    right = next(f for f in dataclasses.fields(Settings) if f.name == name).metadata["right"]
    with pytest.raises(ValueError, match="must be") as caught:
        Settings.from_environment({}, **{name: value})
    for part in (variable(name), option(name), right, value.strip()):
        assert part in str(caught.value)


def test_the_environment_is_checked_like_options() -> None:
    with pytest.raises(ValueError, match=r"NB_PORT \(--port\) must be a whole number .* 'x'"):
        Settings.from_environment({"NB_PORT": "x"})


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown settings \['prot'\]; available: host, port"):
        Settings.from_environment({}, prot=1)


def test_names_follow_the_fields() -> None:
    assert variable("max_upload_mb") == "NB_MAX_UPLOAD_MB"
    assert option("max_upload_mb") == "--max-upload-mb"
