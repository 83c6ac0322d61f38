"""A device counts if a session really runs there; one that was asked for fails loudly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from nbcore.serve import CPU, CUDA, Serving, choose_provider, open_served, provider, usable_threads
from tests.sources import ROOT


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_provider("auto") == choose_provider("cpu") == CPU
    for device in ("cuda", "tensorrt"):
        words = rf"NB_DEVICE \(--device\) is '{device}', but torch sees no"
        with pytest.raises(ValueError, match=words):
            choose_provider(device)
        with pytest.raises(ValueError, match=words):
            open_served("any.onnx", Serving(device=device))


@pytest.mark.parametrize("problem", [None, "it does not run"])
def test_only_a_session_that_ran_counts_as_cuda(
    monkeypatch: pytest.MonkeyPatch, problem: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(provider, "_problem", lambda _: problem)
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
        assert providers == [CUDA]
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
        ("falls back", f"ONNX Runtime could not load its {CUDA}"),
        ("no driver", f"a session on {CUDA} fails (CUDA driver version is insufficient)"),
        ("no kernel", f"a session on {CUDA} fails (no kernel image is available)"),
    ],
)
def test_a_listed_provider_counts_if_a_session_runs_on_it(
    behaviour: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **_: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(Session, "behaviour", behaviour)
    assert provider._problem(CUDA) == problem
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert provider._problem(CUDA) == f"this onnxruntime was built without {CUDA}"


def test_cuda_is_found_out_where_no_gpu_can_be_seen() -> None:
    """On any machine: its GPUs, if it has some, are hidden from the process that asks."""
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from nbcore.serve.provider import CUDA, _problem; print(_problem(CUDA))",
        ],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    problem = run.stdout.strip().splitlines()[-1]
    assert problem.startswith(
        (
            f"this onnxruntime was built without {CUDA}",
            f"a session on {CUDA} fails (",
            f"ONNX Runtime could not load its {CUDA}",
        )
    )


def test_what_a_gpu_refuses_is_an_error_and_no_session_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime's Python opens one on the CPU instead, and only prints why."""
    made: list[list[Any]] = []

    def refuse(self: Any, providers: list[Any], *_: Any) -> None:
        made.append(providers)
        self._fallback_providers = [CPU]
        raise RuntimeError("This session cannot use the graph capture feature")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", refuse)
    wanted = provider.provider_options(CUDA, enable_cuda_graph=1)
    with pytest.raises(RuntimeError, match="graph capture"):
        provider.new_session(b"model", provider.session_options(1), wanted)
    assert made == [[(CUDA, {"enable_cuda_graph": "1"}), CPU]]


@pytest.mark.parametrize(("on_gpu", "torn_down"), [(False, True), (True, False)])
def test_a_process_that_used_a_gpu_leaves_without_the_teardown_of_libraries(
    on_gpu: bool, torn_down: bool
) -> None:
    """Which crashes; what was written and the status are kept."""
    code = (
        "import atexit, sys\n"
        "from nbcore.serve import provider\n"
        "atexit.register(sys.stderr.write, 'torn down')\n"
        f"provider._ON_GPU.set() if {on_gpu} else None\n"
        "print('the last line')\n"
        "provider.leave(3)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout) == (3, "the last line\n")
    assert ("torn down" in run.stderr) is torn_down


@pytest.mark.skipif(sys.platform != "linux", reason="where a report is kept differs")
@pytest.mark.parametrize("first", ["nbcore", "sys"])
def test_nothing_is_reported_to_the_maker_of_onnxruntime(first: str, tmp_path: Path) -> None:
    """What is to be sent is kept in a file first; in CI, and since nbcore is imported, none is."""
    subprocess.run(
        [sys.executable, "-c", f"import {first}, onnxruntime"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        cwd=ROOT,
        check=True,
    )
    reports = (tmp_path / ".cache" / "Microsoft").exists()
    assert not reports if first == "nbcore" else reports == reporting()


def reporting() -> bool:
    """Whether this release of ONNX Runtime knows the switch, and so has what it switches off."""
    library = Path(onnxruntime.__file__).parent / "capi"
    (binding,) = library.glob("onnxruntime_pybind11_state*")
    return b"ORT_DISABLE_TELEMETRY" in binding.read_bytes()


def test_threads_are_the_wanted_or_the_usable_ones() -> None:
    assert usable_threads(3) == 3
    assert 1 <= usable_threads(0) <= 8
