"""Entry of a plain Gradio Space (`sdk: gradio`, `app_file: space.py`): the whole app on its CPU.

The Docker Space of the README is the first choice; this one needs no Dockerfile. ZeroGPU hardware
gains nothing, since it lends its GPU to functions of torch while ONNX Runtime stays on the CPU.
"""

from __future__ import annotations

import os
import sys

from app.__main__ import main

SETTINGS = {
    "NB_HOST": "0.0.0.0",
    "NB_PORT": "7860",
    "NB_DEVICE": "cpu",
    "NB_LOG_FORMAT": "json",
    # What a visitor wrote before them, anybody can write.
    "NB_TRUSTED_PROXIES": "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,::1",
    "NB_RATE_PER_MINUTE": "240",
}
"""Variables of the Space's own settings win."""


def serve() -> int:
    """Serve until the Space is stopped."""
    if os.environ.get("SPACES_ZERO_GPU"):
        sys.stderr.write(
            "ZeroGPU starts only apps whose torch functions borrow its GPU, and this app's models "
            "run in ONNX Runtime: choose CPU hardware in the Space's settings\n"
        )
        return 2
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    return main([])


if __name__ == "__main__":
    sys.exit(serve())
