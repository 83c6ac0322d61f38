"""`python -m app`: settings -> registry -> service -> page and API, served."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import socket
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from app import text
from app.errors import UserError
from app.heap import keep_trimmed, share_heap
from app.settings import Settings, option, variable

if TYPE_CHECKING:
    from app.service import Service

BAD_USAGE = 2
UNSOUND = 1
INTERRUPTED = 130
BENCH = "bench"
FIRST_VIEW = "first-view"
HELP_WIDTH = 90
CHECKED_PHOTOS = 2
"""Photos on which ONNX and torch are compared at the start."""
UPLOADS = "neural-burden"
"""Folder of uploads and the user's number, below Gradio's or the system's temporary folder."""
SWEEP_S = 600
"""How often old uploads are looked for."""
EXAMPLES = """examples:
  python -m app                                      serve ./checkpoints at http://127.0.0.1:7860
  python -m app --host 0.0.0.0 --port 8000           let other machines in, on port 8000
  python -m app --checkpoints runs/mine --device cpu serve your own variants, on the CPU
  NB_DEVICE=cuda NB_CONCURRENCY=4 python -m app      the same options as environment variables
  python -m app bench                                measure it through HTTP; see bench --help
  python -m app first-view                           renew what the page shows while it starts

The page is at /, its API (gradio_client or plain HTTP) at /?view=api; /healthz, /readyz and
/metrics are for operators.
Train variants with `python -m nbcore run`, look at those here with `python -m nbcore list`."""


def parser() -> argparse.ArgumentParser:
    """One option for each setting."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description=textwrap.fill(f"{text.TITLE}. {text.LEAD}", HELP_WIDTH),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            option(field.name),
            metavar=field.name.upper(),
            help=f"{field.metadata['help']} (default {field.default}; ${variable(field.name)})",
        )
    return parser


def listen(settings: Settings) -> socket.socket:
    """A socket bound to the host and port.

    Raises:
        ValueError: If the port is taken or not allowed, or the host is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ValueError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror or error}); "
            f"choose another with --port or --host; --port 0 takes a free one"
        ) from error
    return bound


def own_folder(parent: str | None) -> Path:
    """Where uploads lie: a folder that no other user of this machine may open, created.

    Args:
        parent: Of the folder; None or "" takes the system's folder for temporary files.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(parent or tempfile.gettempdir(), f"{UPLOADS}-{user}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def announce(service: Service, bound: socket.socket) -> None:
    """Print where the page is and what really runs it."""
    host, port = bound.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    status = service.status()
    print(f"{text.TITLE}: http://{shown}:{port}")
    print(f"Predictions run on {status.provider}, gradients on {status.device}.")
    print(
        f"Serving {len(service.variants())} variants: "
        + ", ".join(v.id for v in service.variants())
    )
    for reason in status.refused.values():
        print(f"Refused: {reason}")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted, measure an app that is served, or renew the first view.

    Returns:
        Exit code: 2 where the settings, the port or the checkpoints are refused; 1 where a bench
        found wrong answers, errors or memory that grows.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == [BENCH]:
        return _bench(arguments[1:])
    if arguments[:1] == [FIRST_VIEW]:
        return _ship_first_view(arguments[1:])
    given = parser().parse_args(arguments)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # A folder of our own, since what is older than an hour in it is deleted.
    os.environ["GRADIO_TEMP_DIR"] = str(own_folder(os.environ.get("GRADIO_TEMP_DIR")))
    try:
        settings = Settings.from_environment(os.environ, **vars(given))
        bound = listen(settings)
    except ValueError as error:
        return _refuse(error)
    with contextlib.closing(bound):
        return _serve(settings, bound)


def _serve(settings: Settings, bound: socket.socket) -> int:
    # Read when torch is loaded: threads that wait by spinning take the cores from other models.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    share_heap()
    # Behind the checks of `main`, since these take seconds to import and a wrong option should not.
    from app import gallery, logs
    from app.memory import RememberingService
    from app.server import create_app
    from app.stopping import FinishingServer
    from app.sweep import files_named_in, keep_swept
    from app.ui import VISIT_SECONDS

    logs.set_up(settings.log_format)
    try:
        service = RememberingService.from_settings(settings)
    except (ValueError, UserError) as error:
        return _refuse(error)
    app = create_app(service, settings)
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    keep_swept(
        uploads,
        VISIT_SECONDS,
        SWEEP_S,
        spared=lambda: files_named_in(app.state.page.config, uploads),
    )
    keep_trimmed()
    photos = gallery.read_examples()[:CHECKED_PHOTOS]
    service.start_checks([service.load_image(photo.path) for photo in photos])
    bound.listen()
    announce(service, bound)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, forwarded_allow_ips=settings.trusted_proxies
    )
    gate, journal = app.state.gate, app.state.journal
    server = FinishingServer(config, gate=gate, journal=journal, seconds=settings.stop_seconds)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[bound])
    return 0


def bench_parser() -> argparse.ArgumentParser:
    """Options of `python -m app bench`."""
    parser = argparse.ArgumentParser(
        prog="python -m app bench",
        description="Measure the app through HTTP: latency and throughput, what comes beyond the "
        "queue's limit, and whether each answer is that of a lone request.",
    )
    parser.add_argument("--url", help="an app that is served; default: start one on this machine")
    parser.add_argument(
        "--serve",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="OPTION",
        help="last of all: options for the app that is started, as for `python -m app`",
    )
    parser.add_argument(
        "--clients", nargs="+", type=int, metavar="N", help="asking at the same time; 1 8 32"
    )
    parser.add_argument("--endpoints", nargs="+", metavar="NAME", help="default: predict compare")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="for each number of clients; default: 10"
    )
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="instead: one long mixed load, memory watched"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("bench-app.json"), metavar="FILE",
        help="default: %(default)s",
    )  # fmt: skip
    return parser


def _bench(arguments: Sequence[str]) -> int:
    from app.bench import AppBench, bench_app
    from app.bench_server import about, ended_by_sigterm, served

    given = bench_parser().parse_args(arguments)
    values = {name: getattr(given, name) for name in ("clients", "endpoints", "seconds", "minutes")}
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }
    command = shlex.join(["python", "-m", "app", BENCH, *arguments])
    try:
        bench = AppBench(url="", **chosen)
        with ended_by_sigterm(), served(given.url, given.serve) as url:
            report = bench_app(
                dataclasses.replace(bench, url=url),
                out=given.out,
                about=about(command),
                say=lambda line: print(line, flush=True),
            )
    except (ValueError, RuntimeError, OSError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0 if report["sound"] else UNSOUND


def _ship_first_view(arguments: Sequence[str]) -> int:
    """Write the answers that a page shows while the app starts."""
    parser = argparse.ArgumentParser(
        prog=f"python -m app {FIRST_VIEW}",
        description="Compare the first example on the CPU and write the answers into the "
        "checkpoint folder, where a page finds them while the app starts. Run it whenever the "
        "variants that are compared at first, or the first example, have changed.",
    )
    parser.add_argument(
        option("checkpoints"), type=Path, default=Settings().checkpoints, metavar="DIR",
        help="default: %(default)s",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    from app import gallery
    from app.first_view import ship_first_view
    from app.service import Service

    try:
        service = Service.from_settings(Settings(checkpoints=given.checkpoints, device="cpu"))
        written = ship_first_view(service, gallery.read_examples())
    except (ValueError, UserError) as error:
        return _refuse(error)
    print(f"{written.path}: {written.size_bytes / 1e3:.0f} kB")
    return 0


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())
