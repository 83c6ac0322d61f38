"""Served ONNX == torch; what is said about a run is what ran."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import UserError
from app.inference import Answer, Predictor, to_prediction
from app.registry import ModelRegistry
from nbcore.checkpoint import Variant
from nbcore.parity import TOLERANCE, differences
from nbcore.serve import CPU
from tests.app.folders import ids_by_mitigation


@pytest.fixture(scope="module")
def registry(tiny_checkpoints: Path) -> ModelRegistry:
    return ModelRegistry(tiny_checkpoints)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor("cpu", threads=1)


def photo(variant: Variant, seed: int = 0) -> np.ndarray:
    side = variant.img_size
    return np.random.default_rng(seed).random((3, side, side), dtype=np.float32)


@pytest.mark.parametrize("mitigation", ["dense", "none", "token_merging", "handoff"])
@pytest.mark.parametrize("gated", [False, True])
def test_served_onnx_is_the_torch_twin(
    registry: ModelRegistry,
    predictor: Predictor,
    tiny_checkpoints: Path,
    mitigation: str,
    gated: bool,
) -> None:
    model = registry[ids_by_mitigation(tiny_checkpoints)[mitigation]]
    image, rng = photo(model.variant), np.random.default_rng(1)
    units = model.variant.num_units
    gate = rng.integers(0, 2, units).astype(np.float32) if gated else None
    keep = rng.integers(0, 2, units).astype(np.float32) if gated else None
    found = predictor.run(model, image, gate, keep)
    with model.twin() as twin, torch.no_grad():
        wanted = copy.deepcopy(twin).double()(
            *(v if v is None else torch.from_numpy(v)[None].double() for v in (image, gate, keep)),
            group=None if found.group is None else torch.from_numpy(found.group)[None],
        )
    assert (found.group is None) == (mitigation != "token_merging")
    outputs = (found.logits, found.unit_load, found.token_load, found.stream)
    logits, loads, _ = differences(
        [torch.from_numpy(value)[None].double() for value in outputs],
        wanted[:4],
        [len(site.kept) for site in model.variant.sites],
    )
    assert logits <= TOLERANCE
    assert loads <= TOLERANCE


def test_what_is_said_of_a_run_is_what_ran(registry: ModelRegistry, predictor: Predictor) -> None:
    model = registry.models()[0]
    predictor.run(model, photo(model.variant))
    start = time.perf_counter()
    found = predictor.run(model, photo(model.variant))
    assert 0 < found.latency_ms <= (time.perf_counter() - start) * 1e3
    assert found.provider == CPU == predictor.provider
    assert predictor.torch_device == "cpu"


def test_a_failing_run_is_a_sentence(registry: ModelRegistry, predictor: Predictor) -> None:
    model = registry.models()[0]
    for ask in (predictor.run, predictor.answer):
        with pytest.raises(UserError, match=f"{model.id} failed on this photo"):
            ask(model, np.zeros((3, 7, 7), np.float32))


@pytest.mark.parametrize("mitigation", ["dense", "token_merging"])
def test_an_answer_alone_is_that_of_the_run_with_loads(
    registry: ModelRegistry, predictor: Predictor, tiny_checkpoints: Path, mitigation: str
) -> None:
    model = registry[ids_by_mitigation(tiny_checkpoints)[mitigation]]
    image, units = photo(model.variant), model.variant.num_units
    gate = np.random.default_rng(2).random(units, dtype=np.float32)
    for chosen in (None, gate):
        run, answer = predictor.run(model, image, chosen), predictor.answer(model, image, chosen)
        np.testing.assert_allclose(answer.logits, run.logits, rtol=1e-5, atol=1e-6)
        assert (answer.group is None) == (mitigation == "dense")
        assert np.array_equal(answer.group, run.group)  # type: ignore[arg-type]
        several = predictor.logits(model, np.stack([image] * 3), chosen)
        np.testing.assert_allclose(several, [run.logits] * 3, rtol=1e-5, atol=1e-6)


def test_predictions_can_be_served_in_eight_bits(
    registry: ModelRegistry, predictor: Predictor
) -> None:
    eight, model = Predictor("cpu", 1, "int8"), registry.models()[0]
    image = photo(model.variant)
    wanted = predictor.run(model, image)
    found = eight.answer(model, image)
    assert 0 < np.abs(found.logits - wanted.logits).max() < 0.1 * np.abs(wanted.logits).max()
    # Loads are computed as they were compared at export.
    assert np.array_equal(eight.run(model, image).unit_load, wanted.unit_load)


def test_a_precision_that_is_not_computed_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="precision fp16 runs on auto, cuda, tensorrt, not on cpu"):
        Predictor("auto", precision="fp16")


def output(*logits: float) -> Answer:
    return Answer(logits=np.array(logits, np.float32), group=None, provider=CPU, latency_ms=1.5)


def test_predictions_by_hand(registry: ModelRegistry) -> None:
    variant = registry.models()[0].variant
    rest = len(variant.classes) - 3
    # exp of the logits is 1, 3, 4, 0, ...: probabilities 1/8, 3/8, 4/8; the base's are all 1/3.
    own = output(0.0, math.log(3), math.log(4), *[-200.0] * rest)
    base = output(0.0, 0.0, 0.0, *[-200.0] * rest)
    found = to_prediction(variant, own, base, 2, 1e-6)
    assert [c.class_name for c in found.top] == [variant.classes[2], variant.classes[1]]
    assert [c.prob for c in found.top] == pytest.approx([4 / 8, 3 / 8])
    assert [c.change for c in found.top] == pytest.approx([4 / 8 - 1 / 3, 3 / 8 - 1 / 3])
    # KL = sum of 1/3 log((1/3) / p).
    wanted = sum(math.log(1 / 3 / p) / 3 for p in (1 / 8, 3 / 8, 4 / 8))
    assert found.kl_to_base == pytest.approx(wanted, rel=1e-5)
    assert (found.latency_ms, found.parity, found.provider) == (1.5, 1e-6, CPU)
    alone = to_prediction(variant, own, None, 99, None)
    assert len(alone.top) == len(variant.classes)
    assert {c.change for c in alone.top} == {None}
    assert alone.kl_to_base is None


def test_equal_models_differ_by_nothing_and_ties_keep_the_order(registry: ModelRegistry) -> None:
    variant = registry.models()[0].variant
    even = output(*[1.0] * len(variant.classes))
    found = to_prediction(variant, even, even, 3, None)
    assert [c.class_name for c in found.top] == list(variant.classes[:3])
    assert [c.change for c in found.top] == [0.0, 0.0, 0.0]
    assert found.kl_to_base == 0.0


def test_large_logits_do_not_overflow(registry: ModelRegistry) -> None:
    rest = len(registry.models()[0].variant.classes) - 2
    found = output(1000.0, 999.0, *[-1000.0] * rest)
    # 1 / (1 + e^-1)
    assert found.probs[0] == pytest.approx(0.7310586, rel=1e-5)
    assert found.probs.sum() == pytest.approx(1.0)


def test_nothing_is_written_to_the_terminal(tiny_checkpoints: Path) -> None:
    program = """
import sys
from pathlib import Path
import numpy as np
from app.inference import Predictor
from app.registry import ModelRegistry
model = ModelRegistry(Path(sys.argv[1])).models()[0]
side = model.variant.img_size
Predictor("auto", threads=1).run(model, np.zeros((3, side, side), np.float32))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tiny_checkpoints)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == ("", "")
