"""Training speed of our loop beside timm's, each in processes of its own, in turns.

The same model, photos, side, batch size, augmentation, loss, precision, optimiser, clipping and
average of weights on both sides. What differs: timm decodes files and augments in worker processes
and waits for each loss; we hold decoded photos on the device and augment there.

First every contender runs once, then ours and the fastest of timm's settings go on in turns. An
epoch is one window; the first ones, with compilation and cold caches, are left out. Validation is
left out on both sides.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nbcore.bench.cores import usable_cores
from nbcore.bench.own_loop import bench_config
from nbcore.bench.photos import JPEG_QUALITY, made_up_photos, write_photos
from nbcore.bench.task import OURS, RECIPE, WARM_UP_EPOCHS, TrainTask
from nbcore.bench.timm_loop import TIMM, command_line
from nbcore.checkpoint import write_atomically
from nbcore.data import load_dataset
from nbcore.provenance import device_name, library_versions, source_commit

PROCESS_LIMIT_S = 900

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """What is measured."""

    data_dir: Path | None = None
    """Prepared Imagenette; its training photos are written as JPEG files for timm."""
    photos: Path | None = None
    """An image folder (`train/<class>/...`) for both instead: timm reads its very files."""
    synthetic: int | None = None
    """So many made-up photos instead, to try the command out."""
    device: str = "cpu"
    img_size: int = 224
    batch_size: int = 512
    workers: int = 1
    """Processes that decode and augment for timm."""
    seconds: float = 15.0
    """How long each process measures once all is warm."""
    rounds: int = 3
    """Processes of our loop and of the fastest of timm's settings, in turns."""
    settings: tuple[str, ...] = tuple(TIMM)
    """timm's settings to try, names from `TIMM`."""

    def __post_init__(self) -> None:
        sources = [s for s in (self.data_dir, self.photos, self.synthetic) if s is not None]
        if len(sources) != 1:
            raise ValueError(
                "give one of --data DIR (prepared Imagenette), --photos DIR (an image folder) and "
                f"--synthetic N, got {len(sources)}"
            )
        for name in ("img_size", "batch_size", "workers", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        unknown = set(self.settings) - set(TIMM)
        if unknown or not self.settings:
            raise ValueError(
                f"unknown settings {sorted(unknown)}; available: {', '.join(TIMM)}"
                if unknown
                else f"name at least one of timm's settings: {', '.join(TIMM)}"
            )


def bench_train(bench: TrainBench, *, command: str, out: Path) -> dict[str, Any]:
    """Run the bench; the report is written after every process, so an early end keeps what was
    measured.

    Args:
        bench: What is measured.
        command: The command line, for the record.
        out: JSON file.

    Returns:
        The report.

    Raises:
        ValueError: If there are fewer photos than one batch.
        RuntimeError: If our loop or all of timm's settings failed.
    """
    with tempfile.TemporaryDirectory(prefix="nbcore-bench-") as folder:
        task, photos = _tasks(bench, Path(folder))
        report = _blank(bench, task, photos, command)
        first = [OURS, *bench.settings]
        with tqdm(total=len(first) + 2 * (bench.rounds - 1), unit="process") as bar:

            def measure(contender: str) -> None:
                bar.set_description(contender)
                entry = report["contenders"][contender]
                entry["processes"].append(_in_process(replace(task, contender=contender)))
                _summarise(report)
                write_atomically(out, json.dumps(report, indent=1) + "\n")
                bar.update()

            for contender in first:
                measure(contender)
            finalist = report["fastest_timm"] or bench.settings[0]
            for contender in (OURS, finalist) * (bench.rounds - 1):
                measure(contender)
    if report["ratio"] is None:
        failed = [p["error"] for e in report["contenders"].values() for p in e["processes"]
                  if "error" in p]  # fmt: skip
        raise RuntimeError(f"nothing to compare, see {out}: {'; '.join(sorted(set(failed)))}")
    return report


def _tasks(bench: TrainBench, folder: Path) -> tuple[TrainTask, dict[str, Any]]:
    """The task that all contenders share, and what the photos are."""
    dataset, data_dir, photos = "folder", bench.photos, bench.photos
    files = "as they lie in the image folder"
    if bench.synthetic is not None:
        data_dir = photos = folder
        split = made_up_photos(bench.synthetic, bench.img_size)
        write_photos(split, ("a", "b"), folder / "train")
        files = f"made up, {bench.img_size} px, JPEG of quality {JPEG_QUALITY}"
    elif bench.data_dir is not None:
        dataset, data_dir, photos = "imagenette", bench.data_dir, folder
        data = load_dataset(dataset, data_dir, img_size=bench.img_size)
        write_photos(data.train, data.classes, folder / "train")
        files = f"the prepared photos, {bench.img_size} px, as JPEG of quality {JPEG_QUALITY}"
    own = load_dataset(dataset, data_dir, img_size=bench.img_size)
    paths = [path for path in (photos or folder).glob("train/*/*") if path.is_file()]
    if min(len(own.train.names), len(paths)) < bench.batch_size:
        raise ValueError(
            f"a batch of {bench.batch_size} needs as many training photos, there are "
            f"{len(own.train.names)} for us and {len(paths)} files for timm"
        )
    task = TrainTask(
        contender=OURS,
        device=bench.device,
        dataset=dataset,
        data_dir=str(data_dir),
        photos=str(photos),
        img_size=bench.img_size,
        batch_size=bench.batch_size,
        workers=bench.workers,
        seconds=bench.seconds,
    )
    return task, {
        "dataset": dataset if bench.synthetic is None else "made up",
        "files": files,
        "num_own": len(own.train.names),
        "num_timm": len(paths),
        "mean_file_bytes": round(statistics.mean(path.stat().st_size for path in paths)),
    }


def _blank(
    bench: TrainBench, task: TrainTask, photos: dict[str, Any], command: str
) -> dict[str, Any]:
    run = bench_config(task.img_size, task.batch_size)
    train = {key: value for key, value in asdict(run.train).items() if not key.endswith("_every")}
    contenders: dict[str, dict[str, Any]] = {
        OURS: {"loop": "nbcore.train.train", "processes": []},
    }
    for name in bench.settings:
        loop = command_line(task, TIMM[name])
        contenders[name] = {"loop": loop, "options": asdict(TIMM[name]), "processes": []}
    return {
        "command": command,
        "device": device_name(torch.device(bench.device)),
        "num_cores": usable_cores(),
        "versions": library_versions(),
        "commit": source_commit(),
        "model": {"recipe": RECIPE, "name": run.model.name, "stem": run.model.stem,
                  "kwargs": dict(run.model.kwargs)},
        "train": train | {"epochs": [[task.img_size, "until timed"]]},
        "photos": photos,
        "workers": bench.workers,
        "seconds": bench.seconds,
        "warm_up_epochs": WARM_UP_EPOCHS,
        "differs": "timm decodes and augments files in worker processes and waits for every loss; "
        "we hold decoded photos on the device and augment there. Validation is left out on both "
        "sides; ours records loss and loads at the end of every epoch.",
        "contenders": contenders,
        "fastest_timm": None,
        "ratio": None,
    }  # fmt: skip


def _in_process(task: TrainTask) -> dict[str, Any]:
    """What a process of its own measures; its error in a word where it fails."""
    with tempfile.TemporaryDirectory(prefix="nbcore-bench-") as folder:
        asked, answer = Path(folder) / "task.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(asdict(task)), encoding="utf-8")
        line = [sys.executable, "-m", "nbcore.bench", str(asked), str(answer)]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=PROCESS_LIMIT_S)
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {PROCESS_LIMIT_S} s"}
        if done.returncode:
            logger.warning("%s failed:\n%s", task.contender, done.stderr[-4000:])
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            return {"error": last[0]}
        return json.loads(answer.read_text(encoding="utf-8"))


