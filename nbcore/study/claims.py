"""Each claim of METHODS §4 with the numbers that decide it.

The rule is in `nbcore.study.verdicts`; what is useful is a number of the study
(`StudyConfig.small_effect`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from nbcore.study.grid import (
    DENSE,
    DENSE_PLUS,
    TWIN,
    WEIGHTS,
    StudyConfig,
    acting_without_removal,
    parts_of,
)
from nbcore.study.statistics import (
    CELL,
    MIN_SEEDS,
    Estimate,
    burden_growth,
    by_cell,
    by_host,
    compacting,
    complete_part,
    damage_correlation,
    dense_gain,
    differences_in_differences,
    excess_burden,
    gains,
    holm,
    mean_over_seeds,
    of_host,
    overall,
    pruned_runs,
    recovered,
    relative_macs,
    site_correlation,
    values_by_seed,
)
from nbcore.study.verdicts import (
    ALPHA,
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Claim,
    all_of,
    factor,
    judge,
    number,
    points,
)

USEFUL_CORRELATION = 0.2
USEFUL_BURDEN = 0.05
"""Five per cent more load than a cut and further training explain."""
HALF = 0.5
HOSTS_NEEDED = 3
HEADLINE_SEEDS = 5
"""Where fewer carry a claim on burden, the published pair or the best mitigation, it says so."""
EQUAL_MACS = 0.01
"""Arms whose MACs differ by a smaller share cost the same."""


def mitigations_of(study: StudyConfig, runs: pd.DataFrame) -> list[str]:
    """Mitigations that were run on hosts, `none` left out, in the order of the grid."""
    present = set(pruned_runs(runs)["mitigation"])
    order = dict.fromkeys(arm.mitigation for arm in study.arms())
    return [name for name in order if name in present and name != "none"]


def best_mitigation(
    study: StudyConfig, runs: pd.DataFrame, *, without: str | None = None
) -> str | None:
    """The mitigation that the study names or, where it names none, that with the largest mean gain
    on the validation split of the choice seeds, over the cells of compactable hosts in which all
    candidates were run; distillation alone is a control and no candidate.

    Args:
        study: The study.
        runs: Its runs.
        without: A part that candidates must not have.
    """
    if study.best and without is None:
        return study.best if study.best in mitigations_of(study, runs) else None
    seeds = set(study.choice_seeds) or set(runs["seed"])
    chosen = runs[runs["seed"].isin(seeds) & (runs["pruner"] != WEIGHTS)]
    tables = {
        name: gains(chosen, name, column="val_top1")
        for name in mitigations_of(study, runs)
        if name != "distillation" and without not in parts_of(name)
    }
    tables = {name: table for name, table in tables.items() if table.size}
    if not tables:
        return None
    # Candidates that met fewer cells than most are not comparable and stand back.
    usual = statistics.mode(sorted((t.shape[1] for t in tables.values()), reverse=True))
    tables = {name: table for name, table in tables.items() if table.shape[1] >= usual}
    cells = set.intersection(*(set(table.columns) for table in tables.values()))
    means = {name: table[sorted(cells)].mean().mean() for name, table in tables.items()}
    return max(means, key=lambda name: means[name])


def fresh_runs(study: StudyConfig, runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of seeds that had no part in the choice of the best mitigation; all where none was set
    apart."""
    return runs[~runs["seed"].isin(study.choice_seeds)]


def all_claims(study: StudyConfig, runs: pd.DataFrame, sites: pd.DataFrame) -> list[Claim]:
    """Every claim, in the order of the report."""
    return [
        *claims_on_gains(study, runs),
        *claims_on_relief(study, runs),
        *claims_on_best(study, runs),
        *claims_on_published(study, runs),
        *claims_on_burden(runs, sites),
        *claims_on_controls(study, runs),
    ]


def claims_on_gains(study: StudyConfig, runs: pd.DataFrame) -> list[Claim]:
    """Does a mitigation make pruned models of equal MACs better? For `weights` only those that
    leave MACs as they are can be asked."""
    tables = {name: gains(runs, name) for name in mitigations_of(study, runs)}
    asked = {}
    for name, table in tables.items():
        note = f"{_counted(compacting(table), study.small_effect)}{_on_weights(runs, name, table)}"
        sentence = f"`{name}` makes pruned models of equal cost more accurate."
        asked[sentence] = (compacting(table), note)
    for name, table in tables.items():
        if _costs_the_same(relative_macs(runs, WEIGHTS, name)):
            sentence = f"`{name}` makes models pruned by `{WEIGHTS}` more accurate at equal cost."
            asked[sentence] = (of_host(table, WEIGHTS), _budgets(by_cell(table), WEIGHTS))
    asked = {sentence: own for sentence, own in asked.items() if own[0].size}
    estimates = _family({sentence: overall(table) for sentence, (table, _) in asked.items()})
    return [
        Claim(
            topic="gain",
            sentence=sentence,
            verdict=judge(estimates[sentence], study.small_effect),
            numbers=f"mean over {_extent(table)}: {points(estimates[sentence])}"
            f"{_slight(estimates[sentence], study.small_effect)}, "
            f"Holm p = {_p(estimates[sentence])} over {len(asked)} such claims; {note}",
        )
        for sentence, (table, note) in asked.items()
    ]


