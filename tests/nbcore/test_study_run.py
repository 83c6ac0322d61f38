"""A study run by workers: killed and resumed, with failures, limits and refusals."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nbcore.__main__ import main
from nbcore.study import runner
from nbcore.study.forks import fork_path
from nbcore.study.grid import Arm, Block, Wave, references
from nbcore.study.tables import FAILURE_COLUMNS, StudyTables, Table
from tests.nbcore.tiny_study import arm, laboratory, run_here, tiny_study
from tests.sources import ROOT

pytestmark = pytest.mark.slow

TOLD = ("seconds", "commit")
"""What of a row depends on when it was run."""


def rows(out: Path) -> dict[Arm, dict[str, str]]:
    """Rows of runs.csv by arm, without what depends on when they were run."""
    found = StudyTables(out).runs.read()
    table = {
        Arm.from_columns(row): {k: v for k, v in row.items() if k not in TOLD} for row in found
    }
    assert len(table) == len(found)
    return table


def of_runs(table: Table) -> dict[tuple[str, ...], int]:
    """How many rows a table holds of each run."""
    found: dict[tuple[str, ...], int] = {}
    for row in table.read():
        key = tuple(row[name] for name in ("pruner", "mitigation", "target_macs_ratio", "seed"))
        found[key] = found.get(key, 0) + 1
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study without any interruption."""
    folder = tmp_path_factory.mktemp("finished")
    progress = run_here(tiny_study(), folder)
    assert (progress.finished, progress.failed) == (progress.total, {})
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished study to be damaged."""
    for path in finished.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def no_one_is_left_behind() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_rows_are_those_of_a_run_in_this_process(finished: Path, tmp_path: Path) -> None:
    lab = laboratory(tmp_path)
    found = rows(finished / "out")
    assert set(found) == set(tiny_study().arms())
    for one in tiny_study().arms([1]):
        expected = {k: str(v) for k, v in lab.run(one).run.items() if k not in TOLD}
        assert found[one] == expected


def test_what_is_done_is_not_done_again(
    copy: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_drive", None)
    assert run_here(tiny_study(), copy).finished == len(tiny_study().arms())
    for name in ("runs.csv", "sites.csv", "history.csv.gz"):
        assert (copy / "out" / name).read_bytes() == (finished / "out" / name).read_bytes()


def test_a_lost_row_is_run_again_and_is_the_same(copy: Path, finished: Path) -> None:
    """Half of the last row is what a kill leaves; its sites and history are made anew too."""
    path = copy / "out" / "runs.csv"
    path.write_bytes(path.read_bytes()[:-20])
    assert run_here(tiny_study(), copy).finished == len(tiny_study().arms())
    assert rows(copy / "out") == rows(finished / "out")
    for name in ("sites", "history"):
        found, wanted = (getattr(StudyTables(f / "out"), name) for f in (copy, finished))
        assert of_runs(found) == of_runs(wanted)


def test_two_workers_find_what_one_finds(finished: Path, tmp_path: Path) -> None:
    run_here(tiny_study(), tmp_path, workers=2, seeds=[0])
    wanted = {a: row for a, row in rows(finished / "out").items() if a.seed == 0}
    assert rows(tmp_path / "out") == wanted


def test_a_dead_worker_is_replaced(finished: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_the_first() -> None:
        path = tmp_path / "out" / "runs.csv"
        while not path.exists():
            time.sleep(0.01)
        child = multiprocessing.active_children()[0]
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        killed.append(child.pid)

    thread = threading.Thread(target=kill_the_first, daemon=True)
    thread.start()
    progress = run_here(tiny_study(), tmp_path, seeds=[0])
    thread.join(10)
    assert len(killed) == 1
    assert progress.failed == {}
    assert rows(tmp_path / "out").items() <= rows(finished / "out").items()
    assert progress.finished == progress.total == len(tiny_study().arms([0]))


def test_a_failing_arm_stops_no_other_and_is_tried_again_next_time(copy: Path) -> None:
    bad = Block(hosts=("taylor",), mitigations=("no_such", "none"), ratios=(0.45,))
    study = tiny_study()
    study = replace(study, waves=(*study.waves, Wave(seeds=(0,), blocks=(bad,))))
    progress = run_here(study, copy)
    lost = arm(mitigation="no_such", ratio=0.45)
    assert list(progress.failed) == [lost]
    assert "unknown mitigation 'no_such'" in progress.failed[lost]
    assert progress.finished == progress.total - 1
    assert arm(ratio=0.45) in rows(copy / "out")
    failures = Table(copy / "out" / "failures.csv", FAILURE_COLUMNS)
    assert [Arm.from_columns(row) for row in failures.read()] == [lost]
    assert "unknown mitigation" in failures.read()[0]["error"]
    assert list(run_here(study, copy).failed) == [lost]
    assert run_here(tiny_study(), copy).failed == {}
    assert failures.read() == []


def test_nothing_starts_after_the_limit(tmp_path: Path) -> None:
    progress = run_here(tiny_study(), tmp_path, limit_seconds=0)
    assert (progress.finished, progress.failed) == (0, {})
    assert not (tmp_path / "out" / "runs.csv").exists()


def test_rows_of_other_settings_are_refused(copy: Path) -> None:
    study = tiny_study()
    changed = replace(study, arm=replace(study.arm, epochs=((32, 3),)))
    with pytest.raises(ValueError, match=r"was run with other settings .* give another --out"):
        run_here(changed, copy)


@pytest.mark.parametrize("position", [0, 1])
def test_a_lost_fork_is_refused_while_arms_need_it(copy: Path, position: int) -> None:
    study = tiny_study()
    lost = references(1)[position]
    fork_path(copy / "work", study, lost).unlink()
    run_here(study, copy)  # nothing waits, so nothing is needed
    more = Wave(
        seeds=(1,), blocks=(Block(hosts=("random",), mitigations=("none",), ratios=(0.5,)),)
    )
    with pytest.raises(ValueError, match=r"is in runs\.csv, but .*remove all rows of seed 1"):
        run_here(replace(study, waves=(*study.waves, more)), copy)


def test_a_study_goes_on_elsewhere_with_the_forks_beside_its_results(
    copy: Path, finished: Path
) -> None:
    runs = StudyTables(copy / "out").runs
    runs.replace(runs.read()[:-1])
    (copy / "work" / "forks").rename(copy / "out" / "forks")
    assert run_here(tiny_study(), copy).finished == len(tiny_study().arms())
    assert rows(copy / "out") == rows(finished / "out")


def test_a_fork_of_another_training_is_refused(copy: Path) -> None:
    study = tiny_study()
    dense = references(1)[0]
    fork_path(copy / "work", study, dense).write_bytes(
        fork_path(copy / "work", study, references(0)[0]).read_bytes()
    )
    tables = StudyTables(copy / "out")
    found = tables.runs.read()
    for row in found:
        if (row["pruner"], row["seed"]) == ("dense", "1"):
            row["top1"] = "0.123"
    tables.runs.replace([row for row in found if row["seed"] == "0" or row["pruner"] == "dense"])
    with pytest.raises(ValueError, match=r"runs\.csv says 0\.123 .* must share one fork"):
        run_here(study, copy)


def test_two_processes_on_one_study_are_refused(tmp_path: Path) -> None:
    with (
        runner._alone(tmp_path / "work"),
        pytest.raises(ValueError, match="another process is at work"),
    ):
        run_here(tiny_study(), tmp_path)


def test_a_seed_that_the_grid_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run with a seed of \[9\]"):
        run_here(tiny_study(), tmp_path, seeds=[9])


COMMAND = (sys.executable, "-m", "nbcore", "study", "cifar10-smoke", "--device", "cpu", "--out")


def smoke(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.timeout(600)
def test_smoke_study_killed_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    began = time.monotonic()
    whole = smoke(tmp_path / "whole")
    output, errors = whole.communicate(timeout=280)
    assert whole.returncode == 0, errors
    assert time.monotonic() - began < 120
    assert "cifar10-smoke: 30 of 30 runs are done" in output

    part = tmp_path / "part"
    first = smoke(part)
    table = StudyTables(part).runs
    while len(table.read()) < 5 and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = len(table.read())
    assert 5 <= before < 30
    second = smoke(part)
    output, errors = second.communicate(timeout=280)
    assert second.returncode == 0, errors
    assert rows(part) == rows(tmp_path / "whole")
    for name in ("sites", "history"):
        found, wanted = (getattr(StudyTables(f), name) for f in (part, tmp_path / "whole"))
        assert of_runs(found) == of_runs(wanted)
    # Seconds and commits aside, both say the same.
    for name in ("figures/accuracy.png", "figures/recovered.png", "figures/burden.png"):
        assert (part / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_report_command_rebuilds_the_report(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runner_studies(), "tiny", tiny_study)
        assert main(["study", "tiny", "--out", str(copy / "out"), "--report"]) == 0
        text = (copy / "out" / "README.md").read_bytes()
        assert main(["study", "tiny", "--out", str(copy / "out"), "--report"]) == 0
    assert (copy / "out" / "README.md").read_bytes() == text
    assert str(copy / "out" / "README.md") in capsys.readouterr().out


def runner_studies() -> dict:
    from nbcore.study.studies import STUDIES

    return STUDIES._entries


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "no-such"], "unknown study 'no-such'; available: cifar10"),
        (["study", "cifar10-smoke", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["study", "cifar10-smoke", "--report", "--out", "absent"], "no finished run in"),
    ],
)
def test_wrong_commands_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
