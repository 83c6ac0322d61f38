"""Builds every ONNX Runtime session that answers: the graph it runs, where, and how it is fed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nbcore.preprocessing import as_values
from nbcore.serve.attention import fuse_attention
from nbcore.serve.graph import GATES, read_graph
from nbcore.serve.norms import fuse_norms
from nbcore.serve.options import CUDA_FORMS, Serving
from nbcore.serve.precision import to_half, to_int8
from nbcore.serve.provider import (
    CPU,
    CUDA,
    TENSORRT,
    choose_provider,
    new_session,
    provider_options,
    session_options,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

LOGITS = ("logits",)
ALL: tuple[str, ...] | None = None
"""Every output of the file."""
Arrays = dict[str, np.ndarray]
Images = np.ndarray | Sequence[np.ndarray]
"""RGB [B, 3, S, S], float32 in [0, 1] or uint8 values of 0 to 255, or several that run together."""

logger = logging.getLogger(__name__)


class ServedSession(Protocol):
    """An open session. On the CPU threads may share it; on a GPU it belongs to the first that runs
    it."""

    serving: Serving
    provider: str
    """ONNX Runtime's provider that really runs it."""
    outputs: tuple[str, ...]
    cuda_graph: bool
    """Runs are launches of recorded graphs."""

    def run(
        self,
        images: Images,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Arrays:
        """Outputs by name.

        Args:
            images: RGB [B, 3, S, S] in host memory, float32 in [0, 1] or uint8 values of 0 to 255,
                or several such. Bytes are a quarter to copy to a GPU, and the same floats there.
            unit_gate: Factors on contributions [B, U] or [1, U]; None means ones.
            unit_keep: Units summed in token loads [B, U] or [1, U]; None means all.
        """

    def run_resident(self, batch: int) -> None:
        """Run `batch` images that lie where the session computes, and wait for the end."""

    def warm(self, sizes: Sequence[int] | None = None) -> None:
        """Run once at each batch size, so that no visitor waits for what happens only once."""


def open_served(
    path: Path | str,
    serving: Serving,
    *,
    outputs: Sequence[str] | None = LOGITS,
    gates: bool = False,
) -> ServedSession:
    """A session on a file's graph, rewritten for where it runs.

    Args:
        path: The ONNX file.
        serving: What it computes with.
        outputs: Which outputs it gives; None means all, with their cost.
        gates: Whether `unit_gate` and `unit_keep` may be fed.

    Raises:
        ValueError: If the device is not to be had, or what was asked for does not go together.
    """
    provider = choose_provider(serving.device)
    model = served_graph(path, serving, provider, outputs=outputs, gates=gates)
    if provider == CPU:
        return HostSession(model, serving)
    # Behind the choice, as it asks for a GPU.
    from nbcore.serve.device import DeviceSession

    try:
        session = DeviceSession(model, serving, provider)
        session.warm(serving.batch_sizes[:1])
    except Exception as error:
        if serving.attention != "auto" or provider == TENSORRT:
            raise
        # What one card, or one release of ONNX Runtime, fuses need not run on another.
        logger.warning("fused operators do not run here, so the file's own do: %s", error)
        plain = replace(serving, attention="exported", fuse_norms=False, convolutions="plain")
        model = served_graph(path, plain, provider, outputs=outputs, gates=gates)
        session = DeviceSession(model, plain, provider)
    return session


def served_graph(
    path: Path | str,
    serving: Serving,
    provider: str,
    *,
    outputs: Sequence[str] | None = LOGITS,
    gates: bool = False,
) -> onnx.ModelProto:
    """The graph that is run, made of a file's; arguments as for `open_served`.

    Raises:
        ValueError: If the precision is not computed there.
    """
    if provider == CPU and serving.precision in ("fp16", "tf32"):
        raise ValueError(f"precision {serving.precision} needs a GPU; this runs on the CPU")
    if provider != CPU and serving.precision == "int8":
        raise ValueError(f"precision int8 runs on the CPU only; this runs on {provider}")
    graph = read_graph(path, outputs, gates=gates)
    attention = serving.attention
    if attention == "auto":
        # TensorRT fuses ONNX's own operators, and knows none of ONNX Runtime's.
        others = "exported" if provider == TENSORRT else "fused"
        attention = CUDA_FORMS[serving.precision].attention if provider == CUDA else others
    if serving.precision == "int8" and attention != "exported":
        # The others hold their projection inside, or are mistaken for one that does.
        attention = "multihead"
    fuse_attention(graph, attention)
    joins = serving.fuse_norms
    if joins is None:
        # On the CPU the joined ones are slower than those they join.
        joins = provider == CUDA and CUDA_FORMS[serving.precision].fuse_norms
    if joins:
        fuse_norms(graph)
    if serving.precision == "int8":
        return to_int8(graph)
    if serving.precision == "fp16" and provider != TENSORRT:
        to_half(graph)
    return graph.finish()


def plain_session(
    path: Path | str, *, provider: str = CPU, threads: int = 0
) -> onnxruntime.InferenceSession:
    """A session on a file as it is, for checks and as a measure of what serving adds.

    Raises:
        RuntimeError: If onnxruntime is not installed, or the provider does not run it.
    """
    options = {} if provider == CPU else {"use_tf32": 0}
    try:
        session = new_session(path, session_options(threads), provider_options(provider, **options))
    except ImportError as error:
        raise RuntimeError(
            "onnxruntime is not installed here; run `python -m nbcore export ID` on a machine "
            "that has it"
        ) from error
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{path} runs on {session.get_providers()[0]}, not on {provider}")
    return session


@functools.cache
def share_arena() -> None:
    """Let sessions on the CPU take memory from one arena, once for the process.

    Each has one of its own otherwise, which keeps what its largest batch took; and sessions run in
    turns, so most of that lies idle.
    """
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu",
        onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
        0,
        onnxruntime.OrtMemType.DEFAULT,
    )
    onnxruntime.create_and_register_allocator(place, None)


