"""Logs as text or as lines of JSON; neither holds photos, names of files or texts of visitors."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from gradio import queueing, route_utils, routes
from gradio.utils import get_upload_folder

from app.journal import Call

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
UPLOAD = "<upload>"

logger = logging.getLogger("app.calls")


class PlainFormatter(logging.Formatter):
    """One line of text, tracebacks below it, without what names an uploaded file."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        return without_uploads(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, fields of a call, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        clean = {k: without_uploads(v) if isinstance(v, str) else v for k, v in entry.items()}
        return json.dumps(clean, ensure_ascii=False)


def set_up(log_format: str) -> None:
    """Send all logs to standard error.

    Args:
        log_format: One of `app.settings.LOG_FORMATS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter(LINE))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for module in (queueing, routes, route_utils):
        # They print tracebacks past all formatters, the names of visitors' files included.
        module.traceback = _Logged()  # type: ignore[attr-defined]


class _Logged:
    """What Gradio uses of the module `traceback`."""

    def print_exc(self) -> None:
        """Log the error that is being handled."""
        logging.getLogger("gradio").exception("a call failed")


def log_call(call: Call) -> None:
    """One line for a call that has ended."""
    why = f" ({call.reason})" if call.reason else ""
    logger.info(
        "%s %s%s after %.3f s",
        call.name,
        call.outcome,
        why,
        call.seconds,
        extra={
            "fields": {
                "call": call.name,
                "outcome": call.outcome,
                "reason": call.reason,
                "seconds": round(call.seconds, 4),
            }
        },
    )


def without_uploads(words: str) -> str:
    """Words in which the path of every uploaded file is left out.

    Gradio keeps the visitor's name of a file, blanks included, so all that follows the folder's
    name goes, up to a quote, a bracket or the end of the line.
    """
    return re.sub(re.escape(get_upload_folder()) + r"[^'\"\n>)\]]*", UPLOAD, words)
