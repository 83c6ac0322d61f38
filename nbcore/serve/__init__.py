"""Serving: an exported file as the fastest session that answers the same."""

from nbcore.serve.options import BATCH_SIZES, DEVICES, PRECISIONS, Serving
from nbcore.serve.provider import CPU, CUDA, TENSORRT, choose_provider, usable_threads
from nbcore.serve.session import (
    ALL,
    LOGITS,
    ServedSession,
    open_served,
    plain_session,
    served_graph,
)

__all__ = [
    "ALL",
    "BATCH_SIZES",
    "CPU",
    "CUDA",
    "DEVICES",
    "LOGITS",
    "PRECISIONS",
    "TENSORRT",
    "ServedSession",
    "Serving",
    "choose_provider",
    "open_served",
    "plain_session",
    "served_graph",
    "usable_threads",
]
