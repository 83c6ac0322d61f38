"""Many requests of all kinds, from several clients at once, leave nothing behind."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app.__main__ import listen
from app.memory import RememberingService
from app.server import create_app
from app.settings import Settings
from app.sweep import sweep
from tests.app.corpus import corpus
from tests.app.serving import example_path

REQUESTS, WARM_UP, THREADS = 300, 60, 4
LIMIT_BYTES = 50e6


def hooks(service: Any) -> int:
    """Hooks on all torch twins."""
    count = 0
    for model in service.registry.models():
        with model.twin() as twin:
            for module in twin.modules():
                count += len(module._forward_hooks) + len(module._forward_pre_hooks)
                count += len(module._backward_hooks) + len(module._backward_pre_hooks)
    return count


@pytest.mark.slow
def test_300_mixed_requests_leave_no_hook_no_file_and_little_memory(
    tiny_checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temp"))
    settings = Settings(checkpoints=tiny_checkpoints, port=0, device="cpu", threads=1)
    service = RememberingService.from_settings(settings)
    bound = listen(settings)
    bound.listen()
    server = uvicorn.Server(uvicorn.Config(create_app(service, settings), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    # One for each thread: threads that share one can end each other's stream of answers.
    clients = queue.SimpleQueue[Client]()
    for _ in range(THREADS):
        clients.put(Client(url, verbose=False, download_files=False))

    def ask(*arguments: Any, api_name: str) -> Any:
        client = clients.get()
        try:
            return client.predict(*arguments, api_name=api_name)
        finally:
            clients.put(client)

    bad = tmp_path / "bad.png"
    bad.write_bytes(corpus()[0].data)
    photo, broken = handle_file(str(example_path())), handle_file(str(bad))
    methods = [
        method.name for method in service.attribution_methods() if method.name != "occlusion"
    ]

    def refused(*arguments: Any, api_name: str) -> None:
        with pytest.raises(AppError):
            ask(*arguments, api_name=api_name)

    kinds: list[Callable[[int], Any]] = [
        lambda _: ask(photo, api_name="/predict"),
        lambda _: ask(photo, None, "load", api_name="/burden"),
        lambda _: ask(photo, None, 3, api_name="/predict"),
        lambda _: refused(broken, api_name="/predict"),
        lambda _: ask(api_name="/models"),
        lambda _: refused(photo, ["nope"], api_name="/burden"),
        lambda k: ask(photo, None, methods[k % len(methods)], "own", api_name="/attribute"),
        lambda _: refused(photo, None, "magic", api_name="/attribute"),
        lambda _: ask(photo, None, "residual", api_name="/burden"),
        lambda _: ask(photo, None, "saliency", api_name="/compare"),
    ]
    before = hooks(service)
    process = psutil.Process()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda k: kinds[k % len(kinds)](k), range(WARM_UP)))
        gc.collect()
        memory, opened = process.memory_info().rss, process.num_fds()
        list(pool.map(lambda k: kinds[k % len(kinds)](k), range(REQUESTS)))
    gc.collect()
    assert process.memory_info().rss - memory < LIMIT_BYTES
    assert process.num_fds() - opened < 20
    assert hooks(service) == before
    # What was uploaded or drawn is gone with the hour.
    assert any(path.is_file() for path in (tmp_path / "temp").rglob("*"))
    sweep(tmp_path / "temp", max_age_s=-1)
    assert not any(path.is_file() for path in (tmp_path / "temp").rglob("*"))
    # The client listens on as long as the process lives.
    server.should_exit = server.force_exit = True
