"""What a tuning study chooses: each mitigation's setting with the smallest validation loss.

A `cell` is one host at one budget.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from nbcore.study.grid import StudyConfig
from nbcore.study.statistics import CELL


def trials(study: StudyConfig, runs: pd.DataFrame) -> pd.DataFrame:
    """Every setting that was tried, on the validation split.

    Returns:
        One row for each setting: mitigation, setting, options, cells (how many have it), complete
        (whether all cells of the mitigation have it), val_loss and val_top1 (means over seeds and
        over its cells), chosen (of the complete ones; of equals the first).
    """
    rows = []
    for name in dict.fromkeys(setting.partition("@")[0] for setting in study.settings):
        own = [setting for setting in study.settings if setting.partition("@")[0] == name]
        tried = runs[runs["mitigation"].isin(own)]
        means = tried.groupby([*CELL, "mitigation"])[["val_loss", "val_top1"]].mean().unstack()
        for setting in own:
            if ("val_loss", setting) not in means:
                continue
            has = means["val_loss", setting].notna()
            rows.append(
                {
                    "mitigation": name,
                    "setting": setting,
                    "options": ", ".join(
                        _spoken(*item) for item in study.settings[setting].items()
                    ),
                    "cells": int(has.sum()),
                    "complete": bool(has.all()),
                    "val_loss": means["val_loss", setting].mean(),
                    "val_top1": means["val_top1", setting].mean(),
                }
            )
    table = pd.DataFrame(
        rows,
        columns=["mitigation", "setting", "options", "cells", "complete", "val_loss", "val_top1"],
    )
    best = table[table["complete"].astype(bool)].groupby("mitigation")["val_loss"].idxmin()
    return table.assign(chosen=table.index.isin(best))


def _spoken(option: str, value: float | None) -> str:
    return f"no limit on {option}" if value is None else f"{option} {value:g}"


def trials_by_cell(study: StudyConfig, runs: pd.DataFrame) -> pd.DataFrame:
    """How many settings of each mitigation were tried: one row per mitigation, one column per
    cell."""
    tried = runs[runs["mitigation"].isin(study.settings)]
    names = tried["mitigation"].str.partition("@")[0]
    counts = tried.groupby([names, *CELL])["mitigation"].nunique().unstack(CELL, fill_value=0)
    cells = list(dict.fromkeys(zip(tried["pruner"], tried["target_macs_ratio"], strict=True)))
    return counts.loc[list(dict.fromkeys(names)), cells]


def _top1_by_cell(tried: pd.DataFrame, runs: pd.DataFrame) -> Iterator[str]:
    runs = runs[runs["mitigation"].isin(tried["setting"])]
    means = runs.groupby(["mitigation", *CELL], sort=False)["val_top1"].mean().unstack(CELL)
    yield "Validation top-1 (%) in each cell, mean over seeds:"
    yield ""
    heads = " | ".join(f"`{host}` at {ratio:g}" for host, ratio in means.columns)
    yield f"| mitigation | setting | {heads} |"
    yield "|---|---|" + "---|" * means.shape[1]
    for row in tried.to_dict("records"):
        values = ("" if pd.isna(v) else f"{100 * v:.2f}" for v in means.loc[row["setting"]])
        yield f"| `{row['mitigation']}` | {row['options']} | {' | '.join(values)} |"
    yield ""


def tuning_section(study: StudyConfig, runs: pd.DataFrame) -> Iterator[str]:
    """The part of the report that takes the place of claims in a tuning study."""
    yield "## Trials"
    yield ""
    yield (
        "For each mitigation, and for the host alone (`none`), settings are compared that all its "
        "cells (host and budget) have. Chosen is that with the smallest loss on the validation "
        "split, mean over seeds and cells; test figures have no part in it. In brackets: settings "
        "that some cell lacks; their means are over other cells and not compared. One study of few "
        "seeds decides no claim, so none is tested here."
    )
    yield ""
    yield "| mitigation | setting | cells | validation loss | validation top-1 (%) | chosen |"
    yield "|---|---|---|---|---|---|"
    table = trials(study, runs)
    for row in table.to_dict("records"):
        means = (f"{row['val_loss']:.4f}", f"{100 * row['val_top1']:.2f}")
        loss, top1 = means if row["complete"] else (f"({value})" for value in means)
        yield (
            f"| `{row['mitigation']}` | {row['options']} | {row['cells']} | {loss} | {top1} | "
            f"{'**chosen**' if row['chosen'] else ''} |"
        )
    yield ""
    yield from _top1_by_cell(table, runs)
    counts = trials_by_cell(study, runs)
    yield "Number of trials:"
    yield ""
    yield (
        "| mitigation | "
        + " | ".join(f"`{host}` at {ratio:g}" for host, ratio in counts.columns)
        + " | compared |"
    )
    yield "|---|" + "---|" * (len(counts.columns) + 1)
    compared = table[table["complete"].astype(bool)].groupby("mitigation").size()
    for name, row in counts.iterrows():
        cells = " | ".join(str(count) for count in row)
        yield f"| `{name}` | {cells} | {compared.get(name, 0)} |"
    yield ""