def claims_on_relief(study: StudyConfig, runs: pd.DataFrame) -> list[Claim]:
    """Does it relieve pruning, or help any model?"""
    tables = {name: differences_in_differences(runs, name) for name in mitigations_of(study, runs)}
    asked = {name: both for name, both in tables.items() if compacting(both).size}
    estimates = _family({name: overall(compacting(both)) for name, both in asked.items()})
    found = []
    for name, both in asked.items():
        table, estimate = compacting(both), estimates[name]
        part = complete_part(table)
        pruned = mean_over_seeds(gains(runs, name).loc[part.index, part.columns].mean(axis=1))
        dense = _to_dense(runs, name, part.index)
        found.append(
            Claim(
                topic="relief",
                sentence=f"`{name}` relieves pruning: it adds more to pruned models than to the "
                "dense one.",
                verdict=judge(estimate, study.small_effect),
                numbers=f"difference in differences over {_extent(table)}: {points(estimate)}"
                f"{_slight(estimate, study.small_effect)}, Holm p = {_p(estimate)} over "
                f"{len(asked)} such claims; to pruned models it adds {points(pruned)}, to the "
                f"dense one {dense}; "
                f"{_counted(table, study.small_effect)}{_on_weights(runs, name, both)}",
            )
        )
    return found


def _to_dense(runs: pd.DataFrame, name: str, seeds: pd.Index) -> str:
    """What a mitigation adds to the dense model of these seeds, in words."""
    acting = acting_without_removal(name)
    if acting == "none":
        return "nothing, as it acts only when units leave"
    macs = relative_macs(runs, DENSE_PLUS, acting)
    return f"{points(mean_over_seeds(dense_gain(runs, name).loc[seeds]))}{_at(macs, 'its MACs')}"


def claims_on_best(study: StudyConfig, runs: pd.DataFrame) -> list[Claim]:
    """Does the best mitigation recover half of the loss, and what is it worth beside
    distillation?"""
    best = best_mitigation(study, runs)
    if best is None:
        return []
    fresh = fresh_runs(study, runs)
    return [
        *_recovers_half(
            recovered(fresh, best),
            f"The best mitigation, `{best}`, recovers at least half of what pruning to",
            "costs",
        ),
        *_recovers_half(
            recovered(fresh, best, against=DENSE),
            f"`{best}` brings models pruned to",
            "at least half of the way back to the dense model that they fork from,",
        ),
        *_beside_distillation(study, fresh, best_mitigation(study, runs, without="distillation")),
        *_on_top_of_distillation(study, fresh),
    ]


def _recovers_half(
    shares: dict[tuple[str, float], Estimate], before: str, after: str
) -> list[Claim]:
    """For each budget, whether at least half of a loss is recovered on enough hosts.

    Args:
        shares: Recovered share by host and budget.
        before: The sentence up to the budget.
        after: The sentence between the budget and the number of hosts.
    """
    found = []
    for ratio in sorted({ratio for host, ratio in shares if host != WEIGHTS}):
        here = {host: shares[host, r] for host, r in shares if r == ratio and host != WEIGHTS}
        works = [
            host
            for host, share in here.items()
            if share.mean >= HALF and share.low > 0 and share.n >= MIN_SEEDS
        ]
        possible = [host for host, share in here.items() if not share.high < HALF]
        verdict = UNDECIDED
        if len(works) >= HOSTS_NEEDED:
            verdict = SUPPORTED
        elif len(here) >= HOSTS_NEEDED > len(possible):
            verdict = REFUTED
        found.append(
            Claim(
                topic="best",
                sentence=f"{before} {ratio:g} {after} on at least {HOSTS_NEEDED} hosts.",
                verdict=verdict,
                numbers=f"on {len(works)} of {len(here)} hosts, counted where the mean is at least "
                "half and the interval (not corrected by Holm) above zero; recovered share: "
                + "; ".join(f"{host} {number(share)}" for host, share in here.items())
                + _too_few_hosts(len(here))
                + _few(list(here.values())),
            )
        )
    return found


def _too_few_hosts(count: int) -> str:
    if count >= HOSTS_NEEDED:
        return ""
    return f"; {count} hosts are too few to decide"


