"""Ways to run a variant, by name: what the serving bench compares.

A contender is opened once and gives a step for each batch: a function that runs it and returns
when the answer is there. Each works on the logits alone, which all of them have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nbcore.bench.serve_task import DEVICE, ServeTask
from nbcore.checkpoint import Variant, load_model, resolve
from nbcore.preprocessing import as_values
from nbcore.registry import Registry

Step = Callable[[], np.ndarray | None]
"""Runs one batch and returns its logits [B, K], None where they stay on the device."""


class Opened(Protocol):
    """A contender that holds a variant."""

    def step(self, images: np.ndarray, place: str) -> Step | None:
        """The run of one batch.

        Args:
            images: RGB as photos are decoded, uint8 [B, 3, S, S]; making floats of them is part of
                a run from host memory, and done where it is quickest.
            place: One of `PLACES`.

        Returns:
            The step, None if this contender cannot work in that place.
        """


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to run a variant."""

    title: str
    """As tables and figures call it."""
    precisions: dict[str, tuple[str, ...]]
    """Precisions it can do, by device."""
    open: Callable[[ServeTask, Variant], Opened]
    compiles: bool = False
    """Warming up takes cores for minutes, so it is done before anything is timed."""


CONTENDERS: Registry[Contender] = Registry("contender")
ORDER = ("eager", "compile", "onnx", "served", "served-all")
"""Those that are compared unless others are named."""


class _Torch:
    """The torch model; `compiled` as torch's documentation advises for small batches."""

    def __init__(self, task: ServeTask, variant: Variant, *, compiled: bool) -> None:
        torch.set_num_threads(task.threads)
        tf32 = task.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        self.device = torch.device(task.device)
        self.dtype = torch.float16 if task.precision == "fp16" else torch.float32
        model = load_model(Path(task.checkpoints), variant).model
        self.model: Any = model.to(self.device, self.dtype)
        if compiled:
            # A graph per batch size, as a server with fixed sizes would have it.
            self.model = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def step(self, images: np.ndarray, place: str) -> Step:
        source = torch.from_numpy(images)
        cuda = self.device.type == "cuda"

        def moved() -> Tensor:
            return source.to(self.device).to(self.dtype).div_(255)

        @torch.inference_mode()
        def from_host() -> np.ndarray:
            return self.model(moved()).float().cpu().numpy()

        if place != DEVICE or not cuda:
            return from_host
        resident = moved()

        @torch.inference_mode()
        def on_device() -> None:
            self.model(resident)
            torch.cuda.synchronize(self.device)

        return on_device


def _open_eager(task: ServeTask, variant: Variant) -> Opened:
    return _Torch(task, variant, compiled=False)


def _open_compiled(task: ServeTask, variant: Variant) -> Opened:
    return _Torch(task, variant, compiled=True)


class _Plain:
    """The ONNX file as it is in a session as ONNX Runtime makes it, fed from host memory."""

    def __init__(self, task: ServeTask, variant: Variant) -> None:
        import onnxruntime

        from nbcore.serve.provider import new_session

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = task.threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if task.device == "cuda":
            onnxruntime.preload_dlls(directory="")
            tf32 = {"use_tf32": str(int(task.precision == "tf32"))}
            providers.insert(0, ("CUDAExecutionProvider", tf32))
        path = _onnx_file(task, variant)
        self.session = new_session(path, options, providers)
        ran = self.session.get_providers()[0]
        if task.device == "cuda" and ran != "CUDAExecutionProvider":
            raise RuntimeError(f"ONNX Runtime fell back to {ran}")

    def step(self, images: np.ndarray, place: str) -> Step | None:
        if place == DEVICE:
            return None
        return lambda: self.session.run(["logits"], {"image": as_values(images)})[0]


class _Served:
    """The session that the app serves from."""

    def __init__(self, task: ServeTask, variant: Variant, way: Mapping[str, Any]) -> None:
        """Open it.

        Args:
            task: What is held.
            variant: Whose file.
            way: Options of `Serving` that differ from its defaults; "everything" asks for loads
                and burden too.
        """
        from nbcore.serve import ALL, LOGITS, Serving, open_served

        options = {key: value for key, value in way.items() if key != "everything"}
        serving = Serving(
            device=task.device,
            precision=task.precision,
            threads=task.threads,
            batch_sizes=task.batches,
            **options,
        )
        outputs = ALL if way.get("everything") else LOGITS
        self.session = open_served(_onnx_file(task, variant), serving, outputs=outputs)
        self.cuda = task.device == "cuda"

    def step(self, images: np.ndarray, place: str) -> Step:
        size = len(images)
        if place == DEVICE and self.cuda:
            self.session.warm((size,))

            def on_device() -> None:
                self.session.run_resident(size)

            return on_device
        return lambda: self.session.run(images)["logits"]


def _served(**way: Any) -> Callable[[ServeTask, Variant], Opened]:
    return lambda task, variant: _Served(task, variant, way)


def _onnx_file(task: ServeTask, variant: Variant) -> Path:
    return resolve(Path(task.checkpoints), variant.id, variant.files["onnx"])


_TORCH = {"cpu": ("fp32",), "cuda": ("fp32", "tf32", "fp16")}
_SERVED = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "tf32", "fp16")}
for _name, _contender in {
    "eager": Contender(title="torch eager", precisions=_TORCH, open=_open_eager),
    "compile": Contender(
        title='torch.compile(mode="reduce-overhead")',
        precisions=_TORCH,
        open=_open_compiled,
        compiles=True,
    ),
    "onnx": Contender(
        title="ONNX Runtime, plain",
        precisions={"cpu": ("fp32",), "cuda": ("fp32", "tf32")},
        open=_Plain,
    ),
    **{
        name: Contender(title=title, precisions=_SERVED, open=_served(**way))
        for name, title, way in (
            ("served", "ONNX Runtime, as served", {}),
            ("served-all", "as served, with loads and burden", {"everything": True}),
            # What serving chooses among; for who wants to choose anew.
            ("served-exported", "served, attention as exported", {"attention": "exported"}),
            ("served-fused", "served, one Attention operator", {"attention": "fused"}),
            ("served-multihead", "served, MultiHeadAttention", {"attention": "multihead"}),
            ("served-opset23", "served, Attention of opset 23", {"attention": "opset23"}),
            ("served-norms-joined", "served, norms joined", {"fuse_norms": True}),
            ("served-norms-apart", "served, norms apart", {"fuse_norms": False}),
            ("served-conv-plain", "served, convolutions apart", {"convolutions": "plain"}),
            ("served-conv-bias", "served, convolutions with bias", {"convolutions": "bias"}),
            ("served-conv-nhwc", "served, channels last", {"convolutions": "nhwc"}),
            ("served-conv-nhwc-bias", "served, both", {"convolutions": "nhwc-bias"}),
            ("served-unrecorded", "served, without CUDA graph", {"cuda_graph": False}),
        )
    },
}.items():
    CONTENDERS.register(_name)(_contender)
