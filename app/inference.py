"""Image -> Prediction (ONNX Runtime)."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, replace

import numpy as np
import torch

from app.batches import Answered, Lane, Line, Watcher
from app.errors import UserError
from app.registry import Model
from nbcore.checkpoint import Variant
from nbcore.serve import (
    ALL,
    CPU,
    LOGITS,
    ServedSession,
    Serving,
    choose_provider,
    open_served,
    usable_threads,
)

GROUP = "token_group"
CPU_BATCH, GPU_BATCH = 8, 32
"""Images of one run: more are no faster."""
FULL_SIZES = (1, 2, 4, 8)
"""Batch sizes at which loads are served on a GPU: they are asked for one photo at a time."""
GPU_LANES = 4
"""Variants that run at the same time on a GPU, which a single one does not fill."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a variant says about one photo."""

    logits: np.ndarray
    """[K]."""
    group: np.ndarray | None
    """int64 [P]: the token that carries each patch; None where nothing is merged."""
    provider: str
    """ONNX Runtime's provider that really ran, e.g. "CPUExecutionProvider"."""
    latency_ms: float
    """Wall time of the run that held this photo, arrays in host memory, session warm."""

    @property
    def probs(self) -> np.ndarray:
        """Softmax of the logits [K], float64."""
        return np.exp(self.log_probs)

    @property
    def log_probs(self) -> np.ndarray:
        shifted = self.logits.astype(np.float64) - self.logits.max()
        return shifted - np.log(np.exp(shifted).sum())


@dataclass(frozen=True, kw_only=True)
class Output(Answer):
    """What a variant says about one photo, and what its layers carry."""

    unit_load: np.ndarray
    """[U]."""
    token_load: np.ndarray
    """[L, P]."""
    stream: np.ndarray
    """rho per site [L]."""


@dataclass(frozen=True, kw_only=True)
class TopClass:
    """One of the most probable classes."""

    class_name: str
    prob: float
    change: float | None
    """prob minus what the dense base gives this class; None without a usable base."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a variant says about one photo."""

    variant: str
    top: tuple[TopClass, ...]
    """Most probable first; ties in the order of classes."""
    kl_to_base: float | None
    """KL(base || variant) in nats; None without a usable base."""
    base_class: str | None
    """What the dense base names first; None without a usable one."""
    provider: str
    """ONNX Runtime's provider that really ran, e.g. "CPUExecutionProvider"."""
    latency_ms: float
    """Wall time of this photo's run."""
    parity: float | None
    """Largest |ONNX - torch| of a logit on the start-up photos; None until that check is done."""


def to_prediction(
    variant: Variant, output: Answer, base: Answer | None, top_k: int, parity: float | None
) -> Prediction:
    """Name the top classes of an output and hold it against the dense base's."""
    probs = output.probs
    order = np.argsort(-probs, kind="stable")[:top_k]
    change = None if base is None else probs - base.probs
    kl = None if base is None else (base.probs * (base.log_probs - output.log_probs)).sum()
    return Prediction(
        variant=variant.id,
        top=tuple(
            TopClass(
                class_name=variant.classes[index],
                prob=float(probs[index]),
                change=None if change is None else float(change[index]),
            )
            for index in order
        ),
        # Rounding alone can bring the divergence of two equal distributions below zero.
        kl_to_base=None if kl is None else max(0.0, float(kl)),
        base_class=None if base is None else variant.classes[int(np.argmax(base.probs))],
        provider=output.provider,
        latency_ms=output.latency_ms,
        parity=parity,
    )


