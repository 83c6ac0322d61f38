"""Device -> ONNX Runtime's provider, by opening a session: what is listed need not run."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
MAX_THREADS = 8

logger = logging.getLogger(__name__)


def choose_provider(device: str) -> str:
    """The provider that sessions really run on here.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        ValueError: If "cuda" was asked for and no session runs there.
    """
    if device == "cpu":
        return CPU
    # Asked first: a session that tries CUDA without a GPU fills the log with errors.
    problem = _cuda_problem() if torch.cuda.is_available() else "torch sees no CUDA device"
    if problem is None:
        return CUDA
    if device == "cuda":
        raise ValueError(
            f"NB_DEVICE (--device) is 'cuda', but {problem}; use 'auto' or 'cpu', or mend CUDA "
            "(onnxruntime-gpu needs the CUDA and cuDNN that torch brings)"
        )
    logger.info("running on the CPU: %s", problem)
    return CPU


def _cuda_problem() -> str | None:
    """Why a session does not run on CUDA, found by opening one; None if it does."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime was built without CUDA"
    onnxruntime.preload_dlls(directory="")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:]
    )
    probe = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), session_options(1), providers=providers(CUDA)
        )
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:
        return f"a session on CUDA fails ({error})"
    if session.get_providers()[0] != CUDA:
        return "ONNX Runtime could not load its CUDA provider"
    return None


def providers(provider: str) -> list[Any]:
    # TF32 keeps 10 bits of mantissa: predictions would not be those that the gradients explain.
    return [(CUDA, {"use_tf32": "0"}), CPU] if provider == CUDA else [CPU]


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while idle take the cores from the other variants' sessions.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def usable_threads(wanted: int = 0) -> int:
    """Threads of one run: `wanted`, or every usable core (at most 8) for 0."""
    if wanted:
        return wanted
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(cores, MAX_THREADS)
