"""The app on a port of this machine, started once for all tests of a process, and photos for it."""

from __future__ import annotations

import functools
import io
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import uvicorn
from PIL import Image

from app.__main__ import listen
from app.gallery import read_examples
from app.memory import RememberingService
from app.server import create_app
from app.service import Service
from app.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running app."""

    url: str
    service: Service
    page: gr.Blocks


@functools.cache
def serve(checkpoints: Path) -> Served:
    """Serve a checkpoint folder until the process ends."""
    settings = Settings(checkpoints=checkpoints, port=0, device="cpu", threads=1)
    service = RememberingService.from_settings(settings)
    bound = listen(settings)
    # Connections wait from here on, so nobody has to ask whether the server is up yet.
    bound.listen()
    app = create_app(service, settings)
    app.state.first.wait(60)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True).start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    return Served(url=url, service=service, page=app.state.page)


def function_of(served: Served, name: str) -> int:
    """Number of the first of the page's functions of a name."""
    fns = served.page.fns.items()
    return next(number for number, block in fns if getattr(block.fn, "__name__", "") == name)


def join(served: Served, session: str, function: int, *values: Any) -> str:
    """What a page's session is told until one of its functions is done, as a browser asks."""
    api = f"{served.url}/gradio_api"
    body = {"fn_index": function, "session_hash": session, "data": list(values)}
    httpx.post(f"{api}/queue/join", json=body, timeout=60).raise_for_status()
    told = httpx.get(f"{api}/queue/data", params={"session_hash": session}, timeout=60).text
    assert '"success":true' in told
    return told


def open_page(served: Served) -> str:
    """Open the page, and wait for what it shows first.

    Returns:
        What Gradio calls its session.
    """
    session = secrets.token_hex(6)
    join(served, session, function_of(served, "opened"), None, "nothing")
    return session


def example_path() -> Path:
    """A photo that the page offers."""
    return read_examples()[0].path


def broken_files(folder: Path) -> dict[Path, str]:
    """Files that are no usable picture, and part of the sentence that answers each."""
    png = io.BytesIO()
    Image.effect_noise((300, 300), 80).save(png, "PNG")
    bomb = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(bomb, "PNG")
    contents = {
        "text.jpg": (b"this is no picture", "not a picture"),
        "cut.png": (png.getvalue()[:2000], "cut short"),
        "empty.png": (b"", "not a picture"),
        "bomb.png": (bomb.getvalue(), "169.0 megapixels"),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    return {folder / name: words for name, (_, words) in contents.items()}
