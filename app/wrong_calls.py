"""Calls that Gradio cannot make sense of are answered with what would be right, not with "500"."""

from __future__ import annotations

import re

from fastapi import FastAPI
from gradio.route_utils import FnIndexInferError
from gradio.routes import App
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount

from app import text

CALL = re.compile(r"/gradio_api/call/(?:v2/)?(?P<name>[^/]*)/?")
INFO = "/gradio_api/info"


def explain_wrong_calls(app: FastAPI) -> None:
    """Answer 404 to a call of no known name, and 422 to one with wrong parameters.

    Args:
        app: What Gradio's app is mounted in.
    """
    (server,) = [m.app for m in app.routes if isinstance(m, Mount) and isinstance(m.app, App)]

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        found = CALL.fullmatch(request.scope["path"])
        if found is None:
            raise error
        return _refusal(404, f"there is no call {found['name']!r}")

    async def wrong(request: Request, error: Exception) -> JSONResponse:
        if CALL.fullmatch(request.scope["path"]) is None:
            raise error
        # Gradio's own words go on with advice on its page.
        return _refusal(422, str(error).partition(". ")[0].rstrip("."))

    server.add_exception_handler(KeyError, unknown)
    server.add_exception_handler(FnIndexInferError, unknown)
    server.add_exception_handler(TypeError, wrong)


def _refusal(status: int, what: str) -> JSONResponse:
    words = text.ERROR_CALL.format(what=what, info=INFO)
    return JSONResponse({"detail": words}, status_code=status)
