"""The written report of a study: `summary.csv`, figures, `verdicts.json` and `README.md`, from the
tables alone.

The same tables and the same grid give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from nbcore.checkpoint import write_atomically
from nbcore.study.claims import all_claims
from nbcore.study.figures import draw_figures
from nbcore.study.grid import (
    DENSE,
    DENSE_PLUS,
    TWIN,
    UNPRUNED,
    WEIGHTS,
    Arm,
    StudyConfig,
    acting_without_removal,
)
from nbcore.study.statistics import MIN_SEEDS, pruning_loss
from nbcore.study.summary import summarise
from nbcore.study.tables import ARM_COLUMNS, FAILURE_COLUMNS, Table, read_frames
from nbcore.study.tuning import trials, tuning_section
from nbcore.study.verdict_file import write_verdicts
from nbcore.study.verdicts import REFUTED, SUPPORTED, UNDECIDED, Claim

TOPICS = {
    "burden": "Does neural burden exist?",
    "published": "Does the published pair help?",
    "best": "What does the best mitigation reach?",
    "gain": "Which mitigations help pruned models?",
    "relief": "Do they relieve pruning, or help any model?",
    "control": "Controls",
}
RULE = (
    "*Supported*: the 95 % interval excludes zero in the claimed direction, however small the "
    "effect (after Holm's correction where the numbers give a Holm p). *Not supported*: it does "
    "not, and excludes every useful effect in that direction. *Undecided*: neither, or fewer than "
    f"{MIN_SEEDS} seeds."
)
SIGNS = {SUPPORTED: "**supported**", REFUTED: "**not supported**", UNDECIDED: "undecided"}


def write_report(study: StudyConfig, out: Path) -> Path:
    """Make summary, figures and report of a study anew.

    Args:
        study: Its grid tells what was meant to be run.
        out: Folder of the tables.

    Returns:
        The README.

    Raises:
        ValueError: If no run is finished.
    """
    frames = [in_grid_order(study, table) for table in read_frames(out)]
    runs = frames[0]
    if runs.empty:
        raise ValueError(f"no finished run in {out / 'runs.csv'}; run `{study.command}` first")
    summary = summarise(runs, one_fork=bool(study.fork))
    if not study.settings:
        csv = summary.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_atomically(out / "summary.csv", csv)
    failures = Table(out / "failures.csv", FAILURE_COLUMNS).read()
    facts = list(_facts(study, runs))
    # A study that serves to choose tests no claim.
    claims = [] if study.settings else all_claims(study, runs, frames[1])
    captions = (
        {}
        if study.settings
        else draw_figures(study, (frames[0], frames[1], frames[2]), out / "figures")
    )
    write_verdicts(
        out,
        study=study.name,
        facts=facts,
        rule=RULE,
        topics=TOPICS,
        claims=claims,
        figures=captions,
        trials=trials(study, runs).to_dict("records") if study.settings else [],
    )
    lines = [
        *_opening(study, facts),
        *(
            tuning_section(study, runs)
            if study.settings
            else _findings(claims, captions, summary, runs)
        ),
        *_account(study, runs, failures),
        *_method(study),
    ]
    write_atomically(out / "README.md", "\n".join(lines) + "\n")
    return out / "README.md"


def in_grid_order(study: StudyConfig, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of any of the tables in the order of the grid, whatever order runs were finished in;
    rows that the grid no longer has come last."""
    place = {arm: position for position, arm in enumerate(study.arms())}
    arms = [Arm.from_columns(row) for row in table[list(ARM_COLUMNS)].to_dict("records")]
    within = [name for name in ("site", "step") if name in table]
    keys = table[within].assign(
        place=[place.get(arm, len(place)) for arm in arms], key=[arm.key for arm in arms]
    )
    order = keys.sort_values(["place", "key", *within], kind="stable").index
    return table.loc[order].reset_index(drop=True)


def _opening(study: StudyConfig, facts: Sequence[str]) -> Iterator[str]:
    yield f"# Study `{study.name}`"
    yield ""
    yield (
        "Written by `python -m nbcore study "
        f"{study.name} --report` from `runs.csv`, `sites.csv` and `history.csv.gz`; do not edit."
    )
    yield ""
    yield from (f"- {fact}" for fact in facts)
    yield ""


