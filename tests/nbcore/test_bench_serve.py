"""The serving bench: ratios by hand, processes that answer or fail alone, and the whole command."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nbcore.__main__ import main
from nbcore.bench import serve_line
from nbcore.bench.contenders import CONTENDERS, ORDER
from nbcore.bench.serve import ServeBench, bench_serve, default_variants
from nbcore.bench.serve_line import Line
from nbcore.bench.serve_process import ServeProcess, photos, serve_requests
from nbcore.bench.serve_report import Cell, ratio, summarise, table
from nbcore.bench.serve_task import CHECKED_PHOTOS, ServeTask
from nbcore.checkpoint import Manifest, read_manifest
from tests.nbcore.variants import VARIANT, named

TASK = ServeTask(
    contender="eager",
    variant="a",
    checkpoints="nowhere",
    precision="fp32",
    device="cpu",
    threads=1,
    batches=(2, 4),
)


def cell(windows: list[list[float]], *, batch: int = 8, place: str = "host", **task: Any) -> Cell:
    return Cell(task=replace(TASK, **task), batch=batch, place=place, windows=windows)


def report_of(cells: list[Cell], device: str = "cpu") -> dict[str, Any]:
    report = {
        "device": "a device",
        "device_type": device,
        "contenders": {name: CONTENDERS[name].title for name in ORDER},
        "variants": {
            "a": {"base": None, "macs_ratio": 1.0},
            "half": {"base": "a", "macs_ratio": 0.5},
            "quarter": {"base": "a", "macs_ratio": 0.25},
        },
    }
    summarise(report, cells)
    return report


def variant_task(folder: Path, contender: str) -> ServeTask:
    dense = next(v for v in read_manifest(folder).variants if v.base is None)
    return replace(TASK, contender=contender, variant=dense.id, checkpoints=str(folder))


def test_a_ratio_pairs_the_windows_of_each_round() -> None:
    # 10/5, 30/10, 20/20; the pooled medians would say 20/10.
    found = ratio([10.0, 30.0, 20.0], [5.0, 10.0, 20.0])
    assert found == {"ratio": 2.0, "range": [1.0, 3.0]}


def test_cells_tell_medians_of_runs_and_the_gain_over_dense_of_the_same_kind() -> None:
    cells = [
        # Another contender's dense model, which must not be compared with.
        cell([[1.0], [1.0]], contender="onnx"),
        cell([[10.0, 12.0], [14.0]]),
        cell([[4.0, 6.0], [7.0]], variant="half"),
    ]
    other, dense, half = report_of(cells)["cells"]
    assert (dense["ms"], dense["num_runs"], dense["img_s"]) == (12.0, 3, pytest.approx(8 / 0.012))
    assert dense["ms_iqr"] == [11.0, 13.0]
    assert "speedup" not in dense
    assert "speedup" not in other
    # Round by round 11/5 and 14/7.
    assert half["speedup"] == {"ratio": pytest.approx(2.1), "range": [2.0, pytest.approx(2.2)]}
    assert half["inverse_macs_ratio"] == 2.0


def test_targets_name_what_is_met_and_what_is_not() -> None:
    cells = [
        cell([[30.0]], contender="served"),
        cell([[15.0]], contender="served", variant="half"),
        cell([[12.0]], contender="served", variant="quarter"),
    ]
    report = report_of(cells)
    found = {target["variant"]: (target["wanted"], target["ratio"], target["met"]) for target in
             report["targets"]}  # fmt: skip
    assert found == {"half": (1.7, 2.0, True), "quarter": (3.0, 2.5, False)}
    said = "\n".join(table(report))
    assert "2.50 (2.50-2.50), wanted 3: NOT met (quarter, fp32, from host memory)" in said


def test_targets_of_a_card_hold_served_against_torch_in_the_same_precision_and_place() -> None:
    gpu: dict[str, Any] = {"device": "cuda", "batch": 1, "precision": "fp16"}
    cells = [
        cell([[4.0]], **gpu),
        cell([[0.9]], contender="compile", **gpu),
        cell([[1.0]], contender="served", **gpu),
        cell([[9.0]], contender="served", **gpu | {"precision": "tf32"}),
    ]
    targets = report_of(cells, "cuda")["targets"]
    assert [(t["precision"], t["ratio"], t["met"]) for t in targets] == [
        ("fp16", 4.0, True),
        ("fp16", 0.9, False),
    ]


def test_photos_of_a_small_batch_begin_those_of_a_large_one() -> None:
    many = photos(40, 32)
    assert many.dtype == np.uint8
    assert many.min() < many.max()
    np.testing.assert_array_equal(photos(3, 32), many[:3])
    np.testing.assert_array_equal(photos(CHECKED_PHOTOS, 32), many[:CHECKED_PHOTOS])


def test_default_variants_are_dense_and_one_unmitigated_at_each_budget() -> None:
    manifest = Manifest(
        variants=(
            replace(named("dense", None), macs_ratio=1.0),
            replace(named("m25-none", "dense"), macs_ratio=0.249),
            replace(named("m50-handoff", "dense"), macs_ratio=0.5, mitigation="handoff"),
            replace(named("m50-none", "dense"), macs_ratio=0.499),
            replace(named("other", "elsewhere"), macs_ratio=0.1),
        )
    )
    assert default_variants(manifest) == ("dense", "m50-none", "m25-none")
    with pytest.raises(ValueError, match="no dense variant; name variants with --variants"):
        default_variants(Manifest(variants=(VARIANT,)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"contenders": ("tvm",)}, r"unknown contenders \['tvm'\]; available: compile"),
        ({"precisions": ("fp8",)}, r"unknown precisions \['fp8'\]; available: fp32"),
        ({"batches": (0,)}, "batch size of at least 1"),
        ({"device": "tpu"}, "device must be cpu or cuda, got 'tpu'"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServeBench(checkpoints=Path(), **wrong)


def test_a_precision_that_no_contender_has_here_is_refused(tiny_checkpoints: Path) -> None:
    bench = ServeBench(
        checkpoints=tiny_checkpoints, contenders=("eager",), precisions=("tf32",), batches=(1,)
    )
    with pytest.raises(ValueError, match=r"none of \('eager',\) does \('tf32',\) on cpu"):
        bench_serve(bench, command="tests", out=Path("unused"), num_cores=1)


def test_every_contender_gives_the_same_logits(tiny_checkpoints: Path) -> None:
    found = {}
    # Compiling takes minutes here; what it compiles is the eager model.
    for name in sorted(CONTENDERS, key=lambda name: name != "eager"):
        if CONTENDERS[name].compiles:
            continue
        process = ServeProcess(variant_task(tiny_checkpoints, name))
        process.answer({"do": "open"})
        warm = process.answer({"do": "warm", "batch": 2})
        assert warm["places"] == ["host"]
        assert warm["host_bytes"] > 1e7
        assert warm["device_bytes"] is None
        times = process.answer({"do": "measure", "batch": 2, "place": "host", "seconds": 0.0})["ms"]
        assert len(times) == 1
        assert times[0] > 0
        found[name] = np.array(process.answer({"do": "logits"})["logits"])
    classes = len(read_manifest(tiny_checkpoints).variants[0].classes)
    assert found["eager"].shape == (CHECKED_PHOTOS, classes)
    assert np.ptp(found["eager"], axis=0).min() > 0
    for name, logits in found.items():
        np.testing.assert_allclose(logits, found["eager"], atol=1e-5, err_msg=name)


def test_a_failure_is_an_answer_and_the_next_request_is_served(tiny_checkpoints: Path) -> None:
    task = variant_task(tiny_checkpoints, "eager")
    asked = [{"do": "measure", "batch": 9, "place": "host", "seconds": 0.0}, {"do": "open"}]
    answers = io.StringIO()
    serve_requests(task, io.StringIO("\n".join(json.dumps(a) for a in asked)), answers)
    first, second = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert first == {"error": "KeyError: (9, 'host')"}
    assert second["seconds"] > 0


def test_a_process_that_ends_leaves_its_last_words() -> None:
    line = Line(TASK)
    try:
        # Its folder holds no manifest.
        assert "nowhere" in line.start(compile_threads=1)["error"]
        assert "error" in line.ask({"do": "open"})
    finally:
        line.close()


def test_a_process_that_gives_no_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_line, "ANSWER_LIMIT_S", 0.01)
    line = Line(TASK)
    try:
        assert line.start(compile_threads=1) == {"error": "the process ended with status -9"}
    finally:
        line.close()


def test_compiling_ends_at_its_limit_and_the_others_are_measured(
    tiny_checkpoints: Path, tmp_path: Path
) -> None:
    dense = variant_task(tiny_checkpoints, "eager").variant
    bench = ServeBench(
        checkpoints=tiny_checkpoints,
        variants=(dense,),
        contenders=("compile", "eager"),
        batches=(1,),
        seconds=0.0,
        rounds=1,
        warm_up_seconds=0.0,
    )
    out = tmp_path / "serve.json"
    compiled, eager = bench_serve(bench, command="tests", out=out, num_cores=1)["cells"]
    assert compiled["error"] == "not warm within --warm-up-seconds"
    assert "ms" not in compiled
    assert eager["num_runs"] == 1
    assert "failed: not warm" in "\n".join(table(json.loads(out.read_text())))


@pytest.mark.slow
def test_the_command_writes_report_and_figure(
    tiny_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serve.json"
    arguments = ["bench", "serve", "--checkpoints", str(tiny_checkpoints), "--device", "cpu"]
    arguments += ["--contenders", "eager", "onnx", "served", "--batches", "1", "3"]
    arguments += ["--threads", "1", "--seconds", "0", "--rounds", "2", "--out", str(out)]
    assert main(arguments) == 0
    report = json.loads(out.read_text())
    assert report["command"] == f"python -m nbcore {' '.join(arguments)}"
    assert {"device", "versions", "commit", "num_cores", "threads"} <= report.keys()
    ids = list(report["variants"])
    assert report["variants"][ids[0]]["base"] is None
    assert len(report["cells"]) == 3 * 2 * len(ids)
    for found in report["cells"]:
        assert found["num_runs"] == 2
        assert found["largest_logit_difference"] < 1e-4
        assert ("speedup" in found) == (found["variant"] != ids[0])
    assert all(f"{ids[0]:32s} {name}" in capsys.readouterr().out for name in ("eager",))
    with Image.open(out.with_suffix(".png")) as figure:
        assert len(figure.convert("RGB").getcolors(1 << 24) or ()) > 50
