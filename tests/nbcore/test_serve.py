"""What is served answers as the file does: fused, gated, padded, halved, in eight bits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from nbcore.burden import MeteredViT, calibrate
from nbcore.compact import compact
from nbcore.config import Merge
from nbcore.export import round_to_half, write_onnx
from nbcore.preprocessing import as_input, as_values
from nbcore.serve import (
    ALL,
    CPU,
    CUDA,
    LOGITS,
    Serving,
    device,
    open_served,
    plain_session,
    served_graph,
)
from nbcore.serve import session as session_module
from nbcore.serve.attention import EMITTERS
from nbcore.serve.device import DeviceSession
from nbcore.serve.graph import read_graph
from nbcore.serve.precision import has_single_products, stays_single, to_half
from nbcore.vit import PrunableViT
from tests.nbcore.tiny import AVERAGED, tiny

PHOTOS = torch.randint(
    256, (7, 3, 32, 32), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
)
IMAGES = as_input(PHOTOS).numpy()
BLOCKS = 2
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class File:
    path: Path
    units: int

    def run(self, **feed: np.ndarray) -> Arrays:
        """What the file itself says, in a session of nobody's making but ONNX Runtime's."""
        session = onnxruntime.InferenceSession(self.path, providers=[CPU])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, feed), strict=True))

    def gates(self, rows: int) -> dict[str, np.ndarray]:
        """Some units weaker, some cut, some not summed."""
        rng = np.random.default_rng(rows)
        gate = rng.uniform(-0.5, 1.5, (rows, self.units)).astype(np.float32)
        keep = rng.integers(0, 2, (rows, self.units)).astype(np.float32)
        return {"unit_gate": gate, "unit_keep": keep}


def written(model: PrunableViT, path: Path) -> File:
    round_to_half(MeteredViT(model.float(), [torch.zeros(0)] * len(model.sites)))
    metered = MeteredViT(model, calibrate(model, [as_input(PHOTOS)])).eval().requires_grad_(False)
    write_onnx(metered, path, name="tests-tiny")
    return File(path, model.num_units)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> File:
    """A class token, a register, LayerScale and a convolutional stem."""
    model = tiny(stem="conv", reg_tokens=1, init_values=0.5)
    ready = compact(model, torch.ones(model.num_units))
    return written(ready, tmp_path_factory.mktemp("dense") / "model.onnx")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> File:
    """Widths that differ by block, no LayerScale."""
    model = tiny(**AVERAGED)
    ready = compact(model, torch.arange(model.num_units) % 3 != 0)
    return written(ready, tmp_path_factory.mktemp("pruned") / "model.onnx")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> File:
    """Likewise, and tokens are merged before the second block."""
    model = tiny(merge=Merge(block=1, r=6), **AVERAGED)
    ready = compact(model, torch.arange(model.num_units) % 3 != 0)
    return written(ready, tmp_path_factory.mktemp("merged") / "model.onnx")


@pytest.fixture(params=["dense", "pruned", "merged"])
def file(request: pytest.FixtureRequest) -> File:
    return request.getfixturevalue(request.param)


def alike(found: Arrays, wanted: Arrays) -> None:
    for name, value in found.items():
        if value.dtype == np.int64:
            assert np.array_equal(value, wanted[name])
        else:
            np.testing.assert_allclose(value, wanted[name], rtol=1e-4, atol=1e-5)


def on_host(model: onnx.ModelProto) -> Callable[..., Arrays]:
    """Run a graph on the CPU, whatever it is for."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[CPU])
    names = [output.name for output in session.get_outputs()]
    return lambda **feed: dict(zip(names, session.run(None, feed), strict=True))