def _beside_distillation(study: StudyConfig, runs: pd.DataFrame, own: str | None) -> list[Claim]:
    table = compacting(gains(runs, own, "distillation")) if own else pd.DataFrame()
    if not table.size:
        return []
    estimate, margin = overall(table), study.small_effect
    # At least as good: below it by less than a useful effect.
    shifted = replace(estimate, low=estimate.low + margin, high=estimate.high + margin, p=math.nan)
    return [
        Claim(
            topic="best",
            sentence=f"`{own}`, the best without distillation, is at least as good as "
            f"distillation alone (to within {100 * margin:g} points).",
            verdict=judge(shifted, 0),
            numbers=f"difference over {_extent(table)}: {points(estimate)}{_few([estimate])}",
        )
    ]


def _on_top_of_distillation(study: StudyConfig, runs: pd.DataFrame) -> list[Claim]:
    names = [
        name
        for name in mitigations_of(study, runs)
        if name != "distillation" and "distillation" in parts_of(name)
    ]
    tables = {name: compacting(gains(runs, name, "distillation")) for name in names}
    estimates = _family({name: overall(table) for name, table in tables.items()})
    return [
        Claim(
            topic="best",
            sentence=f"`{name}` beats distillation alone.",
            verdict=judge(estimates[name], study.small_effect),
            numbers=f"difference over {_extent(table)}: {points(estimates[name])}"
            f"{_slight(estimates[name], study.small_effect)}, Holm p = {_p(estimates[name])}; "
            f"{_counted(table, study.small_effect)}{_few([estimates[name]])}",
        )
        for name, table in tables.items()
        if table.size
    ]


def claims_on_published(study: StudyConfig, runs: pd.DataFrame) -> list[Claim]:
    """The published pair, host by host."""
    table = gains(runs, "published")
    cells, hosts = by_cell(table), by_host(table)
    return [
        Claim(
            topic="published",
            sentence=f"The published pair helps on host `{host}`.",
            verdict=judge(estimate, study.small_effect),
            numbers="mean over budgets "
            f"{points(estimate)}{_slight(estimate, study.small_effect)}"
            f"{_at(relative_macs(runs, host, 'published'), 'the MACs of `none`')}, Holm p = "
            f"{_p(estimate)} over {len(hosts)} hosts; {_budgets(cells, host)}{_few([estimate])}",
        )
        for host, estimate in hosts.items()
    ]


def claims_on_burden(runs: pd.DataFrame, sites: pd.DataFrame) -> list[Claim]:
    """Does neural burden exist, by the three criteria of METHODS §4?"""
    excess = excess_burden(runs)
    if not excess.size:
        return []
    units = compacting(excess)
    whole, growth = overall(units), mean_over_seeds(burden_growth(units))
    site = site_correlation(sites)
    kinds = {kind: site_correlation(own) for kind, own in sites.groupby("kind")}
    hosts = by_host(excess)
    also = f", `{WEIGHTS}` included," if WEIGHTS in hosts else ""
    above = [host for host, e in hosts.items() if judge(e, USEFUL_BURDEN) == SUPPORTED]
    below = [h for h, e in hosts.items() if e.n >= MIN_SEEDS and e.high < 0 and not e.p >= ALPHA]
    criteria = [
        Claim(
            topic="burden",
            sentence="(1) After pruning, survivors carry more than the cut and further training "
            "explain: B / B₀ exceeds the ratio of the dense model trained on.",
            verdict=judge(whole, USEFUL_BURDEN),
            numbers=f"(B / B₀) / (dense+ / dense) over {_extent(units)}: {factor(whole)}"
            f"{_slight(whole, USEFUL_BURDEN)}; above one on {len(above)} of {len(hosts)} hosts"
            f"{also} after Holm's correction{_named(above)}, below one on {len(below)}"
            f"{_named(below)}{_few([whole])}",
        ),
        Claim(
            topic="burden",
            sentence="(2) The excess grows with the share removed.",
            verdict=judge(growth, USEFUL_BURDEN),
            numbers=f"from each host's largest to its smallest budget: {factor(growth)}"
            f"{_slight(growth, USEFUL_BURDEN)}{_few([growth])}",
        ),
        Claim(
            topic="burden",
            sentence="(3) From site to site, the excess predicts damage beyond the share removed.",
            verdict=judge(site, USEFUL_CORRELATION),
            numbers="partial rank correlation over sites with the residual of the site's block: "
            f"{number(site)}; "
            + "; ".join(f"{kind} alone {number(own)}" for kind, own in kinds.items())
            + "; over hosts and budgets, with the loss increase of the run: "
            f"{number(damage_correlation(runs))}{_few([site])}",
        ),
    ]
    together = Claim(
        topic="burden",
        sentence="Neural burden exists in these models (all three criteria).",
        verdict=all_of([claim.verdict for claim in criteria]),
        numbers=", ".join(f"({i + 1}) {claim.verdict}" for i, claim in enumerate(criteria))
        + _few([whole, growth, site]),
    )
    return [together, *criteria]


