"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from app.journal import Call

LATENCIES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WAITS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """What is asked at the moment of reading."""

    running: Callable[[], float]
    """Calls at work."""
    queued: Callable[[], float]
    """Calls that wait."""
    queue_size: int
    """Calls that may wait."""
    runs_waiting: Callable[[], float]
    """Runs of models that calls at work wait for."""
    served: Callable[[], float]
    """Variants that are served."""
    refused: Callable[[], float]
    """Variants that are not."""
    ready: Callable[[], bool]
    """As /readyz says."""


class Metrics:
    """Counters of one app; a registry of its own, so that apps of one process stay apart."""

    def __init__(self, gauges: Gauges, *, provider: str, device: str) -> None:
        """Begin at zero.

        Args:
            gauges: Where to ask.
            provider: What ONNX Runtime runs on.
            device: Where gradients are taken.
        """
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._calls = Counter(
            "nb_calls", "Calls of API and page by how they ended", ["call", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._unanswered = Counter(
            "nb_unanswered", "Calls without an answer, by reason", ["outcome", "reason"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "nb_call_seconds", "Time at work of answered calls, without waiting", ["call"],
            buckets=LATENCIES_S, registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "nb_batch_photos", "Photos in one run of a model", ["variant"],
            buckets=BATCHES, registry=registry,
        )  # fmt: skip
        self._batch_waits = Histogram(
            "nb_batch_wait_seconds", "Time that a run waited for photos to join it",
            buckets=WAITS_S, registry=registry,
        )  # fmt: skip
        self._runs = Histogram(
            "nb_run_seconds", "Time of one run of a model", ["variant"],
            buckets=LATENCIES_S, registry=registry,
        )  # fmt: skip
        for name, text, ask in (
            ("nb_calls_running", "Calls at work", gauges.running),
            ("nb_calls_queued", "Calls that wait", gauges.queued),
            ("nb_queue_size", "Calls that may wait", lambda: gauges.queue_size),
            ("nb_runs_waiting", "Runs of models that calls wait for", gauges.runs_waiting),
            ("nb_variants_served", "Variants that are served", gauges.served),
            ("nb_variants_refused", "Variants that are not served", gauges.refused),
            ("nb_ready", "1 while /readyz says so", lambda: float(gauges.ready())),
        ):
            Gauge(name, text, registry=registry).set_function(ask)
        where = Gauge(
            "nb_provider", "1 for what really runs the models", ["provider", "device"],
            registry=registry,
        )  # fmt: skip
        where.labels(provider, device).set(1)

    def call(self, call: Call) -> None:
        """Count a call that has ended."""
        self._calls.labels(call.name, call.outcome).inc()
        if call.reason is not None:
            self._unanswered.labels(call.outcome, call.reason).inc()
        if call.outcome == "answered":
            self._seconds.labels(call.name).observe(call.seconds)

    def batch(self, variant: str, size: int, waited_s: float, seconds: float) -> None:
        """Count a run of a model."""
        self._batches.labels(variant).observe(size)
        self._batch_waits.observe(waited_s)
        self._runs.labels(variant).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