@pytest.mark.parametrize("attention", ["exported", *EMITTERS])
@pytest.mark.parametrize("fuse_norms", [False, True])
def test_fused_graphs_answer_as_the_file(file: File, attention: str, fuse_norms: bool) -> None:
    serving = Serving(device="cpu", attention=attention, fuse_norms=fuse_norms, threads=1)
    wanted = file.run(image=IMAGES)
    short = open_served(file.path, serving)
    assert (short.outputs, short.provider) == (LOGITS, CPU)
    alike(short.run(IMAGES), wanted)
    full = open_served(file.path, serving, outputs=ALL, gates=True)
    assert set(full.outputs) == set(wanted)
    alike(full.run(IMAGES), wanted)
    gates = file.gates(len(IMAGES))
    alike(full.run(IMAGES, **gates), file.run(image=IMAGES, **gates))
    keep = file.gates(1)["unit_keep"]
    alike(full.run(IMAGES, unit_keep=keep), file.run(image=IMAGES, unit_keep=keep))


def kinds(file: File, **options: Any) -> Counter[str]:
    model = served_graph(file.path, Serving(device="cpu", **options), CPU)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("attention", "operator"),
    [("fused", "Attention"), ("multihead", "MultiHeadAttention"), ("opset23", "Attention")],
)
def test_every_block_is_fused(file: File, attention: str, operator: str) -> None:
    found = kinds(file, attention=attention)
    assert (found[operator], found["Softmax"]) == (BLOCKS, 0)
    assert kinds(file, attention="exported")["Softmax"] == BLOCKS


def test_norms_are_joined_with_what_is_added_before(pruned: File, dense: File) -> None:
    # Both sublayers of both blocks end in an addition and a norm, but for the last, behind which
    # tokens are averaged. LayerScale stands between, and is left as it is.
    assert kinds(pruned, fuse_norms=True)["SkipLayerNormalization"] == 2 * BLOCKS - 1
    assert kinds(pruned, fuse_norms=True)["BiasGelu"] == BLOCKS
    assert kinds(dense, fuse_norms=True)["SkipLayerNormalization"] == 0
    assert kinds(pruned)["SkipLayerNormalization"] == 0


def test_logits_alone_cost_no_loads_and_no_gates(file: File) -> None:
    model = served_graph(file.path, Serving(device="cpu", fuse_norms=False), CPU)
    assert [value.name for value in model.graph.input] == ["image"]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert not [name for name in constants if "unit_" in name]
    # Loads are roots of quotients; the match of merged tokens takes the only other root.
    roots = sum(node.op_type == "Sqrt" for node in model.graph.node)
    assert roots == ("merged" in str(file.path))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("full", [False, True])
def test_padded_runs_answer_as_lone_ones(file: File, count: int, full: bool) -> None:
    serving = Serving(device="cpu", batch_sizes=(1, 2, 4), threads=1)
    graph = served_graph(file.path, serving, CPU, outputs=ALL if full else LOGITS, gates=full)
    session = DeviceSession(graph, serving, CPU, place="cpu")
    # What lies in the buffers from before must not be seen.
    session.run(IMAGES[::-1])
    session.warm()
    session.run_resident(4)
    wanted = file.run(image=IMAGES[:count])
    alike(session.run(IMAGES[:count]), wanted)
    alike(session.run([IMAGES[:1], IMAGES[1:count]]), wanted)
    with pytest.raises(ValueError, match=r"rows are \(3, 32, 32\) here, got \(3, 1, 1\)"):
        session.run(IMAGES[:count, :, :1, :1])
    if full:
        gates = file.gates(count)
        alike(session.run(IMAGES[:count], **gates), file.run(image=IMAGES[:count], **gates))
        alike(session.run(IMAGES[:count]), wanted)


@pytest.mark.parametrize("on_host", [False, True])
def test_bytes_are_answered_as_the_same_photos_in_floats(pruned: File, on_host: bool) -> None:
    serving = Serving(device="cpu", batch_sizes=(1, 4), threads=1)
    session: Any = open_served(pruned.path, serving, outputs=ALL, gates=True)
    if not on_host:
        session = DeviceSession(served_graph(pruned.path, serving, CPU), serving, CPU, place="cpu")
    pixels = PHOTOS.numpy()
    for count in (1, 3, 4, 7):
        wanted = session.run(IMAGES[:count])
        mixed = [pixels[:1], IMAGES[1:count]] if count > 1 else [pixels[:1]]
        for given in (pixels[:count], [pixels[:1], pixels[1:count]], mixed):
            found = session.run(given)
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert np.array_equal(as_values(pixels), IMAGES)
    assert as_values(IMAGES) is IMAGES


