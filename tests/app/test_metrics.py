from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from app.journal import Call
from app.metrics import Gauges, Metrics


def values(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {(s.name, tuple(s.labels[key] for key in sorted(s.labels))): s.value for s in samples}


def test_what_prometheus_reads_is_what_was_told() -> None:
    now = {"running": 2.0, "queued": 5.0, "runs_waiting": 4.0, "served": 3.0, "refused": 1.0}
    gauges = Gauges(
        **{name: lambda name=name: now[name] for name in now},  # type: ignore[misc]
        queue_size=32,
        ready=lambda: False,
    )
    metrics = Metrics(gauges, provider="SomeProvider", device="cpu")
    for outcome, reason, seconds in (
        ("answered", None, 0.15),
        ("answered", None, 0.4),
        ("refused", "UserError", 0.01),
        ("turned_away", "busy", 0.0),
    ):
        metrics.call(Call(name="predict", outcome=outcome, reason=reason, seconds=seconds))  # type: ignore[arg-type]
    metrics.batch("dense", 8, 0.002, 0.05)
    metrics.batch("dense", 3, 0.002, 0.05)
    found = values(metrics)
    assert found["nb_calls_total", ("predict", "answered")] == 2
    assert found["nb_calls_total", ("predict", "refused")] == 1
    assert found["nb_unanswered_total", ("refused", "UserError")] == 1
    assert found["nb_unanswered_total", ("turned_away", "busy")] == 1
    # Only answered calls: 0.15 s is in the bucket up to 0.2, both in that up to 0.5.
    assert found["nb_call_seconds_bucket", ("predict", "0.2")] == 1
    assert found["nb_call_seconds_bucket", ("predict", "0.5")] == 2
    assert found["nb_call_seconds_count", ("predict",)] == 2
    assert found["nb_batch_photos_bucket", ("4.0", "dense")] == 1
    assert found["nb_batch_photos_sum", ("dense",)] == 11
    assert found["nb_run_seconds_count", ("dense",)] == 2
    assert found["nb_provider", ("cpu", "SomeProvider")] == 1
    names = ("calls_running", "calls_queued", "queue_size", "runs_waiting")
    names += ("variants_served", "variants_refused")
    assert [found[f"nb_{name}", ()] for name in names] == [2, 5, 32, 4, 3, 1]
    assert found["nb_ready", ()] == 0
    assert found["process_resident_memory_bytes", ()] > 1e6


def test_two_apps_of_a_process_count_apart() -> None:
    gauges = Gauges(
        running=lambda: 0,
        queued=lambda: 0,
        queue_size=1,
        runs_waiting=lambda: 0,
        served=lambda: 0,
        refused=lambda: 0,
        ready=lambda: True,
    )
    one, other = (Metrics(gauges, provider="p", device="d") for _ in range(2))
    one.call(Call(name="predict", outcome="answered", reason=None, seconds=0.1))
    assert ("nb_calls_total", ("predict", "answered")) in values(one)
    assert ("nb_calls_total", ("predict", "answered")) not in values(other)
