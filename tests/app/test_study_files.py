"""Studies as the page reads them: numbers are those of the tables, refusals say what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.arm_plot import arm_plot
from app.arms import Choice, arms, measures_of
from app.errors import UserError
from app.studies import Study, read_study, study_names
from app.study_tab import ALL, choice_of, menus_of, runs_table
from app.study_view import facts, figures, report_words, verdicts
from tests.app.study_folder import CLAIMS, TOP1, write_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    write_study(path, "a-tuning", tuning=True)
    write_study(path, "by-hand")
    return path


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return read_study(folder, "by-hand")


@pytest.fixture(scope="module")
def tuning(folder: Path) -> Study:
    return read_study(folder, "a-tuning")


def test_studies_with_claims_come_first(folder: Path, tmp_path: Path) -> None:
    assert study_names(folder) == ("by-hand", "a-tuning")
    assert study_names(tmp_path) == ()


def test_unknown_studies_are_refused_and_no_path_is_followed(folder: Path) -> None:
    for name in ("other", "../study/by-hand", ""):
        with pytest.raises(UserError, match="available: by-hand, a-tuning"):
            read_study(folder, name)


@pytest.mark.parametrize("content", ["{", '{"topics": [{"title": "x"}]}', '{"figures": [1]}'])
def test_a_damaged_file_says_how_to_write_it_again(tmp_path: Path, content: str) -> None:
    (write_study(tmp_path) / "verdicts.json").write_text(content)
    with pytest.raises(UserError, match="nbcore study by-hand --report"):
        read_study(tmp_path, "by-hand")


def test_figures_outside_the_folder_are_no_figures(tmp_path: Path) -> None:
    here = write_study(tmp_path)
    (tmp_path / "secret.png").write_bytes((here / "figures" / "accuracy.png").read_bytes())
    told = json.loads((here / "verdicts.json").read_text())
    told["figures"].append({"file": "../../secret.png", "caption": "x"})
    (here / "verdicts.json").write_text(json.dumps(told))
    assert [f.path.name for f in read_study(tmp_path, "by-hand").figures] == ["accuracy.png"]


def test_runs_alone_are_a_study_too(tmp_path: Path) -> None:
    here = write_study(tmp_path)
    for name in ("verdicts.json", "README.md", "summary.csv"):
        (here / name).unlink()
    found = read_study(tmp_path, "by-hand")
    assert len(found.runs) == 3 * len(TOP1)
    assert (found.topics, found.report, found.summary) == ((), "", ())
    assert "were not written for the page" in verdicts(found)


def test_every_claim_stands_with_verdict_and_numbers(study: Study) -> None:
    drawn = verdicts(study)
    for sign in ("✓</i> 1 supported", "✗</i> 1 not supported", "?</i> 1 undecided"):
        assert sign in drawn
    for _, verdict, numbers in CLAIMS:
        assert f"{verdict}</td><td>{numbers}</td>" in drawn
    assert "<code>handoff</code> &lt;beats&gt; distillation." in drawn
    assert drawn.index("Gains") < drawn.index("makes pruned models") < drawn.index("Controls")
    assert "<em>Supported</em>: above zero." in drawn
    assert "<em>made-up</em>" in facts(study)
    assert 'alt="Figure accuracy: Accuracy &amp; cost."></a>' in figures(study)
    told = replace(study.figures[0], caption="Cost of `weights`.")
    assert "Cost of <code>weights</code>.<" in figures(replace(study, figures=(told,)))
    assert "figures/" not in report_words(study)
    # A wide table scrolls in a box of its own, which the keyboard reaches.
    told, table = report_words(study).split('<div class="nb-scroll" tabindex="0"')
    assert "All told." in told
    rows = "| claim | verdict |\n|---|---|\n| Helps. | undecided |\n"
    assert table.endswith(f">\n\n{rows}\n\n</div>\n")


def test_a_study_that_chooses_shows_trials_and_no_test_figure(tuning: Study) -> None:
    drawn = verdicts(tuning)
    assert "only validation photos" in drawn
    assert "0.8000" in drawn
    assert drawn.count("<tr class=nb-chosen>") == 1
    # Burden is measured on test photos too.
    assert measures_of(tuning) == ("val_top1",)
    table = runs_table(tuning)
    measured = {"test right", "burden", "when cut", "in dense, trained on", "output error"}
    assert measured.isdisjoint(table["headers"])
    tested = {value for values in TOP1.values() for value in values}
    validated = {value + 0.01 for value in tested}
    shown = {cell for row in table["data"] for cell in row}
    assert tested - validated - {1} & shown == set()


def test_trials_that_a_host_lacks_are_bracketed(tuning: Study) -> None:
    first, second = tuning.trials
    drawn = verdicts(replace(tuning, trials=(first | {"complete": False}, second)))
    for shown in ("<td>(0.9000)</td>", "<td>(50.00\u202f%)</td>", "<td>0.8000</td>"):
        assert shown in drawn
    assert "(0.8000)" not in drawn


def test_accuracies_are_those_of_the_tables(study: Study) -> None:
    found = {(a.host, a.budget, a.mitigation): a for a in arms(study, Choice(measure="top1"))}
    assert set(found) == set(TOP1)
    for name, values in TOP1.items():
        assert tuple(found[name].values.values()) == values
        mean = sum(values) / 3
        ends = (found[name].mean, found[name].low, found[name].high)
        assert ends == pytest.approx((mean, mean - 0.05, mean + 0.05))


def test_gains_are_paired_by_seed(study: Study) -> None:
    (only,) = arms(study, Choice(measure="gain"))
    assert (only.host, only.mitigation) == ("taylor", "handoff")
    # 0.84 - 0.80, 0.85 - 0.82, 0.86 - 0.84, in points; the mean is the table's.
    assert only.values == pytest.approx({"0": 4.0, "1": 3.0, "2": 2.0})
    assert (only.mean, only.low, only.high) == pytest.approx((3.0, 0.5, 5.5))


def test_what_the_table_lacks_is_averaged_with_students_t(study: Study) -> None:
    found = arms(study, Choice(measure="val_top1", host="random"))
    # 0.61, 0.63, 0.65: mean 0.63, standard error 0.02 / sqrt(3), t(0.975, 2) = 4.3027.
    assert found[0].mean == pytest.approx(0.63)
    assert found[0].high == pytest.approx(0.63 + 4.302653 * 0.02 / 3**0.5)


def test_a_choice_narrows_by_host_budget_and_mitigation(study: Study) -> None:
    def names(**picks: str) -> set[tuple[str, str, str]]:
        found = arms(study, Choice(measure="top1", **picks))
        return {(a.host, a.budget, a.mitigation) for a in found}

    assert names(host="taylor") == {n for n in TOP1 if n[0] == "taylor"}
    assert names(budget="0.5", mitigation="none") == {
        ("taylor", "0.5", "none"),
        ("random", "0.5", "none"),
    }


def test_menus_begin_with_the_smallest_budget_of_the_first_host(study: Study) -> None:
    measure, host, budget, mitigation = menus_of(study)
    assert (measure[1], host[1], budget[1], mitigation[1]) == ("top1", "taylor", "0.25", ALL)
    assert [value for _, value in budget[0]] == [ALL, "1", "0.5", "0.25"]
    assert ("dense, trained on", "dense_plus") in host[0]
    assert choice_of("gain", "taylor", ALL, ALL) == Choice(measure="gain", host="taylor")


def test_menus_are_in_the_order_of_the_summary_whatever_was_finished_first(study: Study) -> None:
    turned = menus_of(replace(study, runs=study.runs[::-1]))
    for (entries, _), name in zip(turned[1::2], ("pruner", "mitigation"), strict=True):
        summary = list(dict.fromkeys(row[name] for row in study.summary))
        assert [value for _, value in entries][1 : 1 + len(summary)] == summary


def test_ticks_of_accuracy_leave_the_unit_to_the_axis(study: Study) -> None:
    # Six of "98.5 %" run into each other on a phone.
    drawn = arm_plot(study, Choice(measure="top1", host="taylor", budget="0.5"))
    ticks = drawn.partition("nb-below")[2].partition("</div>")[0]
    assert [tick.partition("<")[0] for tick in ticks.split('%">')[1:]] == ["80", "85", "90"]
    assert "Right on test photos, %" in drawn


def test_rows_tell_values_and_are_named_by_what_differs(study: Study) -> None:
    drawn = arm_plot(study, Choice(measure="top1", host="taylor", budget="0.5"))
    assert "handoff: 85.00\u202f% (80.00\u202f% to 90.00\u202f%), 3 seeds" in drawn
    assert drawn.count("nb-quiet") == 2 * 3
    assert "no mitigation, seed 2: 84.00\u202f%" in drawn
    # dense_plus at 0.91 on an axis from 0.77 - 0.06 * 0.14 to 0.91 + 0.06 * 0.14.
    assert "nb-guide" in drawn
    across = arm_plot(study, Choice(measure="top1", mitigation="none"))
    assert "single" not in across
    for name in ("taylor, 50", "taylor, 25", "random, 50", "small"):
        assert (f">{name}" in across) == (name != "small")


def test_nothing_to_draw_is_said(study: Study) -> None:
    assert "No run of this choice" in arm_plot(study, Choice(measure="gain", host="random"))


def test_the_table_of_runs_is_the_file(study: Study) -> None:
    table = runs_table(study)
    at = table["headers"].index
    assert len(table["data"]) == len(study.runs)
    for shown, row in zip(table["data"], study.runs, strict=True):
        assert shown[at("test right")] == float(row["top1"])
        assert shown[at("host")] == row["pruner"]
        assert shown[at("seed")] == int(row["seed"])
