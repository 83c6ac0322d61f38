"""The report: rebuilt byte for byte from the tables, every run accounted for."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from nbcore.study.grid import DENSE_PLUS, TWIN, WEIGHTS, Block, StudyConfig, Wave
from nbcore.study.report import write_report
from nbcore.study.tables import FAILURE_COLUMNS, StudyTables, Table
from tests.nbcore.study_tables import World, write_tables
from tests.nbcore.tiny_study import arm, tiny_study

MITIGATIONS = ("none", "token_merging", "published", "handoff", "distillation")


def study(**changes: object) -> StudyConfig:
    blocks = (
        Block(hosts=("taylor", "random"), mitigations=MITIGATIONS, ratios=(0.3, 0.1)),
        Block(hosts=(WEIGHTS,), mitigations=MITIGATIONS[:3], ratios=(0.2, 0.05)),
        Block(hosts=(DENSE_PLUS,), mitigations=MITIGATIONS, ratios=(1.0,)),
        Block(hosts=(TWIN,), mitigations=("none",), ratios=(0.3, 0.1)),
    )
    waves = (Wave(seeds=(0, 1, 2), blocks=blocks),)
    return tiny_study(waves=waves, notes=("A note on tuning.",), **changes)


def files(folder: Path) -> dict[str, bytes]:
    made = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".md", ".png")]
    made += [folder / "summary.csv", folder / "verdicts.json"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in made}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_tables(study(), World(cost={"taylor": 0.05, "random": 0.1}), folder)
    write_report(study(), folder)
    return folder


def copy_tables(source: Path, target: Path) -> StudyTables:
    for name in ("runs.csv", "sites.csv", "history.csv.gz"):
        (target / name).write_bytes((source / name).read_bytes())
    return StudyTables(target)


def test_the_same_tables_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """In whatever order the runs were finished."""
    tables = copy_tables(finished, tmp_path)
    for table in (tables.runs, tables.sites, tables.history):
        rows = table.read()
        random.Random(0).shuffle(rows)
        table.replace(rows)
    write_report(study(), tmp_path)
    found, wanted = files(tmp_path), files(finished)
    assert found.keys() == wanted.keys()
    assert len(wanted) == 8
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_every_arm_has_its_line_in_the_summary(finished: Path) -> None:
    with (finished / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    arms = {(a.pruner, f"{a.target_macs_ratio:g}", a.mitigation) for a in study().arms()}
    listed = [(r["pruner"], r["target_macs_ratio"], r["mitigation"]) for r in rows]
    assert len(listed) == len(set(listed))
    assert set(listed) == arms
    assert {r["seeds"] for r in rows} == {"3"}
    of = {key: row for key, row in zip(listed, rows, strict=True)}
    plain, merged = (float(of["taylor", "0.1", m]["top1"]) for m in ("none", "handoff"))
    assert float(of["taylor", "0.1", "handoff"]["gain"]) == pytest.approx(merged - plain, abs=1e-6)
    dense = float(of["dense_plus", "1", "none"]["top1"])
    share = float(of["taylor", "0.1", "handoff"]["recovered"])
    assert share == pytest.approx((merged - plain) / (dense - plain), abs=1e-4)


def test_the_report_shows_every_figure_and_says_where_things_come_from(finished: Path) -> None:
    text = (finished / "README.md").read_text()
    figures = {p.name for p in (finished / "figures").iterdir()}
    assert {name for name in figures if f"](figures/{name})" in text} == figures
    for name in figures:
        with Image.open(finished / "figures" / name) as picture:
            assert picture.mode == "P"
            assert len(picture.getcolors() or ()) > 16
    for words in (study().command, "made up", "000000000000", "A note on tuning.", "undecided"):
        assert words in text
    # What acts on removal only has the dense control of what is left of it.
    assert "`published` → `token_merging`" in text
    assert "`handoff` → `none`" in text
    assert "are in the tables, 0 failed, 0 were not run" in text


def test_verdicts_for_programs_are_those_of_the_report(finished: Path) -> None:
    told = json.loads((finished / "verdicts.json").read_text())
    text = (finished / "README.md").read_text()
    claims = [claim for topic in told["topics"] for claim in topic["claims"]]
    assert f"{len(claims)} claims were tested" in text
    for claim in claims:
        sign = {"undecided": "undecided"}.get(claim["verdict"], f"**{claim['verdict']}**")
        assert f"| {claim['sentence']} | {sign} | {claim['numbers']} |" in text
    assert [f"### {topic['title']}" for topic in told["topics"]] == [
        line for line in text.splitlines() if line.startswith("### ")
    ]
    assert {figure["file"] for figure in told["figures"]} == {
        f"figures/{path.name}" for path in (finished / "figures").iterdir()
    }
    assert all(f"*{figure['caption']}*" in text for figure in told["figures"])
    assert all(f"\n- {fact}\n" in text for fact in told["facts"])
    assert told["rule"] in text
    assert told["trials"] == []


def test_costs_that_differ_are_told_apart_from_those_that_do_not(finished: Path) -> None:
    text = (finished / "README.md").read_text()
    assert "a host that compacts, MACs differ by at most 0.00 % of the dense model's." in text
    assert "Within one of `weights`, which does not compact, they differ by up to 40.0 %" in text
    assert "includes what it takes from a dense model by making it cheaper" in text
    assert "these three over the seeds that all arms they compare have" in text
    assert "`checkpoints/flips/README.md`" in text


def test_one_dense_model_for_all_seeds_has_no_seeds_and_no_interval(
    finished: Path, tmp_path: Path
) -> None:
    copy_tables(finished, tmp_path)
    text = write_report(study(fork="checkpoints/dense"), tmp_path).read_text()
    assert "over 3 measurements of the one dense model)" in text
    assert "over 3 seeds)" in text  # those trained on
    assert "intervals say nothing of other dense models" in text
    with (tmp_path / "summary.csv").open(newline="") as file:
        dense, plus, *_ = csv.DictReader(file)
    assert (dense["pruner"], dense["seeds"], dense["top1_low"]) == ("dense", "1", "")
    assert (plus["seeds"], plus["top1_low"] != "") == ("3", True)


def test_what_was_cut_and_what_failed_is_told(finished: Path, tmp_path: Path) -> None:
    tables = copy_tables(finished, tmp_path)
    rows = [
        row
        for row in tables.runs.read()
        if not (row["pruner"] == "random" and row["mitigation"] == "handoff")
        and not (
            row["pruner"] == "taylor" and row["target_macs_ratio"] == "0.1" and row["seed"] == "2"
        )
    ]
    tables.runs.replace(rows)
    failed = arm("random", "handoff", 0.3, 1)
    failures = Table(tmp_path / "failures.csv", FAILURE_COLUMNS)
    failures.append([{**failed.columns(), "error": "OutOfMemoryError: at once"}])
    text = write_report(study(), tmp_path).read_text()
    total = len(study().arms())
    # 2 budgets x 3 seeds of random with handoff and five arms of taylor at 0.1 are gone.
    assert (
        f"The grid has {total} runs: {total - 11} are in the tables, 1 failed, 10 were not run."
        in text
    )
    assert "- `random` at 0.1, `handoff`: seeds 0, 1, 2" in text
    assert "- `random` at 0.3, `handoff`: seeds 0, 2" in text
    (line,) = (line for line in text.splitlines() if line.startswith("- `taylor` at 0.1"))
    # Mitigations that lack the same seeds share a line.
    assert line.endswith(": seeds 2")
    assert line.count("`") == 2 + 2 * 5
    assert f"- `{failed.key}`: OutOfMemoryError: at once" in text


def test_runs_of_other_settings_are_told(finished: Path, tmp_path: Path) -> None:
    copy_tables(finished, tmp_path)
    text = write_report(study(measure_images=7), tmp_path).read_text()
    assert f"{len(study().arms())} runs were made with other settings" in text


def test_a_report_of_little_is_still_a_report(tmp_path: Path) -> None:
    """Only the dense models of one seed: no figure has anything to show but none fails."""
    small = tiny_study(waves=(Wave(seeds=(0,), blocks=()),))
    write_tables(small, World(), tmp_path)
    text = write_report(small, tmp_path).read_text()
    assert "0 claims were tested" in text
    assert list((tmp_path / "figures").iterdir()) == []


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run in .*runs\.csv; run `"):
        write_report(study(), tmp_path)