class HostSession:
    """A session on the CPU."""

    def __init__(self, model: onnx.ModelProto, serving: Serving) -> None:
        self.serving = serving
        self.cuda_graph = False
        share_arena()
        options = session_options(serving.threads)
        options.add_session_config_entry("session.use_env_allocators", "1")
        self.session = new_session(model.SerializeToString(), options, provider_options(CPU))
        self.provider = self.session.get_providers()[0]
        self.outputs = tuple(value.name for value in self.session.get_outputs())
        self._units = {
            value.name: value.shape[1] for value in self.session.get_inputs() if value.name in GATES
        }
        self._side = self.session.get_inputs()[0].shape[-1]

    def run(
        self,
        images: Images,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Arrays:
        """As `ServedSession.run`."""
        if not isinstance(images, np.ndarray):
            pieces = [as_values(piece) for piece in images]
            images = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        feed = {"image": as_values(images), **fed_gates(self._units, unit_gate, unit_keep)}
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    def run_resident(self, batch: int) -> None:
        """As `ServedSession.run_resident`."""
        self.run(np.zeros((batch, 3, self._side, self._side), np.float32))

    def warm(self, sizes: Sequence[int] | None = None) -> None:
        """As `ServedSession.warm`; by default one photo."""
        for size in (1,) if sizes is None else sizes:
            self.run_resident(size)


def fed_gates(
    units: dict[str, int], unit_gate: np.ndarray | None, unit_keep: np.ndarray | None
) -> Arrays:
    """Gates as a graph takes them, ones where none are given.

    Args:
        units: Number of units by name of the gates that the graph has.
        unit_gate: [B, U] or [1, U].
        unit_keep: Likewise.

    Raises:
        ValueError: If gates are given to a graph without any.
    """
    given = {"unit_gate": unit_gate, "unit_keep": unit_keep}
    if missing := [
        name for name, value in given.items() if value is not None and name not in units
    ]:
        raise ValueError(f"this session was opened without {', '.join(missing)}; use gates=True")
    return {
        name: np.ones((1, count), np.float32)
        if (value := given[name]) is None
        else np.ascontiguousarray(value, np.float32)
        for name, count in units.items()
    }