def test_sizes_are_padded_to_the_next() -> None:
    serving = Serving(batch_sizes=(1, 4, 16))
    assert [serving.padded(n) for n in (1, 2, 4, 5, 16, 40)] == [1, 4, 4, 16, 16, 16]


def test_a_device_session_belongs_to_one_thread(pruned: File) -> None:
    serving = Serving(device="cpu", batch_sizes=(1,), threads=1)
    session = DeviceSession(served_graph(pruned.path, serving, CPU), serving, CPU, place="cpu")
    session.run(IMAGES[:1])
    errors: list[str] = []

    def run() -> None:
        try:
            session.run(IMAGES[:1])
        except RuntimeError as error:
            errors.append(str(error))

    other = threading.Thread(target=run)
    other.start()
    other.join()
    assert errors == ["this session belongs to the thread that ran it first"]


def test_what_cannot_be_recorded_is_launched(
    pruned: File, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    serving = Serving(device="cpu", batch_sizes=(1, 4), threads=1)
    session = DeviceSession(served_graph(pruned.path, serving, CPU), serving, CPU, place="cpu")
    # As on CUDA, where recording breaks off at what would have to wait for the GPU.
    session.cuda_graph, launch = True, session._launch

    def fail_while_recording(size: int, *, record: bool = True) -> None:
        if session.cuda_graph and record:
            raise RuntimeError("operation not permitted when stream is capturing")
        launch(size, record=record)

    monkeypatch.setattr(session, "_launch", fail_while_recording)
    alike(session.run(IMAGES[:3]), pruned.run(image=IMAGES[:3]))
    assert not session.cuda_graph
    assert "runs cannot be recorded" in caplog.text

    def fail(size: int, *, record: bool = True) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(session, "_launch", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        session.run(IMAGES[:1])


def test_a_size_runs_twice_before_it_is_recorded(
    pruned: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lays out memory in the first run and asks for it in the second, and a run that
    is recorded may ask for none."""
    serving = Serving(device="cpu", batch_sizes=(1, 4), threads=1)
    session = DeviceSession(served_graph(pruned.path, serving, CPU), serving, CPU, place="cpu")
    session.cuda_graph, ran = True, []

    class Binds:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def io_binding(self) -> Any:
            return self.inner.io_binding()

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            ran.append(options.get_run_config_entry("gpu_graph_id"))
            self.inner.run_with_iobinding(binding, options)

    session.session = Binds(session.session)
    alike(session.run(IMAGES[:3]), pruned.run(image=IMAGES[:3]))
    assert ran == ["-1", "-1", *["4"] * (device.RUNS_BEFORE_USE + 1)]
    session.run_resident(4)
    assert ran[-2:] == ["4", "4"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"use_tf32": 0, "enable_cuda_graph": 1}),
        ({"precision": "tf32", "cuda_graph": False}, {"use_tf32": 1, "enable_cuda_graph": 0}),
        ({"convolutions": "bias"}, {"use_tf32": 0, "enable_cuda_graph": 1, "fuse_conv_bias": 1}),
        (
            {"convolutions": "nhwc-bias"},
            {"use_tf32": 0, "enable_cuda_graph": 1, "prefer_nhwc": 1, "fuse_conv_bias": 1},
        ),
    ],
)
def test_options_of_cuda(pruned: File, given: dict[str, Any], wanted: dict[str, int]) -> None:
    assert cuda_options(pruned, **given) == {"user_compute_stream": 1234, **wanted}


def cuda_options(file: File, **given: Any) -> dict[str, Any]:
    """What ONNX Runtime would be told about a session on CUDA that gives logits."""
    plain = Serving(device="cpu", batch_sizes=(1,), threads=1)
    session: Any = DeviceSession(served_graph(file.path, plain, CPU), plain, CPU, place="cpu")
    serving = Serving(**{"convolutions": "plain"} | given)
    session._model = served_graph(file.path, serving, CUDA)
    session.provider, session.serving, session.cuda_graph = CUDA, serving, serving.cuda_graph
    session._stream = SimpleNamespace(cuda_stream=1234)
    return session._options()


def test_half_precision_takes_tensor_cores_where_nothing_single_would_be_rounded(
    dense: File, pruned: File, merged: File
) -> None:
    """ONNX Runtime's switch for TF32 also keeps half-precision convolutions off tensor cores; loads
    are products in single precision, the match of merged tokens one in double."""
    for file, outputs, rounds in (
        (dense, LOGITS, True),
        (pruned, LOGITS, True),
        (merged, LOGITS, True),
        (pruned, ALL, False),
        (merged, ALL, False),
    ):
        model = served_graph(file.path, Serving(precision="fp16"), CUDA, outputs=outputs)
        assert has_single_products(model) is not rounds
    assert cuda_options(merged, precision="fp16")["use_tf32"] == 1


class Stream:
    """Stands for torch's streams: 32 of each priority, handed out in turns."""

    given: ClassVar[Counter[int]] = Counter()

    def __init__(self, priority: int) -> None:
        assert -device.POOLS < priority <= 0
        self.name = priority, self.given[priority] % device.POOL_SIZE
        self.given[priority] += 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def test_sessions_do_not_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    streams = [device.unused_stream() for _ in range(device.POOLS * device.POOL_SIZE)]
    assert len({stream.name for stream in streams}) == len(streams)
    # With none left, one is shared; and a closed session's is free again.
    assert device.unused_stream() in streams
    free = streams.pop(40).name
    assert device.unused_stream().name == free


class Card:
    """Stands for a session on a GPU that knows none of ONNX Runtime's own operators."""

    def __init__(self, model: onnx.ModelProto, serving: Serving, provider: str) -> None:
        self.serving, self.kinds = serving, Counter(node.op_type for node in model.graph.node)

    def warm(self, sizes: tuple[int, ...]) -> None:
        if own := {"Attention", "SkipLayerNormalization", "BiasGelu"} & self.kinds.keys():
            raise RuntimeError(f"no kernel for {sorted(own)}")


def test_what_does_not_run_fused_runs_as_exported(
    pruned: File, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session_module, "choose_provider", lambda _: CUDA)
    monkeypatch.setattr(device, "DeviceSession", Card)
    found: Any = open_served(pruned.path, Serving(device="cuda", precision="fp16"))
    assert (found.kinds["Softmax"], found.serving.precision) == (BLOCKS, "fp16")
    assert "fused operators do not run here" in caplog.text
    # What was asked for by name is not replaced.
    with pytest.raises(RuntimeError, match="no kernel for"):
        open_served(pruned.path, Serving(device="cuda", attention="fused"))


@pytest.mark.parametrize("attention", ["exported", *EMITTERS])
@pytest.mark.parametrize("fuse_norms", [False, True])
def test_half_precision_moves_logits_by_its_rounding(
    file: File, attention: str, fuse_norms: bool
) -> None:
    """Eleven bits, 5e-4 of a value, in each of some dozen operators."""
    serving = Serving(precision="fp16", attention=attention, fuse_norms=fuse_norms)
    wanted = file.run(image=IMAGES)
    for full in (False, True):
        model = served_graph(
            file.path, serving, "CUDAExecutionProvider", outputs=ALL if full else LOGITS, gates=full
        )
        weights = [t for t in model.graph.initializer if np.prod(t.dims) >= 256]
        halves = [t for t in weights if t.data_type == TensorProto.FLOAT16]
        # Loads keep single copies of what they read: weights, means, and the positions.
        assert len(halves) >= 4 * BLOCKS
        assert full or len(halves) == len(weights)
        gates = {} if not full else {n: np.ones((1, file.units), np.float32) for n in file.gates(1)}
        found = on_host(model)(image=IMAGES, **gates)
        assert {value.dtype for value in found.values()} <= {np.dtype("f4"), np.dtype("i8")}
        scale = np.abs(wanted["logits"]).max()
        np.testing.assert_allclose(found["logits"], wanted["logits"], atol=5e-3 * scale, rtol=0)


def test_half_precision_leaves_pixels_and_the_match_in_single(merged: File) -> None:
    graph = read_graph(merged.path, (*LOGITS, "token_group"), gates=False)
    single = stays_single(graph)
    products = [n.output[0] for n in graph.nodes if n.op_type == "MatMul"]
    # One of all products is of the match: similarities of tokens.
    assert sum(name in single for name in products) == 1
    best = next(n for n in graph.nodes if n.op_type == "ArgMax")
    assert set(best.input) & single
    pixels = next(n for n in graph.nodes if "image" in n.input)
    assert pixels.output[0] in single
    to_half(graph)
    found = on_host(graph.finish())(image=IMAGES)
    # The tokens that are matched were rounded, so a tie may fall the other way: rarely.
    wanted = merged.run(image=IMAGES)["token_group"]
    assert (found["token_group"] == wanted).mean() > 0.9


def test_eight_bits_move_logits_little(file: File) -> None:
    serving = Serving(device="cpu", precision="int8", threads=1)
    model = served_graph(file.path, serving, CPU)
    found = Counter(node.op_type for node in model.graph.node)
    # Projections of queries, keys and values in one; of heads; in and out of the MLP.
    assert found["MatMulInteger"] >= 4 * BLOCKS
    wanted = file.run(image=IMAGES)["logits"]
    logits = open_served(file.path, serving).run(IMAGES)["logits"]
    assert 0 < np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()
    full = open_served(file.path, serving, outputs=ALL, gates=True)
    rough = full.run(IMAGES, **file.gates(len(IMAGES)))
    exact = file.run(image=IMAGES, **file.gates(len(IMAGES)))
    for name in ("logits", "unit_load", "stream"):
        assert np.linalg.norm(rough[name] - exact[name]) < 0.1 * np.linalg.norm(exact[name])


def test_gates_need_a_session_with_gates(pruned: File) -> None:
    session = open_served(pruned.path, Serving(device="cpu", threads=1))
    with pytest.raises(ValueError, match="without unit_gate; use gates=True"):
        session.run(IMAGES, unit_gate=pruned.gates(1)["unit_gate"])


def test_unknown_outputs_are_named(pruned: File) -> None:
    with pytest.raises(ValueError, match=r"has no output \['depth'\]; it has \['logits',"):
        open_served(pruned.path, Serving(device="cpu"), outputs=("depth",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, tensorrt, got 'gpu'"),
        ({"precision": "fp8"}, "precision must be one of fp32, tf32, fp16, int8, got 'fp8'"),
        ({"attention": "flash"}, "attention must be one of auto, exported,"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 runs on auto, cuda, tensorrt, not on cpu"),
        ({"precision": "int8", "device": "cuda"}, "int8 runs on auto, cpu, not on cuda"),
        ({"batch_sizes": (4, 1)}, "batch_sizes must be positive and rising"),
        ({"batch_sizes": ()}, "batch_sizes must be positive and rising"),
        ({"threads": -1}, "threads must be from 0 to 256"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Serving(**options)


def test_half_precision_is_refused_on_the_cpu(
    pruned: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="precision fp16 needs a GPU; this runs on the CPU"):
        open_served(pruned.path, Serving(precision="fp16"))


def test_a_plain_session_is_the_file_as_it_is(file: File) -> None:
    session = plain_session(file.path, threads=1)
    assert session.get_providers() == [CPU]
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": IMAGES}), strict=True))
    alike(found, file.run(image=IMAGES))
