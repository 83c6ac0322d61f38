"""Times: intervals counted by hand, and models that take turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.errors import UserError
from app.latency import FEWEST, ROUNDS, WARM_UP, Latency, Stopwatch, middle


def model(name: str, side: int = 8) -> Any:
    return SimpleNamespace(id=name, variant=SimpleNamespace(img_size=side))


class Machine:
    """A predictor that takes as long as it is told."""

    def __init__(self, **times_ms: float) -> None:
        self.times_ms = times_ms
        self.ran: list[str] = []

    def answer(self, asked: Any, image: np.ndarray) -> Any:
        assert image.shape == (3, 8, 8)
        self.ran.append(asked.id)
        if asked.id not in self.times_ms:
            raise UserError(f"{asked.id} cannot be run here")
        # Every run of the machine is a little slower than the one before.
        wall = self.times_ms[asked.id] + 1e-3 * len(self.ran)
        return SimpleNamespace(latency_ms=wall, provider="CPUExecutionProvider")


def test_interval_lies_between_order_statistics() -> None:
    # Of six values: P(all above or all below the median) = 2 / 64 < 5 %, so smallest and largest.
    six = middle([6, 5, 4, 3, 2, 1])
    assert (six.median, six.low, six.high) == (3.5, 1, 6)
    # Of eight, one more on each side would leave 2 * 9 / 256 = 7 % outside.
    eight = middle(range(8))
    assert (eight.low, eight.high) == (0, 7)
    # Of 25: 2 P(Binomial(25, 1/2) <= 7) = 4.3 %, <= 8 is 10.8 %: the 8th and the 18th.
    many = middle(range(1, 26))
    assert (many.median, many.low, many.high) == (13, 8, 18)


def test_too_few_values_hold_no_interval() -> None:
    with pytest.raises(ValueError, match="at least 6 values, got 5"):
        middle([1.0] * (FEWEST - 1))


def test_what_disturbs_both_models_cancels_in_their_ratio() -> None:
    disturbed = [1, 1, 9, 9, 1, 3, 1]
    dense = Latency(times_ms=tuple(10.0 * d for d in disturbed), provider="x")
    half = Latency(times_ms=tuple(4.0 * d for d in disturbed), provider="x")
    found = half.relative_to(dense)
    assert (found.median, found.low, found.high) == pytest.approx((0.4, 0.4, 0.4))
    assert dense.ms.high > 5 * dense.ms.median


def test_models_take_turns_after_a_warm_up() -> None:
    machine = Machine(a=2.0, b=1.0)
    found = Stopwatch(machine).measure([model("a"), model("b")])  # type: ignore[arg-type]
    assert machine.ran == ["a"] * WARM_UP + ["b"] * WARM_UP + ["a", "b"] * ROUNDS
    assert len(found["a"].times_ms) == len(found["b"].times_ms) == ROUNDS
    # The first timed run is number 2 * WARM_UP + 1 of the machine.
    assert found["a"].times_ms[0] == pytest.approx(2.0 + 1e-3 * (2 * WARM_UP + 1))


def test_known_times_are_remembered_until_asked_for_again() -> None:
    machine = Machine(a=2.0, b=1.0)
    watch = Stopwatch(machine)  # type: ignore[arg-type]
    first = watch.measure([model("a")])
    runs = len(machine.ran)
    assert watch.measure([model("a")]) == first == watch.known()
    assert len(machine.ran) == runs
    # A newcomer is measured beside those it is compared with.
    both = watch.measure([model("a"), model("b")])
    assert set(both) == {"a", "b"}
    assert both["a"] != first["a"]
    assert watch.measure([model("a")], again=True)["a"] != both["a"]


def test_a_model_that_cannot_run_is_left_out() -> None:
    found = Stopwatch(Machine(a=1.0)).measure([model("broken"), model("a")])  # type: ignore[arg-type]
    assert set(found) == {"a"}
