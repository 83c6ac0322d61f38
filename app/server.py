"""FastAPI around the page: /healthz, /readyz, /metrics and, at the root, Gradio's page and API."""

from __future__ import annotations

import asyncio
import os
from typing import Any

# Captum brings pyplot, at which Gradio looks before every call: while another thread imports it
# for the first time, that call would fail. So it is here whole before anything is served.
import captum.attr  # noqa: F401
import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app import gallery
from app.errors import UserError
from app.first_view import Beforehand
from app.gate import MEGABYTE, Gate, Guarded
from app.journal import Journal
from app.logs import log_call
from app.metrics import Gauges, Metrics
from app.outgoing import answer_quickly
from app.readable import script
from app.remote import fetch_within
from app.service import Service
from app.sessions import Sessions, forget_stream
from app.settings import Settings
from app.takeaway import FILES, Takeaway
from app.theme import FAVICON, STYLES, theme
from app.ui import build_page
from app.watch import watch
from app.wrong_calls import explain_wrong_calls

SESSIONS = 500
"""Open pages whose results are remembered; the oldest forgets first."""
DRAWN_AT_ONCE = 2
"""Files to take away that are made at the same time: a picture takes a second of a core."""
FURTHER_THREADS = 31
"""For calls that are answered at once, such as /models. Odd, so that the sum is never 40, for which
Gradio takes the pool of threads that reads all files."""
SUMMARIES = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(2**62)}
"""After each call, Gradio sums up the last 10,000 for a page that nobody sees; /metrics counts."""


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The whole web application.

    Args:
        service: Answers the page and the API.
        settings: Limits of uploads, queue and concurrency.
    """
    app = FastAPI(title="neural burden", docs_url=None, redoc_url=None, openapi_url=None)
    files, drawing = Takeaway(service), asyncio.Semaphore(DRAWN_AT_ONCE)

    @app.get("/take/{token}/{name}")
    async def take(token: str, name: str) -> Response:
        """A file of an open page, made now."""
        try:
            async with drawing:
                data = await asyncio.to_thread(files.file, token, name)
        except UserError as error:
            return PlainTextResponse(str(error), status_code=404)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        headers |= {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type=FILES[name][0], headers=headers)

    first = Beforehand(service, gallery.read_examples())
    page = build_page(service, files, first, concurrency=settings.concurrency)
    os.environ.update(SUMMARIES)
    # Both lines at once, and what waits in none.
    page.max_threads = 2 * settings.concurrency + FURTHER_THREADS
    page.queue(max_size=settings.queue_size, api_open=False)
    page.state_session_capacity = SESSIONS
    # Mounting leaves this False, and then a client may name any file of the server as its upload.
    page.has_launched = True
    _guard(app, page, service, settings)
    app.state.first = first
    app.state.page = page
    mounted = gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css_paths=list(STYLES),
        head=script(),
        favicon_path=str(FAVICON),
        allowed_paths=[str(gallery.FOLDER)],
        max_file_size=int(settings.max_upload_mb * MEGABYTE),
        show_error=False,
        ssr_mode=False,
        run_history=False,
        mcp_server=True,
        footer_links=["api"],
    )
    Sessions(page, mounted)
    fetch_within(settings.max_upload_mb)
    answer_quickly()
    explain_wrong_calls(mounted)
    # Mounting writes the page's config, which this one changes.
    first.start()
    return mounted


def _guard(app: FastAPI, page: gr.Blocks, service: Service, settings: Settings) -> None:
    """Routes for operators, and the gate before all others; `app.state` keeps gate and journal."""
    journal = Journal()
    gate = Gate(
        settings=settings,
        journal=journal,
        queued=lambda: len(page._queue),
        fetched=lambda session: forget_stream(page, session),
    )
    watch(page, journal)
    status = service.status()
    gauges = Gauges(
        running=lambda: journal.running,
        queued=gate.queued,
        queue_size=settings.queue_size,
        runs_waiting=service.predictor.waiting,
        served=lambda: len(service.variants()),
        refused=lambda: len(service.refused()),
        ready=lambda: _standing(service, gate)["ready"],
    )
    metrics = Metrics(gauges, provider=status.provider, device=status.device)
    journal.listeners += [metrics.call, log_call]
    service.predictor.watch(metrics.batch)
    app.state.gate, app.state.journal = gate, journal
    app.add_middleware(Guarded, gate=gate)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 while calls may be sent here, else 503; the body tells what is served and on what."""
        state = _standing(service, gate)
        return JSONResponse(state, status_code=200 if state["ready"] else 503)

    @app.get("/metrics")
    async def metrics_route() -> Response:
        """What Prometheus reads."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _standing(service: Service, gate: Gate) -> dict[str, Any]:
    """Ready means: variants were verified, all have been run and held against torch, and the server
    is not stopping."""
    status = service.status()
    variants = [info.id for info in service.variants()]
    return {
        "ready": bool(variants) and status.ready and not gate.closed,
        "checked": status.ready,
        "stopping": gate.closed,
        "provider": status.provider,
        "device": status.device,
        "variants": variants,
        "refused": dict(status.refused),
        "parity": dict(status.parity),
    }
