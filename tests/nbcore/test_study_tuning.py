"""The choice of a tuning study, counted by hand."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pandas as pd
import pytest

from nbcore.mitigation.persistent_dynamic import PersistentDynamic
from nbcore.recipes import PHOTO_OPTIONS, RETURNS
from nbcore.study.grid import Block, StudyConfig, Wave
from nbcore.study.report import write_report
from nbcore.study.studies import STUDIES
from nbcore.study.tables import read_frames
from nbcore.study.tuning import trials, tuning_section
from tests.nbcore.study_tables import World, write_tables
from tests.nbcore.tiny_study import tiny_study


def study() -> StudyConfig:
    settings = {
        "none@0": {"lr": 1e-3},
        "none@1": {"lr": 2e-3},
        "handoff@0": {"ridge": 0.1},
        "handoff@1": {"ridge": 1.0, "returns": None},
    }
    block = Block(hosts=("taylor", "random"), mitigations=("none", *settings), ratios=(0.5, 0.3))
    return tiny_study(settings=settings, waves=(Wave(seeds=(100,), blocks=(block,)),))


def runs_with(losses: dict[tuple[str, str], float]) -> pd.DataFrame:
    """One seed, budget 0.5; top-1 on test says the opposite of the validation loss."""
    return pd.DataFrame(
        [
            {
                "pruner": host,
                "mitigation": setting,
                "target_macs_ratio": 0.5,
                "seed": 100,
                "val_loss": loss,
                "val_top1": 1 - loss,
                "top1": loss,
            }
            for (host, setting), loss in losses.items()
        ]
    )


LOSSES = {
    ("taylor", "none"): 0.1,
    ("taylor", "none@0"): 0.6,
    ("taylor", "none@1"): 0.5,  # better, but random lacks it
    ("random", "none@0"): 0.2,
    ("taylor", "handoff@0"): 0.4,
    ("taylor", "handoff@1"): 0.5,
    ("random", "handoff@0"): 0.6,
    ("random", "handoff@1"): 0.3,
}


def test_the_smallest_validation_loss_of_settings_that_all_cells_have_is_chosen() -> None:
    table = trials(study(), runs_with(LOSSES)).set_index("setting")
    assert table["cells"].to_dict() == {"none@0": 2, "none@1": 1, "handoff@0": 2, "handoff@1": 2}
    assert list(table.index[~table["complete"]]) == ["none@1"]
    # none@0: (0.6 + 0.2) / 2; handoff: (0.4 + 0.6) / 2 and (0.5 + 0.3) / 2.
    expected = {"none@0": 0.4, "none@1": 0.5, "handoff@0": 0.5, "handoff@1": 0.4}
    assert table["val_loss"].to_dict() == pytest.approx(expected)
    assert sorted(table.index[table["chosen"]]) == ["handoff@1", "none@0"]
    assert table.loc["handoff@1", "options"] == "ridge 1, no limit on returns"


def test_a_setting_with_the_smallest_loss_that_some_cell_lacks_is_not_chosen() -> None:
    table = trials(study(), runs_with(LOSSES | {("taylor", "none@1"): 0.1})).set_index("setting")
    assert table.loc["none@1", "val_loss"] < table.loc["none@0", "val_loss"]
    assert sorted(table.index[table["chosen"]]) == ["handoff@1", "none@0"]


def test_trials_are_counted_in_every_cell(tmp_path: Path) -> None:
    write_tables(study(), World(), tmp_path)
    runs, _, _ = read_frames(tmp_path)
    lacks = (runs["pruner"] == "random") & (runs["mitigation"] == "none@1")
    lacks &= runs["target_macs_ratio"] == 0.3
    lines = list(tuning_section(study(), runs[~lacks]))
    head = "| mitigation | `taylor` at 0.5 | `random` at 0.5 | `taylor` at 0.3 | `random` at 0.3 |"
    assert any(line.startswith(head) for line in lines)
    # The last: compared.
    assert "| `none` | 2 | 2 | 2 | 1 | 1 |" in lines
    assert "| `handoff` | 2 | 2 | 2 | 2 | 2 |" in lines
    assert sum("| (" in line for line in lines) == 1


STUDY_FOLDERS = Path(__file__).parents[2] / "checkpoints" / "study"


def chosen_in(name: str, without: Collection[str] = ()) -> dict[str, dict[str, object]]:
    """What a tuning study that was run chose, by mitigation, had it lacked some settings."""
    tuning = STUDIES[name]()
    runs, _, _ = read_frames(STUDY_FOLDERS / name)
    table = trials(tuning, runs[~runs["mitigation"].isin(without)])
    best = table[table["chosen"]]
    return {
        row["mitigation"]: dict(tuning.settings[row["setting"]]) for row in best.to_dict("records")
    }


def test_recipes_use_what_was_chosen_for_photos() -> None:
    late = {"persistent_dynamic@2", *(f"{name}@3" for name in ("none", *PHOTO_OPTIONS))}
    chosen = chosen_in("imagenette-tuning", without=late)
    host = chosen.pop("none")
    assert chosen["persistent_dynamic"]["returns"] is None  # its limit was chosen elsewhere
    chosen["persistent_dynamic"]["returns"] = RETURNS
    assert chosen == PHOTO_OPTIONS
    judged = STUDIES["imagenette-vit-tiny"]()
    assert host == {"lr": judged.arm.lr, "end": judged.prune.end}


def test_the_last_trials_for_photos_came_late_and_the_reports_say_so() -> None:
    late, used = chosen_in("imagenette-tuning"), PHOTO_OPTIONS
    for name in ("token_merging", "handoff", "distillation"):
        assert late[name] != used[name]
    assert late["persistent_dynamic"]["fade"] != used["persistent_dynamic"]["fade"]
    for name in ("imagenette-tuning", "imagenette-vit-tiny"):
        notes = " ".join(STUDIES[name]().notes)
        assert "other settings of all four have the smallest validation loss" in notes
        told = "before block 2, ridge 1, distillation with weight 4 and temperature 2, fade 12"
        assert told in notes
    assert used["token_merging"]["block"] == 2
    assert used["handoff"]["ridge"] == 1
    assert used["distillation"] == {"weight": 4, "temperature": 2}
    assert used["persistent_dynamic"]["fade"] == 12


def test_the_limit_on_returns_is_the_one_that_was_chosen() -> None:
    assert chosen_in("cifar10-returns")["persistent_dynamic"]["returns"] == RETURNS
    assert PersistentDynamic().returns == RETURNS
    for name in ("cifar10-four-layer", "mnist-four-layer", "imagenette-vit-tiny"):
        judged = STUDIES[name]()
        assert judged.mitigation_options["persistent_dynamic"]["returns"] == RETURNS
        assert f"({RETURNS:g} of the kept ones at the first choice" in " ".join(judged.notes)


def test_the_study_of_cifar10_uses_what_was_chosen_and_notes_what_was_not_tried() -> None:
    chosen, judged = chosen_in("cifar10-tuning"), STUDIES["cifar10-four-layer"]()
    tuning = STUDIES["cifar10-tuning"]()
    assert chosen["none"] == {"lr": judged.arm.lr, "end": judged.prune.end}
    for name in ("token_merging", "handoff", "distillation"):
        assert chosen[name] == judged.mitigation_options[name]
    notes = " ".join(judged.notes)
    # Mitigations were tried with another learning rate and end of pruning.
    assert f"at lr {tuning.arm.lr:g} with pruning done after 60 %" in notes
    assert tuning.prune.end == 0.6
    assert f"all arms have lr {judged.arm.lr:g} and 30 %" in notes
    assert judged.prune.end == 0.3
    fade = judged.mitigation_options["persistent_dynamic"]["fade"]
    tried = {
        options["fade"] for name, options in tuning.settings.items() if name.startswith("persist")
    }
    assert fade not in tried
    assert f"fades in over {fade} steps, which was not among those tried (0, 18, 54)" in notes
    assert tried == {0, 18, 54}
    # Why: 8 epochs of 46 steps, twelve choices within 30 % of them.
    assert 8 * 46 * judged.prune.end // judged.prune.updates == fade


def test_what_a_setting_reaches_in_each_cell_is_told(tmp_path: Path) -> None:
    write_tables(study(), World(), tmp_path)
    runs, _, _ = read_frames(tmp_path)
    runs = runs[(runs["pruner"] != "random") | (runs["mitigation"] != "handoff@0")]
    lines = list(tuning_section(study(), runs))
    heads, _, *rows = lines[
        lines.index("Validation top-1 (%) in each cell, mean over seeds:") + 2 :
    ]
    assert rows[:4] == sorted(rows[:4], key=lambda row: "handoff" in row)
    cells = [head.strip() for head in heads.split("|")[3:-1]]
    assert len(cells) == 4
    (row,) = [row for row in rows if "| ridge 0.1 |" in row][:1]
    own = runs[runs["mitigation"] == "handoff@0"].set_index(["pruner", "target_macs_ratio"])
    for cell, value in zip(cells, row.split("|")[3:-1], strict=True):
        host, ratio = cell.split("`")[1], float(cell.split()[-1])
        lacks = host == "random"
        expected = "" if lacks else f"{100 * own.loc[(host, ratio), 'val_top1']:.2f}"
        assert value.strip() == expected


def test_the_report_of_a_tuning_study_shows_trials_and_tests_no_claim(tmp_path: Path) -> None:
    write_tables(study(), World(), tmp_path)
    text = write_report(study(), tmp_path).read_text()
    assert text.count("**chosen**") == 2
    assert "## Claims" not in text
    assert "are in the tables, 0 failed, 0 were not run" in text
    assert not (tmp_path / "figures").exists()
    # Who chooses sees no test figure.
    assert "## All arms" not in text
    assert "test top-1" not in text.lower()
    assert not (tmp_path / "summary.csv").exists()
    told = json.loads((tmp_path / "verdicts.json").read_text())
    assert (told["topics"], told["figures"]) == ([], [])
    assert [t["setting"] for t in told["trials"]] == list(study().settings)
    assert sum(t["chosen"] for t in told["trials"]) == 2
    assert "top1" not in {key for trial in told["trials"] for key in trial}
