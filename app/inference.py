"""Image -> Prediction (ONNX Runtime)."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from app.errors import UserError
from app.provider import CUDA, choose_provider, providers, session_options, usable_threads
from app.registry import Model
from nbcore.checkpoint import Variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one run of a graph says about one photo."""

    logits: np.ndarray
    """[K]."""
    unit_load: np.ndarray
    """[U]."""
    token_load: np.ndarray
    """[L, P]."""
    stream: np.ndarray
    """rho per site [L]."""
    group: np.ndarray | None
    """int64 [P]: the token that carries each patch; None where nothing is merged."""
    provider: str
    latency_ms: float
    """Wall time of this run, arrays in host memory, after the session was warmed up."""

    @property
    def probs(self) -> np.ndarray:
        """Softmax of the logits [K], float64."""
        return np.exp(self.log_probs)

    @property
    def log_probs(self) -> np.ndarray:
        shifted = self.logits.astype(np.float64) - self.logits.max()
        return shifted - np.log(np.exp(shifted).sum())


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
    variant: Variant, output: Output, base: Output | None, top_k: int, parity: float | None
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
    """Opens each model's session at first use and runs photos; safe to share between threads."""

    def __init__(self, device: str = "auto", threads: int = 0) -> None:
        """Find the provider.

        Args:
            device: "auto", "cpu" or "cuda".
            threads: CPU threads of one run, 0 for every usable core.

        Raises:
            ValueError: If "cuda" was asked for and no session runs there.
        """
        self.provider = choose_provider(device)
        # Gradients are taken where sessions really run: torch may claim a GPU that is not there.
        self.torch_device = "cuda" if self.provider == CUDA else "cpu"
        if self.provider == CUDA:
            torch.backends.cudnn.allow_tf32 = False
        self.threads = usable_threads(threads)
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._opening = threading.Lock()

    def run(
        self,
        model: Model,
        image: np.ndarray,
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Output:
        """Run one photo.

        Args:
            model: Which variant.
            image: RGB in [0, 1], float32 [3, S, S].
            unit_gate: Factors on contributions [U]; None means ones.
            unit_keep: Units summed in the token loads [U]; None means all.

        Raises:
            UserError: If the session cannot be opened or run.
        """
        feed = {"image": image[None]}
        for name, value in (("unit_gate", unit_gate), ("unit_keep", unit_keep)):
            if value is not None:
                feed[name] = value[None].astype(np.float32)
        session = self._session(model)
        start = time.perf_counter()
        try:
            found = session.run(None, feed)
        except Exception as error:
            raise UserError(f"{model.id} failed on this photo: {error}") from error
        latency_ms = (time.perf_counter() - start) * 1e3
        logits, unit_load, token_load, stream, *group = (value[0] for value in found)
        return Output(
            logits=logits,
            unit_load=unit_load,
            token_load=token_load,
            stream=stream,
            group=group[0] if group else None,
            provider=session.get_providers()[0],
            latency_ms=latency_ms,
        )

    def logits(
        self, model: Model, images: np.ndarray, unit_gate: np.ndarray | None = None
    ) -> np.ndarray:
        """Class logits of several pictures in one run [B, K].

        Args:
            model: Which variant.
            images: RGB in [0, 1], float32 [B, 3, S, S].
            unit_gate: Factors on contributions [U]; None means ones.

        Raises:
            UserError: If the session cannot be opened or run.
        """
        feed = {"image": images}
        if unit_gate is not None:
            gates = np.broadcast_to(unit_gate.astype(np.float32), (len(images), len(unit_gate)))
            feed["unit_gate"] = np.ascontiguousarray(gates)
        session = self._session(model)
        try:
            return session.run(["logits"], feed)[0]
        except Exception as error:
            raise UserError(f"{model.id} failed on parts of this photo: {error}") from error

    def _session(self, model: Model) -> onnxruntime.InferenceSession:
        with self._opening:
            if model.id not in self._sessions:
                self._sessions[model.id] = self._open(model)
            return self._sessions[model.id]

    def _open(self, model: Model) -> onnxruntime.InferenceSession:
        path = model.file("onnx")
        side = model.variant.img_size
        try:
            session = onnxruntime.InferenceSession(
                path, session_options(self.threads), providers=providers(self.provider)
            )
            session.run(None, {"image": np.zeros((1, 3, side, side), np.float32)})
        except Exception as error:
            raise UserError(f"{model.id} cannot be run here: {error}") from error
        if session.get_providers()[0] != self.provider:
            logger.warning(
                "%s runs on %s, not on %s", model.id, session.get_providers()[0], self.provider
            )
        return session
