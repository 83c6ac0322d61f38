"""The training bench: what the watch counts, that both loops train alike, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_dataset

from nbcore.__main__ import main
from nbcore.bench import task as task_module
from nbcore.bench import train as bench_module
from nbcore.bench.own_loop import bench_config, time_own_loop
from nbcore.bench.photos import made_up_photos, write_photos
from nbcore.bench.task import OURS, RECIPE, EnoughError, Stopwatch, TrainTask
from nbcore.bench.timm_loop import TIMM, command_line, time_timm_loop
from nbcore.bench.train import TrainBench, bench_train, table
from nbcore.data import load_dataset
from nbcore.recipes import RECIPES

CPU = torch.device("cpu")
SYNTHETIC = ("--synthetic", 16, "--img-size", 32, "--batch-size", 4, "--workers", 1)


@pytest.fixture
def toy_task(tmp_path: Path) -> TrainTask:
    write_photos(made_up_photos(16, 32), ("a", "b"), tmp_path / "train")
    return TrainTask(
        contender=OURS,
        device="cpu",
        dataset="folder",
        data_dir=str(tmp_path),
        photos=str(tmp_path),
        img_size=32,
        batch_size=4,
        workers=1,
        seconds=0.0,
    )


def test_watch_drops_what_warms_up_and_stops_when_it_has_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 50.0, 60.0, 62.0, 66.0, 67.0, 71.0])
    monkeypatch.setattr(task_module.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(CPU, seconds=10.0)
    for _ in range(5):
        watch.lap(100)  # after warming up: 2 + 4 + 1 s, three windows but not ten seconds
    with pytest.raises(EnoughError):
        watch.lap(100)  # + 4 s
    found = watch.measurement(compiled=False)
    assert found.windows == (50.0, 25.0, 100.0, 25.0)
    assert found.first_epoch_s == 50.0


def test_timm_reads_the_same_photos_with_the_same_targets(tmp_path: Path) -> None:
    split = made_up_photos(24, 48)
    # Twelve classes, so that the order of their names is not that of their numbers.
    split = replace(split, targets=torch.arange(24) % 12)
    write_photos(split, tuple(f"{12 - i} c/d" for i in range(12)), tmp_path / "train")
    dataset = create_dataset("", root=str(tmp_path), split="train", is_training=True, batch_size=4)
    assert len(dataset) == 24
    for i in range(24):
        picture, target = dataset[i]
        position = int(Path(dataset.filename(i)).stem)
        assert target == int(split.targets[position])
        error = np.asarray(picture).transpose(2, 0, 1) - split.images[position].numpy().astype(int)
        assert np.abs(error).mean() < 4


def test_bench_trains_the_dense_model_of_the_recipe_at_one_size() -> None:
    dense = RECIPES[RECIPE]()[0]
    run = bench_config(224, 256)
    assert run.model == dense.model
    changed = {
        name: getattr(run.train, name)
        for name in type(run.train).__dataclass_fields__
        if getattr(run.train, name) != getattr(dense.train, name)
    }
    assert set(changed) <= {"epochs", "batch_size", "erasing", "three_augment", "eval_every"}
    assert [side for side, _ in run.train.epochs] == [224]
    assert run.train.batch_size == 256


def test_own_loop_is_the_training_loop_itself(
    toy_task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    lap = Stopwatch.lap
    monkeypatch.setattr(Stopwatch, "lap", lambda self, n: (counted.append(n), lap(self, n)))
    found = time_own_loop(toy_task)
    per_epoch = len(load_dataset("folder", Path(toy_task.data_dir)).train.names) // 4 * 4
    assert counted == [per_epoch] * 5
    assert len(found.windows) == 3
    assert not found.compiled


@pytest.mark.parametrize("name", ["timm-multi-epochs", "timm-mix-on-device"])
def test_timm_loop_steps_like_ours(
    name: str, toy_task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbcore.bench.timm_loop as loop

    seen: list[tuple[Any, ...]] = []

    class Loss(loop.SoftTargetCrossEntropy):
        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            seen.append((x.shape, target))
            return super().forward(x, target)

    monkeypatch.setattr(loop, "SoftTargetCrossEntropy", Loss)
    found = time_timm_loop(toy_task, TIMM[name])
    assert len(seen) == 5 * 4
    for shape, target in seen:
        assert shape == (4, 2)
        # Smoothed by 0.1 over two classes and mixed: every target keeps at least 0.05.
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        assert float(target.min()) >= 0.05 - 1e-6
    assert len({tuple(target.flatten().tolist()) for _, target in seen}) > 5
    assert found.notes["loader_img_s"] > 0


def test_command_line_names_what_was_measured(toy_task: TrainTask) -> None:
    plain = command_line(toy_task, TIMM["timm"])
    assert "--scale 0.25 1.0 --color-jitter 0.3 --hflip 0.5" in plain
    assert "--mixup 0.8 --cutmix 1.0 --smoothing 0.1" in plain
    assert "--torchcompile" not in plain
    best = command_line(toy_task, TIMM["timm-multi-epochs"])
    assert best.startswith(plain)
    assert best.endswith(
        "--torchcompile --channels-last --opt-kwargs fused=True --use-multi-epochs-loader"
    )


def measured(speeds: dict[str, list[list[float]]]) -> Any:
    """Stands for the processes: gives each contender's prepared windows, one process at a time."""
    left = {name: iter(processes) for name, processes in speeds.items()}

    def answer(task: TrainTask) -> dict[str, Any]:
        windows = next(left[task.contender])
        return {"windows": windows, "notes": {}} if windows else {"error": "OSError: full"}

    return answer


