"""`verdicts.json`: what the report says, for programs: facts, judged claims, figures, trials.

The page reads this file and the tables, never the report's text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nbcore.checkpoint import to_json, write_atomically
from nbcore.study.verdicts import Claim

VERDICTS = "verdicts.json"


def write_verdicts(
    out: Path,
    *,
    study: str,
    facts: Sequence[str],
    rule: str,
    topics: Mapping[str, str],
    claims: Sequence[Claim],
    figures: Mapping[str, str],
    trials: Sequence[Mapping[str, Any]],
) -> Path:
    """Write the file.

    Args:
        out: Folder of the study.
        study: Its name.
        facts: Sentences on data, model, training, runs and devices.
        rule: How verdicts are found.
        topics: Heading of each topic that claims name.
        claims: In the order of the report.
        figures: Caption by file name in `figures/`.
        trials: Settings that were tried, in a study that serves to choose.
    """
    data = {
        "study": study,
        "facts": list(facts),
        "rule": rule,
        "topics": [
            {
                "title": title,
                "claims": [
                    {key: value for key, value in asdict(claim).items() if key != "topic"}
                    for claim in claims
                    if claim.topic == topic
                ],
            }
            for topic, title in topics.items()
            if any(claim.topic == topic for claim in claims)
        ],
        "figures": [
            {"file": f"figures/{name}", "caption": caption} for name, caption in figures.items()
        ],
        "trials": [dict(trial) for trial in trials],
    }
    path = out / VERDICTS
    write_atomically(path, to_json(data))
    return path
