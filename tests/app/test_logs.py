"""Logs: one object a line, and nothing of a visitor's photo."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from gradio import queueing, route_utils, routes
from gradio.utils import get_upload_folder

from app.journal import Call
from app.logs import LINE, JsonFormatter, PlainFormatter, log_call, set_up


def record(message: str, *, exc_info: object = None, **extra: object) -> logging.LogRecord:
    found = logging.LogRecord("app.x", logging.ERROR, "file", 1, message, (), exc_info)  # type: ignore[arg-type]
    found.__dict__.update(extra)
    return found


def test_a_call_is_one_object_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "app.calls")
    log_call(Call(name="predict", outcome="refused", reason="UserError", seconds=0.12345))
    (found,) = caplog.records
    line = JsonFormatter().format(found)
    assert "\n" not in line
    entry = json.loads(line)
    time = entry.pop("time")
    assert time.endswith("+00:00")
    assert entry == {
        "level": "INFO",
        "logger": "app.calls",
        "message": "predict refused (UserError) after 0.123 s",
        "call": "predict",
        "outcome": "refused",
        "reason": "UserError",
        "seconds": 0.1235,
    }


@pytest.mark.parametrize("formatter", [JsonFormatter(), PlainFormatter(LINE)])
def test_names_of_uploads_stay_out_of_messages_and_tracebacks(formatter: logging.Formatter) -> None:
    path = f"{get_upload_folder()}/0a1b/My holiday, day 2.jpg"
    try:
        raise OSError(f"cannot open '{path}'")
    except OSError:
        line = formatter.format(record(f"failed on {path}", exc_info=sys.exc_info()))
    assert "holiday" not in line
    assert "0a1b" not in line
    assert line.count("<upload>") == 2
    assert "cannot open" in line


def test_tracebacks_of_gradio_pass_by_no_formatter(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    for module in (queueing, routes, route_utils):
        monkeypatch.setattr(module, "traceback", module.traceback)
    set_up("json")
    path = f"{get_upload_folder()}/0a1b/My holiday.jpg"
    try:
        raise ValueError(f"received {path}")
    except ValueError:
        queueing.traceback.print_exc()
    (line,) = capfd.readouterr().err.splitlines()
    entry = json.loads(line)
    assert "received <upload>" in entry["traceback"]
    assert "holiday" not in line
