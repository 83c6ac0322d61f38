"""The app on a port of this machine, started once for all tests of a process, and photos for it."""

from __future__ import annotations

import functools
import io
import threading
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
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