def _summarise(report: dict[str, Any]) -> None:
    """Fill in medians, the fastest of timm's settings and the ratio from what was measured."""
    contenders = report["contenders"]
    for entry in contenders.values():
        windows = [w for process in entry["processes"] for w in process.get("windows", ())]
        if windows:
            entry["img_s"] = statistics.median(windows)
            entry["img_s_range"] = [min(windows), max(windows)]
    timm = {name: e["img_s"] for name, e in contenders.items() if name != OURS and "img_s" in e}
    report["fastest_timm"] = max(timm, key=lambda name: timm[name], default=None)
    if timm and "img_s" in contenders[OURS]:
        report["ratio"] = contenders[OURS]["img_s"] / max(timm.values())


def table(report: dict[str, Any]) -> Sequence[str]:
    """The report as lines of text."""
    lines = [f"{'':20s}{'img/s':>9s}{'lowest':>9s}{'highest':>9s}{'windows':>9s}{'loader':>9s}"]
    for name, entry in report["contenders"].items():
        processes = entry["processes"]
        if "img_s" not in entry:
            lines.append(f"{name:20s} failed: {[p.get('error') for p in processes]}")
            continue
        low, high = entry["img_s_range"]
        count = sum(len(process.get("windows", ())) for process in processes)
        alone = [p["notes"]["loader_img_s"] for p in processes if p.get("notes")]
        loader = f"{statistics.median(alone):9.0f}" if alone else f"{'-':>9s}"
        lines.append(f"{name:20s}{entry['img_s']:9.0f}{low:9.0f}{high:9.0f}{count:9d}{loader}")
    lines.append(
        f"{report['device']}: nbcore is {report['ratio']:.2f}x as fast as {report['fastest_timm']}"
    )
    return lines
