"""A session on the GPU: recorded graphs by batch size, pinned buffers, one copy each way."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nbcore.preprocessing import as_values
from nbcore.serve.buffer import Buffer
from nbcore.serve.graph import GATES
from nbcore.serve.options import CONVOLUTIONS, CUDA_FORMS, Serving
from nbcore.serve.precision import has_single_products
from nbcore.serve.provider import (
    CPU,
    CUDA,
    TENSORRT,
    new_session,
    provider_options,
    session_options,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    from nbcore.serve.session import Arrays, Images

GPU = threading.RLock()
"""Held while a graph is recorded, since until it is, no thread may ask for memory of the GPU; and
while a session is opened, which asks for it. Who uses torch on the GPU opens sessions before."""
RUNS_BEFORE_RECORDING = 2
"""A second run still asks for memory, laid out by what the first one needed, and a recorded one may
not."""
RUNS_BEFORE_USE = 3
"""The first of these records; more for what happens only once."""
NOT_RECORDED = "-1"
POOLS, POOL_SIZE = 4, 32
"""Streams that torch has: by priority, each pool handed out in turns."""
logger = logging.getLogger(__name__)


class DeviceSession:
    """A session on CUDA or on TensorRT, for one thread: that which runs it first.

    ONNX Runtime keeps recorded graphs by thread, so another one would record all of them again.
    """

    def __init__(
        self, model: onnx.ModelProto, serving: Serving, provider: str, *, place: str = "cuda"
    ) -> None:
        """Open the session and lay out its buffers.

        Args:
            model: From `served_graph`.
            serving: What it computes with.
            provider: ONNX Runtime's provider.
            place: Where buffers lie, as torch calls it; "cpu" lets all but the recording be tested
                without a GPU.

        Raises:
            ValueError: If the session does not run on the provider.
        """
        self.serving = serving
        self.cuda_graph = serving.cuda_graph and provider == CUDA
        self.provider = provider
        self._place = place
        self._model = model
        self._owner: int | None = None
        with GPU:
            self._lay_out()

    def _lay_out(self) -> None:
        serving, place = self.serving, self._place
        self._stream = unused_stream() if place == "cuda" else None
        self._bound: dict[int, tuple[onnxruntime.IOBinding, onnxruntime.RunOptions]] = {}
        self._unrecorded = _run_options(NOT_RECORDED)
        self.session = self._open()
        if (ran := self.session.get_providers()[0]) != self.provider:
            raise ValueError(f"the graph runs on {ran}, not on {self.provider}")
        inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = tuple(value.name for value in self.session.get_outputs())
        self._units = {name: inputs[name].shape[1] for name in GATES if name in inputs}
        rows = serving.batch_sizes[-1]
        self._in = {
            name: Buffer(value, rows, place, pixels=name not in GATES)
            for name, value in inputs.items()
        }
        self._out = {v.name: Buffer(v, rows, place) for v in self.session.get_outputs()}
        with self._turn():
            for name in self._units:
                self._in[name].fill([np.ones((1, self._units[name]), np.float32)], rows)

    def _open(self) -> onnxruntime.InferenceSession:
        threads = self.serving.threads if self.provider == CPU else 1
        try:
            return new_session(
                self._model.SerializeToString(),
                session_options(threads),
                provider_options(self.provider, **self._options()),
            )
        except Exception as error:
            self._record_no_more(error)
            return self._open()

    def _record_no_more(self, error: Exception) -> None:
        """Go on without recorded graphs; raise again what has another cause."""
        if not self.cuda_graph:
            raise error
        logger.warning("runs cannot be recorded, so each launches every kernel: %s", error)
        self.cuda_graph = False

    def _options(self) -> dict[str, Any]:
        if self._stream is None:
            return {}
        options: dict[str, Any] = {"user_compute_stream": self._stream.cuda_stream}
        precision, sizes = self.serving.precision, self.serving.batch_sizes
        if self.provider == CUDA:
            # TF32 keeps ten bits of mantissa: predictions would not be those that gradients
            # explain. Without it ONNX Runtime denies half convolutions the tensor cores too.
            half = precision == "fp16" and not has_single_products(self._model)
            options["use_tf32"] = int(precision == "tf32" or half)
            options["enable_cuda_graph"] = int(self.cuda_graph)
            chosen = self.serving.convolutions
            if chosen == "auto":
                chosen = CUDA_FORMS[precision].convolutions
            options |= CONVOLUTIONS[chosen]
        if self.provider == TENSORRT:
            options["trt_fp16_enable"] = int(precision == "fp16")
            for name, size in (("min", 1), ("opt", sizes[len(sizes) // 2]), ("max", sizes[-1])):
                shapes = [
                    f"{v.name}:{'x'.join(map(str, _shape(v, size)))}"
                    for v in self._model.graph.input
                ]
                options[f"trt_profile_{name}_shapes"] = ",".join(shapes)
        return options

    @contextlib.contextmanager
    def _turn(self) -> Any:
        """What is launched inside runs in the session's own stream, and is done at the end."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def run(
        self,
        images: Images,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Arrays:
        """As `ServedSession.run`; more images than the largest size run in pieces."""
        from nbcore.serve.session import fed_gates

        gates = fed_gates(self._units, unit_gate, unit_keep)
        pieces = [images] if isinstance(images, np.ndarray) else list(images)
        if len({piece.dtype for piece in pieces}) > 1:
            pieces = [as_values(piece) for piece in pieces]
        count, largest = sum(map(len, pieces)), self.serving.batch_sizes[-1]
        if count <= largest:
            return self._run({"image": pieces, **{n: [g] for n, g in gates.items()}}, count)
        joined, parts = np.concatenate(pieces), []
        for start in range(0, count, largest):
            piece = slice(start, start + largest)
            rows = {n: [g if len(g) == 1 else g[piece]] for n, g in gates.items()}
            parts.append(self._run({"image": [joined[piece]], **rows}, len(joined[piece])))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run(self, feed: dict[str, list[np.ndarray]], count: int) -> Arrays:
        size = self._ready(count)
        with self._turn():
            for name, pieces in feed.items():
                self._in[name].fill(pieces, count)
            self._launch(size)
            for buffer in self._out.values():
                buffer.fetch(count)
        return {name: buffer.host[:count].numpy().copy() for name, buffer in self._out.items()}

    def run_resident(self, batch: int) -> None:
        """As `ServedSession.run_resident`."""
        size = self._ready(batch)
        with self._turn():
            self._launch(size)

    def warm(self, sizes: Sequence[int] | None = None) -> None:
        """As `ServedSession.warm`; by default all sizes, the largest first, so that memory is laid
        out once."""
        for size in sorted(self.serving.batch_sizes if sizes is None else sizes, reverse=True):
            self._ready(size)

    def _ready(self, count: int) -> int:
        """The padded size, bound and recorded.

        Raises:
            RuntimeError: In a second thread.
        """
        own = threading.get_ident()
        self._owner = self._owner or own
        if self._owner != own:
            raise RuntimeError("this session belongs to the thread that ran it first")
        size = self.serving.padded(count)
        if size not in self._bound:
            with GPU:
                try:
                    self._prepare(size)
                except Exception as error:
                    self._bound.pop(size, None)
                    self._record_no_more(error)
                    # A stream whose recording broke off takes no more work, of other sessions too.
                    _BROKEN.append(self._stream)
                    self._lay_out()
                    self._prepare(size)
        return size

    def _prepare(self, size: int) -> None:
        with self._turn():
            self._bound[size] = self._bind(size)
            for _ in range(RUNS_BEFORE_RECORDING if self.cuda_graph else 0):
                self._launch(size, record=False)
            for _ in range(RUNS_BEFORE_USE):
                self._launch(size)

    def _launch(self, size: int, *, record: bool = True) -> None:
        binding, options = self._bound[size]
        self.session.run_with_iobinding(binding, options if record else self._unrecorded)

    def _bind(self, size: int) -> tuple[onnxruntime.IOBinding, onnxruntime.RunOptions]:
        binding = self.session.io_binding()
        for buffers, bind in ((self._in, binding.bind_input), (self._out, binding.bind_output)):
            for name, buffer in buffers.items():
                bind(name, self._place, 0, buffer.kind, buffer.shape(size), buffer.pointer)
        return binding, _run_options(str(size) if self.cuda_graph else None)


def unused_stream() -> torch.cuda.Stream:
    """A stream that no other session computes in, as long as there is one.

    Torch hands out the same few in turns, and of two sessions in one stream, one would record what
    the other runs.
    """
    for tried in range(POOLS * POOL_SIZE):
        # Negative numbers are higher priorities, and pools of their own.
        stream = torch.cuda.Stream(priority=-(tried // POOL_SIZE))
        if stream not in _TAKEN:
            break
    _TAKEN.add(stream)
    return stream


_TAKEN: weakref.WeakSet[torch.cuda.Stream] = weakref.WeakSet()
"""Of open sessions; objects that name the same stream are equal."""
_BROKEN: list[torch.cuda.Stream | None] = []
"""Kept, and so taken, for ever."""


def _run_options(graph: str | None) -> onnxruntime.RunOptions:
    """Options of a run that is not waited for; `graph` names what it records or repeats."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    if graph is not None:
        options.add_run_config_entry("gpu_graph_id", graph)
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def _shape(value: onnx.ValueInfoProto, size: int) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return (size, *(dim.dim_value for dim in dims[1:]))
