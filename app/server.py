"""FastAPI around the page: /healthz, /readyz and, at the root, Gradio's page and API."""

from __future__ import annotations

from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from app import gallery
from app.service import Service
from app.settings import Settings
from app.theme import CSS, FAVICON, theme
from app.ui import build_page

MEGABYTE = 1024 * 1024
"""As Gradio counts them in the sentence it shows."""
SESSIONS = 500
"""Open pages whose results are remembered; the oldest forgets first."""


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The whole web application.

    Args:
        service: Answers the page and the API.
        settings: Limits of uploads, queue and concurrency.
    """
    app = FastAPI(title="neural burden", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """200 while at least one variant is served, else 503; the body tells which and on what."""
        state = _standing(service)
        return JSONResponse(state, status_code=200 if state["ready"] else 503)

    page = build_page(service, concurrency=settings.concurrency)
    page.queue(max_size=settings.queue_size, api_open=False)
    page.state_session_capacity = SESSIONS
    # Mounting leaves this False, and then a client may name any file of the server as its upload.
    page.has_launched = True
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css_paths=[CSS],
        favicon_path=str(FAVICON),
        allowed_paths=[str(gallery.FOLDER)],
        max_file_size=int(settings.max_upload_mb * MEGABYTE),
        show_error=False,
        ssr_mode=False,
        run_history=False,
        footer_links=["api"],
    )


def _standing(service: Service) -> dict[str, Any]:
    status = service.status()
    variants = [info.id for info in service.variants()]
    return {
        "ready": bool(variants),
        "checked": status.ready,
        "provider": status.provider,
        "device": status.device,
        "variants": variants,
        "refused": dict(status.refused),
        "parity": dict(status.parity),
    }
