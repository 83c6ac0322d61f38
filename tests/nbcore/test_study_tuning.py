"""The choice of a tuning study, counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from nbcore.study.grid import Block, StudyConfig, Wave
from nbcore.study.report import write_report
from nbcore.study.tuning import trials
from tests.nbcore.study_tables import World, write_tables
from tests.nbcore.tiny_study import tiny_study


def study() -> StudyConfig:
    settings = {
        "none@0": {"lr": 1e-3},
        "none@1": {"lr": 2e-3},
        "handoff@0": {"ridge": 0.1},
        "handoff@1": {"ridge": 1.0},
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


def test_the_smallest_validation_loss_over_complete_cells_is_chosen() -> None:
    table = trials(
        study(),
        runs_with(
            {
                ("taylor", "none"): 0.1,
                ("taylor", "none@0"): 0.6,
                ("taylor", "none@1"): 0.5,
                ("random", "none@0"): 0.2,  # its rival was not run there, so it does not count
                ("taylor", "handoff@0"): 0.4,
                ("taylor", "handoff@1"): 0.5,
                ("random", "handoff@0"): 0.6,
                ("random", "handoff@1"): 0.3,
            }
        ),
    ).set_index("setting")
    assert table["cells"].to_dict() == {"none@0": 1, "none@1": 1, "handoff@0": 2, "handoff@1": 2}
    # handoff: (0.4 + 0.6) / 2 and (0.5 + 0.3) / 2.
    expected = {"none@0": 0.6, "none@1": 0.5, "handoff@0": 0.5, "handoff@1": 0.4}
    assert table["val_loss"].to_dict() == pytest.approx(expected)
    assert sorted(table.index[table["chosen"]]) == ["handoff@1", "none@1"]
    assert table.loc["handoff@1", "options"] == "ridge 1"


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
