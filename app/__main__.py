"""`python -m app`: settings -> registry -> service -> page and API, served."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import socket
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvicorn

from app import text
from app.errors import UserError
from app.settings import Settings, option, variable

if TYPE_CHECKING:
    from app.service import Service

BAD_USAGE = 2
HELP_WIDTH = 90
CHECKED_PHOTOS = 2
"""Photos on which ONNX and torch are compared at the start."""
EXAMPLES = """examples:
  python -m app                                      serve ./checkpoints at http://127.0.0.1:7860
  python -m app --host 0.0.0.0 --port 8000           let other machines in, on port 8000
  python -m app --checkpoints runs/mine --device cpu serve your own variants, on the CPU
  NB_DEVICE=cuda NB_CONCURRENCY=4 python -m app      the same options as environment variables

The page is at /, its API (gradio_client or plain HTTP) at /?view=api, health at /healthz, /readyz.
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
    """Serve until interrupted.

    Returns:
        Exit code: 2 where the settings, the port or the checkpoints are refused.
    """
    given = parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
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
    # Behind the checks of `main`, since these take seconds to import and a wrong option should not.
    from app import gallery
    from app.memory import RememberingService
    from app.server import create_app

    try:
        service = RememberingService.from_settings(settings)
    except (ValueError, UserError) as error:
        return _refuse(error)
    app = create_app(service, settings)
    photos = gallery.read_examples()[:CHECKED_PHOTOS]
    service.start_checks([service.load_image(photo.path) for photo in photos])
    bound.listen()
    announce(service, bound)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[bound])
    return 0


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return BAD_USAGE


if __name__ == "__main__":
    sys.exit(main())