def test_ours_and_the_fastest_setting_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    speeds = {
        OURS: [[30.0, 36.0, 33.0], [40.0, 41.0, 42.0]],
        "timm": [[10.0, 11.0, 12.0]],
        "timm-compile": [[14.0, 15.0, 16.0], [13.0, 12.0, 11.0]],
        "timm-multi-epochs": [[]],
    }
    answer = measured(speeds)
    monkeypatch.setattr(
        bench_module, "_in_process", lambda task: (order.append(task.contender), answer(task))[1]
    )
    names = ("timm", "timm-compile", "timm-multi-epochs")
    bench = TrainBench(synthetic=16, img_size=32, batch_size=4, rounds=2, settings=names)
    out = tmp_path / "out" / "bench.json"
    report = bench_train(bench, command="c", out=out)
    assert order == [OURS, *names, OURS, "timm-compile"]
    # Medians: of 30 33 36 40 41 42 it is 38; of 11 12 13 14 15 16 it is 13.5.
    assert report["fastest_timm"] == "timm-compile"
    assert report["ratio"] == 38 / 13.5
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    lines = table(report)
    assert "failed: ['OSError: full']" in lines[4]
    assert lines[-1].endswith("nbcore is 2.81x as fast as timm-compile")


def test_a_bench_without_a_rival_is_an_error_that_keeps_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench_module, "_in_process", measured({OURS: [[30.0, 31.0, 32.0]], "timm": [[]]})
    )
    bench = TrainBench(synthetic=16, img_size=32, batch_size=4, rounds=1, settings=("timm",))
    out = tmp_path / "bench.json"
    with pytest.raises(RuntimeError, match=r"nothing to compare.*OSError: full"):
        bench_train(bench, command="c", out=out)
    assert json.loads(out.read_text())["contenders"][OURS]["img_s"] == 31.0


@pytest.mark.slow
def test_command_measures_both_loops_in_processes_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    options = [*SYNTHETIC, "--seconds", 0, "--rounds", 1, "--settings", "timm", "--out", out]
    assert main([str(x) for x in ("bench", "train", "--device", "cpu", *options)]) == 0
    report = json.loads(out.read_text())
    for name in (OURS, "timm"):
        [process] = report["contenders"][name]["processes"]
        assert len(process["windows"]) == 3
        assert min(process["windows"]) > 0
    assert report["command"].startswith("python -m nbcore bench train --device cpu --synthetic 16")
    assert report["photos"]["num_timm"] == 16
    assert "x as fast as timm\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((*SYNTHETIC[:-1], 0), "workers must be at least 1"),
        ((*SYNTHETIC, "--settings", "fast"), "unknown settings ['fast']; available: timm, "),
        ((*SYNTHETIC, "--batch-size", 17), "a batch of 17 needs as many training photos"),
        (("--data", "nowhere"), "python -m nbcore data imagenette"),
        (("--photos", "nowhere"), "folder needs an image folder, got nowhere"),
    ],
)
def test_wrong_benches_are_one_line_and_exit_status_2(
    options: tuple[object, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "train", "--device", "cpu", *options, "--out", tmp_path / "bench.json"]
    assert main([str(argument) for argument in arguments]) == 2
    assert text in capsys.readouterr().err