def _facts(study: StudyConfig, runs: pd.DataFrame) -> Iterator[str]:
    pruned = runs[~runs["pruner"].isin(UNPRUNED)]
    hours = runs["seconds"].sum() / 3600
    yield f"Command: `{study.command}`"
    yield (
        f"Data: {study.data.dataset}, {study.data.img_size} px; "
        f"{100 * study.data.validation_share:g} % of the training set is the "
        "validation split, on which choices are made; the test set is "
        "for reporting."
    )
    yield (
        f"Model: `{study.model.name}` with {dict(study.model.kwargs)}, stem "
        f"`{study.model.stem}`, from random initialisation."
    )
    epochs = study.dense.total_epochs
    if study.fork:
        yield (
            f"Training: all arms of all seeds fork from one dense model, `{study.fork}`, and "
            f"train for {study.arm.total_epochs} epochs; seeds differ in data order, augmentation "
            "and what hosts draw, so intervals say nothing of other dense models."
        )
    else:
        yield (
            f"Training: {epochs} epochs for the dense model of a seed, from which all its arms "
            f"fork, then {study.arm.total_epochs} epochs for every arm; a twin trains for "
            f"{epochs + study.arm.total_epochs} from scratch."
        )
    yield (
        f"Runs: {len(runs)} finished, {len(pruned)} of them pruned: "
        f"{pruned['pruner'].nunique()} hosts, {pruned['mitigation'].nunique()} mitigations, seeds "
        f"{_listed(sorted(set(runs['seed'])))}; {hours:.1f} hours of training and measuring, "
        "several runs at a time."
    )
    yield f"Devices: {_listed(sorted(set(runs['device'])))}."
    yield f"Commits: {_listed(sorted({_short(commit) for commit in runs['commit']}))}."
    if not study.settings:  # What serves to choose shows no test figure.
        yield from _accuracies(study, runs)
    yield from study.notes


def _short(commit: str) -> str:
    """Twelve digits, and whether something was changed since."""
    digits, plus, what = commit.partition("+")
    return digits[:12] + plus + what


def _accuracies(study: StudyConfig, runs: pd.DataFrame) -> Iterator[str]:
    for pruner, text in ((DENSE, "Dense models"), (DENSE_PLUS, "Dense models trained on")):
        own = runs[(runs["pruner"] == pruner) & (runs["mitigation"] == "none")]["top1"]
        if len(own):
            spread = f"from {100 * own.min():.2f} to {100 * own.max():.2f} over {len(own)}"
            what = f"{text}: test top-1 {100 * own.mean():.2f} %"
            if study.fork and pruner == DENSE:
                yield f"{what} ({spread} measurements of the one dense model)."
            else:
                yield f"{what} ({spread} seeds)."


def _findings(
    claims: Sequence[Claim],
    captions: Mapping[str, str],
    summary: pd.DataFrame,
    runs: pd.DataFrame,
) -> Iterator[str]:
    yield from _claims(claims)
    yield from _figures(captions)
    yield from _table(summary)
    yield from _price(runs)
    yield from _notes(summary)


def _claims(claims: Sequence[Claim]) -> Iterator[str]:
    count = {v: sum(c.verdict == v for c in claims) for v in SIGNS}
    yield "## Claims"
    yield ""
    yield (
        f"{len(claims)} claims were tested: {count[SUPPORTED]} supported, {count[REFUTED]} not "
        f"supported, {count[UNDECIDED]} undecided. {RULE}"
    )
    for topic, title in TOPICS.items():
        own = [claim for claim in claims if claim.topic == topic]
        if not own:
            continue
        yield ""
        yield f"### {title}"
        yield ""
        yield "| claim | verdict | numbers |"
        yield "|---|---|---|"
        for claim in own:
            yield f"| {claim.sentence} | {SIGNS[claim.verdict]} | {claim.numbers} |"
    yield ""


def _figures(captions: Mapping[str, str]) -> Iterator[str]:
    yield "## Figures"
    for name, caption in captions.items():
        yield ""
        yield f"![{name.removesuffix('.png').replace('_', ' ')}](figures/{name})"
        yield ""
        yield f"*{caption}*"
    yield ""


