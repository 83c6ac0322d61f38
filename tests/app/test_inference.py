"""Served ONNX == torch; what is said about a run is what ran."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from app import provider
from app.errors import UserError
from app.inference import Output, Predictor, to_prediction
from app.provider import CPU, CUDA, choose_provider, usable_threads
from app.registry import ModelRegistry
from nbcore.checkpoint import Variant
from nbcore.parity import TOLERANCE, differences
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
    with pytest.raises(UserError, match=f"{model.id} failed on this photo"):
        predictor.run(model, np.zeros((3, 7, 7), np.float32))


def output(*logits: float) -> Output:
    none = np.zeros(0, np.float32)
    return Output(
        logits=np.array(logits, np.float32),
        unit_load=none,
        token_load=none,
        stream=none,
        group=None,
        provider=CPU,
        latency_ms=1.5,
    )


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


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_provider("auto") == choose_provider("cpu") == CPU
    with pytest.raises(ValueError, match=r"NB_DEVICE \(--device\) is 'cuda', but torch sees no"):
        choose_provider("cuda")


@pytest.mark.parametrize("problem", [None, "it does not run"])
def test_only_a_session_that_ran_counts_as_cuda(
    monkeypatch: pytest.MonkeyPatch, problem: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(provider, "_cuda_problem", lambda: problem)
    assert choose_provider("cpu") == CPU
    if problem is None:
        assert choose_provider("auto") == choose_provider("cuda") == CUDA
    else:
        assert choose_provider("auto") == CPU
        with pytest.raises(ValueError, match="but it does not run; use 'auto' or 'cpu'"):
            choose_provider("cuda")


class Session:
    """Stands for ONNX Runtime's session on a machine where CUDA does as `behaviour` says."""

    behaviour = "runs"

    def __init__(self, *_: Any, providers: list[Any], **__: Any) -> None:
        assert providers == [(CUDA, {"use_tf32": "0"}), CPU]
        if self.behaviour == "no driver":
            raise RuntimeError("CUDA driver version is insufficient")

    def run(self, *_: Any) -> None:
        if self.behaviour == "no kernel":
            raise RuntimeError("no kernel image is available")

    def get_providers(self) -> list[str]:
        return [CPU] if self.behaviour == "falls back" else [CUDA, CPU]


@pytest.mark.parametrize(
    ("behaviour", "problem"),
    [
        ("runs", None),
        ("falls back", "ONNX Runtime could not load its CUDA provider"),
        ("no driver", "a session on CUDA fails (CUDA driver version is insufficient)"),
        ("no kernel", "a session on CUDA fails (no kernel image is available)"),
    ],
)
def test_a_listed_provider_counts_if_a_session_runs_on_it(
    behaviour: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(Session, "behaviour", behaviour)
    assert provider._cuda_problem() == problem
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert provider._cuda_problem() == "this onnxruntime was built without CUDA"


def test_cuda_is_found_out_where_no_gpu_can_be_seen() -> None:
    """On any machine: its GPUs, if it has some, are hidden from the process that asks."""
    run = subprocess.run(
        [sys.executable, "-c", "from app.provider import _cuda_problem; print(_cuda_problem())"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    problem = run.stdout.strip().splitlines()[-1]
    assert problem.startswith(
        (
            "this onnxruntime was built without CUDA",
            "a session on CUDA fails (",
            "ONNX Runtime could not load its CUDA provider",
        )
    )


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


def test_threads_are_the_wanted_or_the_usable_ones() -> None:
    assert usable_threads(3) == 3
    assert 1 <= usable_threads(0) <= 8