class Predictor:
    """Opens each model's sessions at first use and runs photos; safe to share between threads.

    A model has two sessions: one gives logits alone, in the precision that is served, and one all
    loads too, in single precision, with gates. The loads cost up to a third of a run, so they are
    computed where they are asked for.
    """

    def __init__(self, device: str = "auto", threads: int = 0, precision: str = "fp32") -> None:
        """Find the provider.

        Args:
            device: "auto", "cpu", "cuda" or "tensorrt".
            threads: CPU threads of one run, 0 for every usable core.
            precision: Of predictions: "fp32", "tf32", "fp16" or "int8".

        Raises:
            ValueError: If the device is not to be had, or does not compute in the precision.
        """
        self.provider = choose_provider(device)
        on_cpu = self.provider == CPU
        device = "cpu" if on_cpu else "cuda" if device == "auto" else device
        self.serving = Serving(device=device, precision=precision, threads=threads)
        # Gradients are taken where sessions really run: torch may claim a GPU that is not there.
        self.torch_device = "cpu" if on_cpu else "cuda"
        if not on_cpu:
            torch.backends.cudnn.allow_tf32 = False
        self.threads = usable_threads(threads)
        self.batch = CPU_BATCH if on_cpu else GPU_BATCH
        # On the CPU a run takes all threads it may, so runs take turns; where there are cores for
        # more of such runs, they go side by side.
        lanes = max(1, usable_threads(0) // self.threads) if on_cpu else GPU_LANES
        self._lanes = [Lane(most_images=self.batch) for _ in range(lanes)]
        self._next_lane = itertools.cycle(self._lanes)
        self._lines: dict[tuple[str, bool], Line] = {}
        self._opening = threading.Lock()

    def watch(self, watcher: Watcher) -> None:
        """Let a function be called after each run; `Watcher` says with what."""
        for lane in self._lanes:
            lane.watchers.append(watcher)

    def waiting(self) -> int:
        """Requests that wait for a run."""
        return sum(lane.waiting() for lane in self._lanes)

    def answer(
        self, model: Model, image: np.ndarray, unit_gate: np.ndarray | None = None
    ) -> Answer:
        """What a model says about one photo.

        Args:
            model: Which variant.
            image: RGB [3, S, S], float32 in [0, 1] or uint8.
            unit_gate: Factors on contributions [U]; None means ones.

        Raises:
            UserError: If the session cannot be opened or run.
        """
        if unit_gate is not None:
            return self.run(model, image, unit_gate)
        found = self._ask(model, image[None], full=False)
        group = found.outputs.get(GROUP)
        return Answer(
            logits=found.outputs["logits"][0],
            group=None if group is None else group[0],
            provider=found.provider,
            latency_ms=found.seconds * 1e3,
        )

    def run(
        self,
        model: Model,
        image: np.ndarray,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Output:
        """What a model says about one photo, and its loads.

        Args:
            model: Which variant.
            image: RGB in [0, 1], float32 [3, S, S].
            unit_gate: Factors on contributions [U]; None means ones.
            unit_keep: Units summed in the token loads [U]; None means all.

        Raises:
            UserError: If the session cannot be opened or run.
        """
        found = self._ask(model, image[None], unit_gate, unit_keep, full=True)
        outputs = {name: value[0] for name, value in found.outputs.items()}
        return Output(
            logits=outputs["logits"],
            unit_load=outputs["unit_load"],
            token_load=outputs["token_load"],
            stream=outputs["stream"],
            group=outputs.get(GROUP),
            provider=found.provider,
            latency_ms=found.seconds * 1e3,
        )

    def logits(
        self, model: Model, images: np.ndarray, unit_gate: np.ndarray | None = None
    ) -> np.ndarray:
        """Class logits of several pictures, so many in a run as are of use [B, K].

        Args:
            model: Which variant.
            images: RGB in [0, 1], float32 [B, 3, S, S].
            unit_gate: Factors on contributions [U]; None means ones.

        Raises:
            UserError: If the session cannot be opened or run.
        """
        full = unit_gate is not None
        # Between its runs, others have their turn.
        starts = range(0, len(images), self.batch)
        runs = [
            self._ask(model, images[start : start + self.batch], unit_gate, full=full)
            for start in starts
        ]
        return np.concatenate([run.outputs["logits"] for run in runs])

    def warm(self, model: Model) -> None:
        """Open a model's sessions and run each once, so that no visitor waits for it.

        Raises:
            UserError: If one cannot be opened or run.
        """
        side = model.variant.img_size
        for full in (False, True):
            self._ask(model, np.zeros((1, 3, side, side), np.float32), full=full)

    def _ask(
        self,
        model: Model,
        images: np.ndarray,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
        *,
        full: bool,
    ) -> Answered:
        with self._opening:
            key = (model.id, full)
            if key not in self._lines:
                # Both sessions of a model are apart, and so are neighbours in a comparison.
                lane = next(self._next_lane)
                self._lines[key] = Line(model.id, lambda: self._open(model, full), lane)
            line = self._lines[key]
        try:
            return line.ask(images, unit_gate, unit_keep)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{model.id} failed on this photo: {error}") from error

    def _open(self, model: Model, full: bool) -> ServedSession:
        path, serving = model.file("onnx"), self.serving
        outputs = ALL
        if full:
            serving = replace(serving, precision="fp32", batch_sizes=FULL_SIZES)
        else:
            outputs = LOGITS if model.variant.merge is None else (*LOGITS, GROUP)
        try:
            session = open_served(path, serving, outputs=outputs, gates=full)
            session.warm()
        except Exception as error:
            raise UserError(f"{model.id} cannot be run here: {error}") from error
        return session