def _table(summary: pd.DataFrame) -> Iterator[str]:
    yield "## All arms"
    yield ""
    yield (
        "Test top-1 in %, mean and 95 % interval over seeds; gain over the same host and budget "
        "without mitigation, paired by seed; recovered share of what pruning costs; difference in "
        "differences (DiD), what is gained beyond the gain of the dense model; these three over "
        "the seeds that all arms they compare have; burden B, its null B₀ and the ratio of the "
        "dense model trained on. Everything else is in `summary.csv`."
    )
    yield ""
    yield (
        "| host | budget | MACs | mitigation | seeds | top-1 | gain | recovered | DiD | B | B₀ | "
        "dense+ |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for row in summary.to_dict("records"):
        cells = [
            f"`{row['pruner']}`",
            f"{row['target_macs_ratio']:g}",
            f"{row['macs_ratio']:.3f}",
            f"`{row['mitigation']}`",
            str(row["seeds"]),
            _interval(row, "top1", 100, "{:.2f}"),
            _interval(row, "gain", 100, "{:+.2f}"),
            _interval(row, "recovered", 100, "{:.0f} %"),
            _interval(row, "did", 100, "{:+.2f}"),
            *(_value(row[name]) for name in ("burden", "burden_null", "burden_dense_plus")),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _notes(summary: pd.DataFrame) -> Iterator[str]:
    """What the table leaves to be said on costs and on dense controls."""
    pruned = summary[~summary["pruner"].isin(UNPRUNED)]
    whole = pruned["pruner"] == WEIGHTS
    text = (
        "Within a budget of a host that compacts, MACs differ by at most "
        f"{100 * _uneven_costs(pruned[~whole]):.2f} % of the dense model's."
    )
    if whole.any():
        text += (
            f" Within one of `{WEIGHTS}`, which does not compact, they differ by up to "
            f"{100 * _uneven_costs(pruned[whole]):.1f} %: token merging comes on top there."
        )
    yield text
    yield ""
    skipped = [m for m in dict.fromkeys(summary["mitigation"]) if acting_without_removal(m) != m]
    if skipped:
        yield (
            "Some parts of mitigations act only when units leave and change no bit of a dense "
            "training, so the dense control of these is that of what is left of them, and was not "
            "run again: "
            + "; ".join(f"`{m}` → `{acting_without_removal(m)}`" for m in skipped)
            + "."
        )
        yield ""


def _price(runs: pd.DataFrame) -> Iterator[str]:
    """What pruning costs, since shares of next to nothing say next to nothing."""
    lost = 100 * pruning_loss(runs).mean()
    if len(lost):
        yield (
            "Points that pruning without mitigation costs, against the dense model trained on: "
            + "; ".join(
                f"`{host}` at {ratio:g}, {value:.2f}" for (host, ratio), value in lost.items()
            )
            + ". The smaller they are, the less a recovered share says."
        )
        yield ""


def _uneven_costs(pruned: pd.DataFrame) -> float:
    """Largest difference of MACs within a host and budget, as a share of dense."""
    cells = pruned.groupby(["pruner", "target_macs_ratio"])["macs_ratio"]
    return float((cells.max() - cells.min()).max()) if len(pruned) else 0.0


def _interval(row: dict, name: str, scale: float, form: str) -> str:
    mean, low, high = (scale * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(mean):
        return ""
    if math.isnan(low):
        return form.format(mean)
    plain = form.removesuffix(" %")
    return f"{form.format(mean)} [{plain.format(low)}, {plain.format(high)}]"


def _value(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _account(study: StudyConfig, runs: pd.DataFrame, failures: Sequence[dict]) -> Iterator[str]:
    """Every run of the grid: done, failed or not run."""
    arms = study.arms()
    done = {Arm.from_columns(row) for row in runs.to_dict("records")}
    failed = {Arm.from_columns(row): row["error"] for row in failures}
    missing = [arm for arm in arms if arm not in done and arm not in failed]
    yield "## What was run, and what was not"
    yield ""
    yield (
        f"The grid has {len(arms)} runs: {sum(arm in done for arm in arms)} are in the tables, "
        f"{sum(arm in failed and arm not in done for arm in arms)} failed, {len(missing)} were not "
        "run."
    )
    strangers = [arm for arm in done if arm not in set(arms)]
    if strangers:
        yield ""
        yield f"{len(strangers)} runs in the tables are no longer in the grid."
    changed = [
        arm.key
        for arm, config in zip(
            (Arm.from_columns(row) for row in runs.to_dict("records")), runs["config"], strict=True
        )
        if study.fingerprint(arm) != config
    ]
    if changed:
        yield ""
        yield (
            f"{len(changed)} runs were made with other settings than the grid has now (such as "
            f"`{changed[0]}`); what is said of settings above holds for the grid."
        )
    if missing:
        yield ""
        yield "Not run:"
        yield ""
        yield from _grouped(missing)
    if failed:
        yield ""
        yield "Failed:"
        yield ""
        for arm, error in failed.items():
            if arm not in done:
                yield f"- `{arm.key}`: {error}"
    yield ""


def _grouped(arms: Sequence[Arm]) -> Iterator[str]:
    """One line for a host and budget, or for each set of seeds that mitigations share there."""
    seeds: dict[tuple[str, float, str], list[int]] = {}
    for arm in arms:
        seeds.setdefault((arm.pruner, arm.target_macs_ratio, arm.mitigation), []).append(arm.seed)
    lines: dict[tuple[str, float, tuple[int, ...]], list[str]] = {}
    for (pruner, ratio, mitigation), own in seeds.items():
        lines.setdefault((pruner, ratio, tuple(sorted(own))), []).append(f"`{mitigation}`")
    for (pruner, ratio, shared), names in lines.items():
        yield f"- `{pruner}` at {ratio:g}, {_listed(names)}: seeds {_listed(shared)}"


def _method(study: StudyConfig) -> Iterator[str]:
    yield "## How to read it"
    yield ""
    run = {arm.pruner for arm in study.arms()}
    choice = (
        "chosen in another study and judged here on all seeds"
        if study.best
        else "chosen by its gain on the validation split over the seeds "
        f"{_listed(study.choice_seeds)} "
        "and judged on the test photos of all other seeds"
        if study.choice_seeds
        else "chosen by its gain on the validation split and judged on the test photos"
    )
    yield (
        "The arms of a seed fork from the same dense model and see the same data in the same order "
        "for the same number of steps; only differences within a seed are taken, and intervals are "
        "those of Student's t over seeds (statsmodels), of ratios Fieller's. `budget` is the "
        "target for MACs of the compact model over MACs of the dense one, token merging included "
        f"in both; MACs is what was reached. {WEIGHTS_READ if WEIGHTS in run else ''}`dense_plus` "
        "is the dense model trained on for as long as the arms"
        f"{TWIN_READ if TWIN in run else ''}. The best mitigation was {choice}. An effect counts "
        f"as useful from {100 * study.small_effect:g} points on. Means over several hosts and "
        "budgets use the largest set of seeds and cells in which nothing is missing. Site values "
        "are averaged over sites by removed MACs."
    )
    if not study.settings:
        yield ""
        yield (EQUAL_READ if WEIGHTS in run else "") + CLAIMS_READ


WEIGHTS_READ = (
    "For the host `weights` the budget is the share of block weights kept, its model is never "
    "compacted and no faster, its parameters are counted where they are not zero, and burden is "
    "taken over all units. "
)
TWIN_READ = ", `twin` a dense model of the arms' cost trained from scratch for the whole time"
EQUAL_READ = (
    "Means over hosts leave out `weights`: it does not compact, so token merging lowers the MACs "
    "of its arms, and they are not of equal cost. "
)
CLAIMS_READ = (
    "Token merging lowers the MACs of the dense control, but not those of pruned arms, which reach "
    "the same budget with and without it: that it relieves pruning therefore includes what it "
    "takes from a dense model by making it cheaper. Whether the burden of a photo predicts that a "
    "pruned model gets it wrong is measured on the shipped variants of Imagenette and CIFAR-10: "
    "see `checkpoints/flips/README.md`."
)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
