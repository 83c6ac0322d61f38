"""Device -> ONNX Runtime's provider, by opening a session: what is listed need not run."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
MAX_THREADS = 8

logger = logging.getLogger(__name__)


def choose_provider(device: str) -> str:
    """The provider that sessions really run on here.

    Args:
        device: "auto", "cpu", "cuda" or "tensorrt".

    Raises:
        ValueError: If "cuda" or "tensorrt" was asked for and no session runs there.
    """
    if device == "cpu":
        return CPU
    wanted = CUDA if device == "auto" else PROVIDERS[device]
    # Asked first: a session that tries CUDA without a GPU fills the log with errors.
    problem = _problem(wanted) if torch.cuda.is_available() else "torch sees no CUDA device"
    if problem is None:
        return wanted
    if device != "auto":
        raise ValueError(
            f"NB_DEVICE (--device) is {device!r}, but {problem}; use 'auto' or 'cpu', or mend CUDA "
            "(onnxruntime-gpu needs the CUDA and cuDNN that torch brings"
            + (", and TensorRT's own libraries)" if wanted == TENSORRT else ")")
        )
    logger.info("running on the CPU: %s", problem)
    return CPU


def _problem(provider: str) -> str | None:
    """Why a session does not run on a provider, found by opening one; None if it does."""
    import onnxruntime
    from onnx import TensorProto, helper

    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime was built without {provider}"
    onnxruntime.preload_dlls(directory="")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = session_options(1)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = new_session(probe.SerializeToString(), options, [provider])
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:
        return f"a session on {provider} fails ({error})"
    if session.get_providers()[0] != provider:
        return f"ONNX Runtime could not load its {provider}"
    return None


def new_session(
    model: bytes | str | Path, options: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    """A session, or the error of opening it.

    Left to itself, ONNX Runtime's Python prints what a GPU refused, such as a graph that cannot be
    recorded, and opens a session on the CPU instead; and again where a run fails.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != CPU:
        _ON_GPU.set()
    return session


_ON_GPU = threading.Event()
"""A session of this process was opened on a GPU."""


def leave(status: int) -> NoReturn:
    """End the process.

    After sessions on a GPU without the teardown of libraries: seen with onnxruntime-gpu 1.31.1
    beside torch 2.11, it ends in a segmentation fault after all work is done.
    """
    if not _ON_GPU.is_set():
        sys.exit(status)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of every session: few messages, and threads that do not fight.

    ONNX Runtime's threads wait by spinning, which takes the cores from other variants' sessions and
    from torch; without that, several sessions' threads sleep while one of them runs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_threads(threads)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def provider_options(provider: str, **options: Any) -> list[Any]:
    """A provider with its options, and what stands in for operators that it lacks."""
    behind = {CPU: [], CUDA: [CPU], TENSORRT: [CUDA, CPU]}[provider]
    return [(provider, {key: str(value) for key, value in options.items()}), *behind]


def usable_threads(wanted: int = 0) -> int:
    """Threads of one run: `wanted`, or every usable core (at most 8) for 0."""
    if wanted:
        return wanted
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, MAX_THREADS)
