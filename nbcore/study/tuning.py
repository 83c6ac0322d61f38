"""What a tuning study chooses: each mitigation's setting with the smallest validation loss."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from nbcore.study.grid import StudyConfig
from nbcore.study.statistics import CELL


def trials(study: StudyConfig, runs: pd.DataFrame) -> pd.DataFrame:
    """Every setting that was tried, on the validation split.

    Returns:
        One row for each setting: mitigation, setting, options, cells, val_loss and val_top1 (means
        over seeds and over the cells of host and budget in which all settings of the mitigation
        were run), chosen (of equals the first).
    """
    rows = []
    for name in dict.fromkeys(setting.partition("@")[0] for setting in study.settings):
        own = [setting for setting in study.settings if setting.partition("@")[0] == name]
        tried = runs[runs["mitigation"].isin(own)]
        means = tried.groupby([*CELL, "mitigation"])[["val_loss", "val_top1"]].mean().unstack()
        means = means.dropna()
        for setting in own:
            if means.empty or ("val_loss", setting) not in means:
                continue
            rows.append(
                {
                    "mitigation": name,
                    "setting": setting,
                    "options": ", ".join(f"{k} {v:g}" for k, v in study.settings[setting].items()),
                    "cells": len(means),
                    "val_loss": means["val_loss", setting].mean(),
                    "val_top1": means["val_top1", setting].mean(),
                }
            )
    table = pd.DataFrame(
        rows, columns=["mitigation", "setting", "options", "cells", "val_loss", "val_top1"]
    )
    best = table.groupby("mitigation")["val_loss"].idxmin()
    return table.assign(chosen=table.index.isin(best))


def tuning_section(study: StudyConfig, runs: pd.DataFrame) -> Iterator[str]:
    """The part of the report that takes the place of claims in a tuning study."""
    yield "## Trials"
    yield ""
    yield (
        "Every mitigation, and the host alone (`none`), got the same number of trials. Chosen is "
        "the setting with the smallest loss on the validation split, mean over those hosts and "
        "budgets in which all settings of the mitigation were run; test figures have no part in "
        "it. One study of few seeds decides no claim, so none is tested here."
    )
    yield ""
    yield "| mitigation | setting | cells | validation loss | validation top-1 (%) | chosen |"
    yield "|---|---|---|---|---|---|"
    for row in trials(study, runs).to_dict("records"):
        yield (
            f"| `{row['mitigation']}` | {row['options']} | {row['cells']} | "
            f"{row['val_loss']:.4f} | {100 * row['val_top1']:.2f} | "
            f"{'**chosen**' if row['chosen'] else ''} |"
        )
    yield ""
