"""`study/<name>/` of a checkpoint folder -> its verdicts, runs, summary, figures and report.

Read from `verdicts.json`, `runs.csv`, `summary.csv` and `README.md` as `python -m nbcore study`
writes them; what is missing is left empty.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import UserError

RUNS = "runs.csv"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that was tested."""

    sentence: str
    verdict: str
    numbers: str


@dataclass(frozen=True, kw_only=True)
class Topic:
    """Claims under one heading."""

    title: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture of the report."""

    path: Path
    caption: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """All that the page shows of one study."""

    name: str
    facts: tuple[str, ...]
    rule: str
    topics: tuple[Topic, ...]
    figures: tuple[Figure, ...]
    trials: tuple[Mapping[str, Any], ...]
    """Settings that were tried, in a study that serves to choose."""
    runs: tuple[Mapping[str, str], ...]
    summary: tuple[Mapping[str, str], ...]
    """One row an arm; empty in a study that serves to choose, which shows no test figure."""
    report: str
    """Markdown."""


def study_names(folder: Path) -> tuple[str, ...]:
    """Studies of a checkpoint folder, those with claims first."""
    found = [path.parent for path in (folder / "study").glob(f"*/{RUNS}")]
    ordered = sorted(found, key=lambda path: (not (path / "summary.csv").is_file(), path.name))
    return tuple(path.name for path in ordered)


def read_study(folder: Path, name: str) -> Study:
    """Read one study.

    Raises:
        UserError: If there is none of this name, or a file of it cannot be read.
    """
    if name not in study_names(folder):
        raise UserError(
            f"unknown study {name!r}; available: {', '.join(study_names(folder)) or 'none'}"
        )
    here = folder / "study" / name
    try:
        return _read(here)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the study {name} cannot be read ({error!r}); write its report again with "
            f"`python -m nbcore study {name} --report`"
        ) from error


def _read(here: Path) -> Study:
    verdicts = here / "verdicts.json"
    told: Mapping[str, Any] = (
        json.loads(verdicts.read_text(encoding="utf-8")) if verdicts.is_file() else {}
    )
    report = here / "README.md"
    listed = [(here / entry["file"], entry["caption"]) for entry in told.get("figures", ())]
    return Study(
        name=here.name,
        facts=tuple(told.get("facts", ())),
        rule=told.get("rule", ""),
        topics=tuple(
            Topic(title=topic["title"], claims=tuple(Claim(**claim) for claim in topic["claims"]))
            for topic in told.get("topics", ())
        ),
        figures=tuple(
            Figure(path=path, caption=caption)
            for path, caption in listed
            # A name that leads out of the folder is no figure of it.
            if path.is_file() and path.resolve().is_relative_to(here.resolve())
        ),
        trials=tuple(told.get("trials", ())),
        runs=_rows(here / RUNS),
        summary=_rows(here / "summary.csv"),
        report=report.read_text(encoding="utf-8") if report.is_file() else "",
    )


def _rows(path: Path) -> tuple[Mapping[str, str], ...]:
    if not path.is_file():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
