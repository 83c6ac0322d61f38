"""Statistics of a study: hand counts on small tables, laws, and effects planted in made-up ones."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nbcore.study import statistics
from nbcore.study.grid import DENSE, DENSE_PLUS
from nbcore.study.statistics import (
    by_cell,
    by_host,
    complete_part,
    dense_gain,
    differences_in_differences,
    gains,
    holm,
    mean_over_seeds,
    overall,
    partial_rank_correlation,
    pruning_loss,
    ratio_of_means,
    recovered,
)

ROWS = [
    # pruner, mitigation, budget, top1 of seeds 0, 1, 2
    ("dense_plus", "none", 1.0, (0.80, 0.82, 0.81)),
    ("dense_plus", "token_merging", 1.0, (0.81, 0.82, 0.83)),
    ("taylor", "none", 0.5, (0.70, 0.74, 0.72)),
    ("taylor", "token_merging", 0.5, (0.73, 0.76, 0.73)),
    ("taylor", "handoff", 0.5, (0.75, 0.76, 0.77)),
    ("random", "none", 0.5, (0.60, 0.61, 0.62)),
    ("random", "handoff", 0.5, (0.64, 0.65)),
]


@pytest.fixture
def runs() -> pd.DataFrame:
    """Seven arms; `random` with `handoff` lacks seed 2."""
    return pd.DataFrame(
        [
            {
                "pruner": pruner,
                "mitigation": mitigation,
                "target_macs_ratio": budget,
                "seed": seed,
                "top1": top1,
            }
            for pruner, mitigation, budget, values in ROWS
            for seed, top1 in enumerate(values)
        ]
    )


def test_mean_and_interval_of_three_seeds() -> None:
    estimate = mean_over_seeds([1.0, 2.0, 3.0])
    # Mean 2, standard error 1 / sqrt(3); t(0.975, 2) = 4.302653: half width 2.484138.
    assert estimate.mean == pytest.approx(2.0)
    assert (estimate.low, estimate.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    # With two degrees of freedom p = 1 - t / sqrt(2 + t²), t = 2 sqrt(3): 1 - sqrt(12 / 14).
    assert estimate.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert estimate.n == 3


def test_one_seed_has_no_interval_and_no_seed_no_mean() -> None:
    one, none = mean_over_seeds([0.5]), mean_over_seeds([])
    assert (one.mean, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    assert math.isnan(none.mean)


def test_an_exact_tie_is_no_evidence() -> None:
    tie = mean_over_seeds([0.0, 0.0, 0.0])
    assert (tie.mean, tie.low, tie.high, tie.p) == (0, 0, 0, 1)


def test_holm() -> None:
    # Ascending 0.01, 0.03, 0.04 times 3, 2, 1 = 0.03, 0.06, 0.04; never below the one before.
    assert holm([0.01, 0.04, math.nan, 0.03])[:2] == pytest.approx([0.03, 0.06])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([0.01, math.nan])[0] == pytest.approx(0.01)


def test_gain_is_paired_by_seed(runs: pd.DataFrame) -> None:
    table = gains(runs, "handoff")
    assert table["taylor", 0.5].tolist() == pytest.approx([0.05, 0.02, 0.05])
    # Seed 2 was not run with handoff.
    assert table["random", 0.5].dropna().tolist() == pytest.approx([0.04, 0.04])
    # The overall mean is over what is complete: taylor alone has three seeds.
    assert overall(table).mean == pytest.approx(0.04)
    assert overall(table).n == 3


def test_pairs_are_found_in_whatever_order_runs_were_finished(runs: pd.DataFrame) -> None:
    shuffled = runs.sample(frac=1, random_state=3)
    assert gains(shuffled, "handoff")["taylor", 0.5].tolist() == pytest.approx([0.05, 0.02, 0.05])
    assert pruning_loss(shuffled)["taylor", 0.5].tolist() == pytest.approx([0.10, 0.08, 0.09])
    assert dense_gain(shuffled, "token_merging").tolist() == pytest.approx([0.01, 0.0, 0.02])


def test_gain_over_another_mitigation(runs: pd.DataFrame) -> None:
    table = gains(runs, "handoff", "token_merging")
    assert list(table.columns) == [("taylor", 0.5)]
    assert table["taylor", 0.5].tolist() == pytest.approx([0.02, 0.0, 0.04])


def test_difference_in_differences(runs: pd.DataFrame) -> None:
    assert dense_gain(runs, "token_merging").tolist() == pytest.approx([0.01, 0.0, 0.02])
    # Gains 0.03, 0.02, 0.01 less those of the dense model.
    table = differences_in_differences(runs, "token_merging")
    assert table["taylor", 0.5].tolist() == pytest.approx([0.02, 0.02, -0.01])


def test_what_acts_on_removal_only_gains_nothing_on_the_dense_model(runs: pd.DataFrame) -> None:
    assert dense_gain(runs, "handoff").tolist() == [0, 0, 0]
    assert differences_in_differences(runs, "handoff").equals(gains(runs, "handoff"))
    assert dense_gain(runs, "handoff+token_merging").tolist() == pytest.approx([0.01, 0.0, 0.02])


def test_recovered_share_is_a_ratio_of_means(runs: pd.DataFrame) -> None:
    assert pruning_loss(runs)["taylor", 0.5].tolist() == pytest.approx([0.10, 0.08, 0.09])
    shares = recovered(runs, "handoff")
    # Gains 0.05, 0.02, 0.05 of losses 0.10, 0.08, 0.09: 0.12 / 0.27.
    assert shares["taylor", 0.5].mean == pytest.approx(0.12 / 0.27)
    # Two seeds: 0.08 of losses 0.20 and 0.21.
    assert shares["random", 0.5].mean == pytest.approx(0.08 / 0.41)
    assert shares["random", 0.5].n == 2


def test_loss_and_share_against_the_dense_model_that_all_fork_from(runs: pd.DataFrame) -> None:
    # Dense models are 0.02 below those trained on: losses 0.08, 0.06, 0.07.
    forks = runs[(runs["pruner"] == DENSE_PLUS) & (runs["mitigation"] == "none")].copy()
    forks["pruner"] = DENSE
    forks["top1"] -= 0.02
    both = pd.concat([runs[runs["pruner"] != DENSE], forks])
    assert pruning_loss(both, DENSE)["taylor", 0.5].tolist() == pytest.approx([0.08, 0.06, 0.07])
    share = recovered(both, "handoff", against=DENSE)["taylor", 0.5]
    assert share.mean == pytest.approx(0.12 / 0.21)


def test_fiellers_bounds_are_where_a_t_test_begins_to_refute() -> None:
    top, bottom = np.array([0.05, 0.02, 0.05, 0.04]), np.array([0.10, 0.08, 0.09, 0.11])
    estimate = ratio_of_means(top, bottom)
    assert estimate.low < estimate.mean < estimate.high
    for bound in (estimate.low, estimate.high):
        assert stats.ttest_1samp(top - bound * bottom, 0).pvalue == pytest.approx(0.05)


def test_a_share_of_what_may_be_nothing_has_no_interval() -> None:
    estimate = ratio_of_means([0.01, 0.02, 0.03], [0.10, -0.10, 0.02])
    assert math.isnan(estimate.low)
    assert estimate.n == 3


def test_complete_part_prefers_three_seeds_to_more_cells() -> None:
    nan = math.nan
    table = pd.DataFrame(
        {
            ("a", 0.1): [1.0, 2.0, 3.0],
            ("b", 0.1): [1.0, 2.0, 4.0],
            ("c", 0.1): [1.0, nan, nan],
            ("d", 0.1): [2.0, nan, nan],
            ("e", 0.1): [5.0, 1.0, nan],
        }
    )
    part = complete_part(table)
    assert list(part.columns) == [("a", 0.1), ("b", 0.1)]
    assert part.index.tolist() == [0, 1, 2]
    # Without three seeds anywhere the largest rectangle is taken: seeds 0 and 1 of a, b, e.
    assert complete_part(table.iloc[:2]).shape == (2, 3)
    # Mean over cells, then over seeds: (1 + 2 + 3.5) / 3.
    assert overall(table).mean == pytest.approx(6.5 / 3)


def present(*seeds: set[int]) -> pd.DataFrame:
    """One cell for each set of seeds that were run."""
    columns = {(f"host{i}", 0.1): pd.Series(1.0, sorted(own)) for i, own in enumerate(seeds)}
    return pd.DataFrame(columns)


def test_complete_part_is_found_where_sets_of_seeds_only_overlap() -> None:
    # Any one cell has 4 seeds; all three share 1, 2 and 3: 9 values.
    part = complete_part(present({0, 1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 5}))
    assert part.index.tolist() == [1, 2, 3]
    assert part.shape == (3, 3)


def test_of_equal_parts_that_with_more_seeds_is_taken() -> None:
    # 4 seeds x 3 cells or 3 seeds x 4 cells.
    part = complete_part(present({1, 2, 3}, *[{1, 2, 3, 4}] * 3))
    assert part.shape == (4, 3)


def test_families_are_corrected() -> None:
    table = pd.DataFrame(
        {("a", 0.1): [1.0, 2.0, 3.0], ("a", 0.3): [3.0, 2.0, 1.0], ("b", 0.1): [1.0, 1.2, 0.9]}
    )
    raw = [mean_over_seeds(table[cell]).p for cell in table.columns]
    assert [e.p for e in by_cell(table).values()] == pytest.approx(holm(raw))
    hosts = by_host(table)
    # Budgets are averaged within a seed first: host a is 2, 2, 2.
    assert (hosts["a"].mean, hosts["a"].low) == (2, 2)
    assert hosts["b"].p == pytest.approx(holm([0.0, raw[2]])[1])


def test_partial_rank_correlation_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    control = rng.integers(0, 3, 20).astype(float)
    x = control + rng.normal(size=20)
    y = 2 * control + x + rng.normal(size=20)
    xy, xz, yz = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, control), (y, control)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_rank_correlation(x, y, control) == pytest.approx(expected)
    # Any increasing function of any of them changes nothing.
    assert partial_rank_correlation(np.exp(x), y**3, np.exp(control)) == pytest.approx(expected)


def test_what_follows_from_the_control_alone_does_not_correlate() -> None:
    control = np.repeat([0.1, 0.3, 0.5], 4)
    rng = np.random.default_rng(1)
    x, y = (10 * control + rng.permuted(np.tile(np.arange(4.0), (3, 1)), axis=1).ravel()
            for _ in range(2))  # fmt: skip
    raw = stats.spearmanr(x, y).statistic
    assert abs(partial_rank_correlation(x, y, control)) < raw


def test_partial_rank_correlation_of_too_little_is_undefined() -> None:
    assert math.isnan(partial_rank_correlation([1, 2, 3, 4], [1, 2, 3, 4], [1, 1, 1, 1]))
    assert math.isnan(partial_rank_correlation([1] * 6, range(6), range(6)))


def test_excess_burden_and_its_growth_by_hand() -> None:
    rows = []
    for budget, burden in ((0.3, 1.2), (0.1, 2.4)):
        for seed in range(3):
            rows.append(
                {
                    "pruner": "taylor",
                    "mitigation": "none",
                    "target_macs_ratio": budget,
                    "seed": seed,
                    "burden": burden,
                    "burden_null": 1.0,
                    "burden_dense_plus": 1.2,
                }
            )
    excess = statistics.excess_burden(pd.DataFrame(rows))
    # 1.2 / 1.0 / 1.2 = 1 and 2.4 / 1.2 = 2.
    assert np.exp(excess["taylor", 0.3]).tolist() == pytest.approx([1, 1, 1])
    assert np.exp(excess["taylor", 0.1]).tolist() == pytest.approx([2, 2, 2])
    assert np.exp(statistics.burden_growth(excess)).tolist() == pytest.approx([2, 2, 2])