def claims_on_controls(study: StudyConfig, runs: pd.DataFrame) -> list[Claim]:
    """Pruning against a twin that was never large, and hosts against removal at random."""
    found = []
    hosts = [host for host in dict.fromkeys(pruned_runs(runs)["pruner"]) if host != WEIGHTS]
    twins, random = {}, {}
    for ratio in sorted(set(runs.loc[runs["pruner"] == TWIN, "target_macs_ratio"])):
        twin = values_by_seed(runs, TWIN, ratio, "none", "top1")
        for host in hosts:
            difference = (values_by_seed(runs, host, ratio, "none", "top1") - twin).dropna()
            if len(difference):
                twins[(host, ratio)] = difference
    for (host, ratio), group in pruned_runs(runs).groupby(CELL, sort=False):
        control = values_by_seed(runs, "random", ratio, "none", "top1")
        difference = (values_by_seed(group, host, ratio, "none", "top1") - control).dropna()
        if len(difference) and host not in ("random", WEIGHTS):
            random[(host, ratio)] = difference
    for table, sentence in (
        (pd.DataFrame(twins), "Pruned models beat a dense twin of equal cost trained from scratch "
         "for as long."),
        (pd.DataFrame(random), "Hosts beat removal at random."),
    ):  # fmt: skip
        if table.size:
            estimate = overall(table)
            found.append(
                Claim(
                    topic="control",
                    sentence=sentence,
                    verdict=judge(estimate, study.small_effect),
                    numbers=f"difference over {_extent(table)}: {points(estimate)}; "
                    f"{_counted(table, study.small_effect)}: "
                    + ", ".join(f"`{host}` {points(e)}" for host, e in by_host(table).items()),
                )
            )
    return found


def _family(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    corrected = holm([e.p for e in estimates.values()])
    return {
        name: replace(e, p=p) for (name, e), p in zip(estimates.items(), corrected, strict=True)
    }


def _named(hosts: Sequence[str]) -> str:
    return f" ({', '.join(f'`{host}`' for host in hosts)})" if hosts else ""


def _extent(table: pd.DataFrame) -> str:
    part = complete_part(table)
    text = f"{part.shape[1]} cells of host and budget"
    left = [f"{host} at {ratio:g}" for host, ratio in table.columns.difference(part.columns)]
    return text + (f" (without {', '.join(left)}: other seeds)" if left else "")


def _counted(table: pd.DataFrame, useful: float) -> str:
    verdicts = [judge(estimate, useful) for estimate in by_host(table).values()]
    return (
        f"host by host (Holm) supported in {verdicts.count(SUPPORTED)}, not supported in "
        f"{verdicts.count(REFUTED)}, undecided in {verdicts.count(UNDECIDED)}"
    )


def _budgets(cells: Mapping[tuple[str, float], Estimate], host: str) -> str:
    own = {ratio: e for (h, ratio), e in cells.items() if h == host}
    return "; ".join(f"at {ratio:g} {points(own[ratio])}" for ratio in sorted(own))


def _slight(estimate: Estimate, useful: float) -> str:
    """Words on an effect that is there, but too small to matter."""
    there = judge(estimate, useful) == SUPPORTED
    return ", smaller than a useful effect" if there and estimate.high < useful else ""


def _costs_the_same(macs: float) -> bool:
    return abs(macs - 1) < EQUAL_MACS


def _at(macs: float, whose: str) -> str:
    """Words on a cost that differs; none where it does not, or is not known."""
    return "" if math.isnan(macs) or _costs_the_same(macs) else f", at {macs:.3f} of {whose}"


def _on_weights(runs: pd.DataFrame, name: str, table: pd.DataFrame) -> str:
    """What a mean over hosts that compact leaves out."""
    own = of_host(table, WEIGHTS)
    if not own.size:
        return ""
    cost = _at(relative_macs(runs, WEIGHTS, name), "the MACs of `none`")
    return f"; not counted: `{WEIGHTS}`, {points(overall(own))}{cost}"


def _few(estimates: Sequence[Estimate]) -> str:
    """A warning where seeds are fewer than a headline needs."""
    seeds = min((e.n for e in estimates if e.n), default=HEADLINE_SEEDS)
    if seeds >= HEADLINE_SEEDS:
        return ""
    return f"; carried by {seeds} seeds, a headline needs {HEADLINE_SEEDS}"


def _p(estimate: Estimate) -> str:
    if math.isnan(estimate.p):
        return "-"
    return "< 0.0001" if estimate.p < 1e-4 else f"{estimate.p:.4f}"
