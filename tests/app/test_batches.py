"""Requests gathered into one run: each gets its own answer, or its own error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from app.batches import Answered, Lane, Line
from app.inference import Predictor
from app.registry import ModelRegistry
from nbcore.serve import CPU, Serving

Arrays = dict[str, np.ndarray]


class Doubling:
    """Stands for a session: twice the first pixel, plus a unit's gate; sevens fail."""

    serving, provider, outputs, cuda_graph = Serving(), CPU, ("logits",), False

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.threads: set[int] = set()

    def run(
        self,
        pieces: Sequence[np.ndarray],
        unit_gate: np.ndarray | None = None,
        unit_keep: np.ndarray | None = None,
    ) -> Arrays:
        images = np.concatenate(pieces)
        self.threads.add(threading.get_ident())
        self.may_run.wait(30)
        self.sizes.append(len(images))
        first = images[:, 0, 0, 0]
        if (first == 7).any():
            raise RuntimeError("seven is too much")
        return {"logits": (2 * first + (0 if unit_gate is None else unit_gate[:, 0]))[:, None]}

    def run_resident(self, batch: int) -> None: ...

    def warm(self, sizes: Sequence[int] | None = None) -> None: ...


def image(value: float, count: int = 1) -> np.ndarray:
    return np.full((count, 3, 2, 2), value, np.float32)


def together(asks: Sequence[Callable[[], Answered]], lane: Lane, session: Doubling) -> list[object]:
    """Answers or errors of requests that wait behind a run that is held up until all are in."""
    found: list[object] = [None] * len(asks)

    def ask(position: int) -> None:
        try:
            found[position] = asks[position]().outputs["logits"].ravel().tolist()
        except RuntimeError as error:
            found[position] = str(error)

    session.may_run.clear()
    threads = [threading.Thread(target=ask, args=(position,)) for position in range(len(asks))]
    threads[0].start()
    while not session.threads:
        time.sleep(0.001)
    for count, thread in enumerate(threads[1:], 1):
        thread.start()
        while lane.waiting() < count:
            time.sleep(0.001)
    session.may_run.set()
    for thread in threads:
        thread.join(30)
    return found


def test_what_waits_runs_together_and_only_the_failing_item_fails() -> None:
    session, lane = Doubling(), Lane(most_images=8)
    line = Line("v", lambda: session, lane)
    seen: list[tuple[str, int]] = []
    lane.watchers.append(lambda name, size, queue, run: seen.append((name, size)))
    gate = np.array([0.5, 9.0], np.float32)
    asks = [
        lambda: line.ask(image(1)),
        lambda: line.ask(image(2)),
        lambda: line.ask(image(7)),
        lambda: line.ask(image(3, 2), gate),
    ]
    found = together(asks, lane, session)
    assert found == [[2.0], [4.0], "seven is too much", [6.5, 6.5]]
    # The first alone, then the three others at once, and, as that failed, each by itself.
    assert session.sizes == [1, 4, 1, 1, 2]
    assert seen == [("v", 1), ("v", 4)]
    assert len(session.threads) == 1


def test_who_gives_no_gate_has_ones_beside_others() -> None:
    session, lane = Doubling(), Lane(most_images=8)
    line, gate = Line("v", lambda: session, lane), np.array([0.5, 9.0], np.float32)
    asks = [
        lambda: line.ask(image(1)),
        lambda: line.ask(image(2)),
        lambda: line.ask(image(3), gate),
    ]
    # 2 * 2 + 1 and 2 * 3 + 0.5
    assert together(asks, lane, session) == [[2.0], [5.0], [6.5]]
    assert session.sizes == [1, 2]


def test_runs_hold_at_most_so_many_images_and_lines_take_turns() -> None:
    session, other, lane = Doubling(), Doubling(), Lane(most_images=3)
    line, second = Line("v", lambda: session, lane), Line("w", lambda: other, lane)
    asks = [
        lambda: line.ask(image(0)),
        lambda: line.ask(image(1, 2)),
        lambda: second.ask(image(2)),
        lambda: line.ask(image(3)),
        lambda: line.ask(image(4)),
        lambda: line.ask(image(5, 9)),
    ]
    found = together(asks, lane, session)
    assert found == [[0.0], [2.0] * 2, [4.0], [6.0], [8.0], [10.0] * 9]
    # Three at most, the oldest first; one request that is larger runs alone.
    assert session.sizes == [1, 3, 1, 9]
    assert other.sizes == [1]


def test_who_is_alone_does_not_wait() -> None:
    session, lane = Doubling(), Lane(most_images=8, gather_seconds=5.0)
    line = Line("v", lambda: session, lane)
    started = time.perf_counter()
    for _ in range(3):
        line.ask(image(1))
    assert time.perf_counter() - started < 2.5


def test_a_session_that_does_not_open_says_so_to_each_and_is_tried_again() -> None:
    tries: list[int] = []

    def opened() -> Doubling:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("no such file")
        return Doubling()

    line = Line("v", opened, Lane(most_images=8))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such file"):
            line.ask(image(1))
    assert line.ask(image(1)).outputs["logits"].tolist() == [[2.0]]


def test_gathered_answers_are_those_of_lone_requests(registry: ModelRegistry) -> None:
    """Eight threads, three variants, two of the requests broken; each number as if alone."""
    predictor, models = Predictor("cpu", threads=1), registry.models()[:3]
    rng, side = np.random.default_rng(0), models[0].variant.img_size
    photos = rng.random((8, 3, side, side), dtype=np.float32)
    broken = np.zeros((3, 7, 7), np.float32)
    lone = [[predictor.run(model, photo) for model in models] for photo in photos]
    sizes: list[int] = []
    predictor.watch(lambda name, size, queue, run: sizes.append(size))
    barrier, found, errors = threading.Barrier(8), {}, []

    def ask(worker: int) -> None:
        barrier.wait()
        for turn in range(4):
            index = (worker + turn) % 8
            for model in models:
                found[worker, turn, model.id] = predictor.run(model, photos[index])
            if worker < 2:
                try:
                    predictor.run(models[0], broken)
                except Exception as error:
                    errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(found) == 8 * 4 * 3
    for worker in range(8):
        for turn in range(4):
            for model, alone in zip(models, lone[(worker + turn) % 8], strict=True):
                output = found[worker, turn, model.id]
                for name in ("logits", "unit_load", "token_load", "stream"):
                    one, other = getattr(output, name), getattr(alone, name)
                    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
                assert np.array_equal(output.group, alone.group)
    assert len(errors) == 8
    assert all("failed on this photo" in error for error in errors)
    # Together they took fewer runs than there were requests.
    assert sum(sizes) == 8 * 4 * 3 + 8
    assert max(sizes) > 1
    assert predictor.waiting() == 0


@pytest.fixture(scope="module")
def registry(tiny_checkpoints: object) -> ModelRegistry:
    return ModelRegistry(tiny_checkpoints)  # type: ignore[arg-type]
