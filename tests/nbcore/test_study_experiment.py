"""One arm -> its row: against a training by hand, against loads by hand, and once more."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from nbcore.burden import pooled_site_loads
from nbcore.compact import compact, kept_units
from nbcore.evaluate import evaluate, predict_logits, torch_predict
from nbcore.macs import macs_of
from nbcore.measure import pooled_loads
from nbcore.mitigation import create_mitigation
from nbcore.pruning import PRUNERS, plan_budget
from nbcore.study.experiment import Laboratory, Outcome, _cut
from nbcore.study.forks import fork_path, read_fork, whole_macs
from nbcore.study.grid import DENSE, DENSE_PLUS, NEEDS_REMOVAL, TWIN, WEIGHTS, references
from nbcore.study.rows import history_rows
from nbcore.study.tables import HISTORY_COLUMNS, RUN_COLUMNS, SITE_COLUMNS
from nbcore.study.twin import create_twin, twin_widths
from nbcore.train import steps_per_epoch, train
from tests.nbcore.runs import CPU, dense_model
from tests.nbcore.tiny_study import arm, laboratory


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """A laboratory whose seed 0 has its dense models."""
    lab = laboratory(tmp_path_factory.mktemp("work"))
    for reference in references(0):
        lab.run(reference)
    return lab


@pytest.fixture(scope="module")
def plain(lab: Laboratory) -> Outcome:
    return lab.run(arm())


def result_of(outcome: Outcome) -> dict[str, Any]:
    """All that a run found, without how long it took."""
    return {k: v for k, v in outcome.run.items() if k != "seconds"}


def test_rows_are_whole(lab: Laboratory, plain: Outcome) -> None:
    assert set(plain.run) == set(RUN_COLUMNS)
    assert {tuple(sorted(row)) for row in plain.sites} == {tuple(sorted(SITE_COLUMNS))}
    assert {tuple(sorted(row)) for row in plain.history} == {tuple(sorted(HISTORY_COLUMNS))}
    assert [row["site"] for row in plain.sites] == [s.name for s in lab.fork(0).metered.model.sites]
    assert float(plain.run["macs_ratio"]) <= 0.5
    assert all(row["burden"] and row["burden_dense_plus"] for row in plain.sites)


def test_load_of_a_unit_during_training() -> None:
    """Site loads 0.6 and 0.9 of 4 and 9 heads, 0.8 of 16 neurons and none of one."""
    record = {
        "step": 7, "macs_ratio": 0.5, "loss": 1.0, "kept": [4, 16, 9, 1],
        "loads": [0.6, 0.8, 0.9, 0.0],
    }  # fmt: skip
    (row,) = history_rows(arm(), [record])
    # Root mean squares over units 0.6 / 2 and 0.9 / 3; 0.8 / 4 and 0; then means over sites.
    assert float(row["unit_load_heads"]) == pytest.approx(0.3)
    assert float(row["unit_load_neurons"]) == pytest.approx(0.1)
    assert float(row["load_heads"]) == pytest.approx(0.75)
    assert float(row["load_neurons"]) == pytest.approx(0.4)


def test_an_arm_is_the_training_it_says_it_is(lab: Laboratory, plain: Outcome) -> None:
    """The row of a run equals that of `train` called by hand on a copy of the fork."""
    study, fork = lab.study, lab.fork(0)
    model = copy.deepcopy(fork.metered.model).requires_grad_(True)
    total = steps_per_epoch(len(lab.data.train.names), study.arm.batch_size) * 2
    budget = plan_budget(
        macs_of(model), dense_macs=whole_macs(model), macs_ratio=0.5, total_steps=total,
        start=0.0, end=0.6, updates=2, freeze=0.8,
    )  # fmt: skip
    result = train(
        model,
        lab.data,
        study.arm,
        seed=0,
        device=CPU,
        mitigation=create_mitigation("none", {}),
        pruner=PRUNERS["taylor"](model, budget, torch.Generator().manual_seed(0)),
    )
    small = compact(result.model, result.keep)
    for prefix, split in (("", lab.data.test), ("val_", lab.data.validation)):
        logits = predict_logits(torch_predict(small, CPU), split.images, batch_size=256)
        metrics = dict(evaluate(logits, split.targets))
        assert plain.run[f"{prefix}top1"] == metrics["top1"]
        assert plain.run[f"{prefix}loss"] == metrics["loss"]
    kept = [len(units) for units in kept_units(result.model, result.keep)]
    assert [row["kept"] for row in plain.sites] == kept
    assert plain.run["num_params"] == sum(p.numel() for p in small.parameters())
    assert plain.run["base_top1"] == fork.top1


def test_no_run_leaves_a_trace_on_the_next(lab: Laboratory, plain: Outcome) -> None:
    """Models are lent from a pool: what ran before must not show, in this process or another."""
    for other in (arm(mitigation="handoff"), arm("random", "token_merging"), arm("s2vite")):
        lab.run(other)
    again = lab.run(arm())
    assert result_of(again) == result_of(plain)
    assert again.sites == plain.sites
    assert again.history == plain.history
    fresh = Laboratory(lab.study, None, lab.work, CPU)
    assert result_of(fresh.run(arm())) == result_of(plain)
    _, plus = references(0)
    assert result_of(lab.run(plus)) == result_of(
        Laboratory(lab.study, None, lab.work, CPU).run(plus)
    )


def test_a_dense_run_saves_the_very_model_of_its_row(lab: Laboratory) -> None:
    dense, _ = references(0)
    again = lab.run(dense)
    fork = read_fork(fork_path(lab.work, lab.study, dense), lab.dense_arch, lab.measured, 64)
    logits = predict_logits(
        torch_predict(fork.metered.model, CPU), lab.data.test.images, batch_size=256
    )
    metrics = dict(evaluate(logits, lab.data.test.targets))
    assert (again.run["top1"], again.run["loss"]) == (metrics["top1"], metrics["loss"])
    assert fork.top1 == again.run["base_top1"] == again.run["top1"]
    weights = [p for _, p in fork.metered.named_parameters()]
    assert all(torch.equal(p, p.half().float()) for p in weights)


def test_burden_of_dense_plus_over_an_arms_own_survivors(lab: Laboratory, plain: Outcome) -> None:
    """load_S(dense+) / load_S(dense) with S the survivors of the arm, from unit loads by hand."""
    _, plus = references(0)
    fork = lab.fork(0)
    result = lab._train_from_fork(plus, fork.metered.model.state_dict(), lab.data)
    metered = lab._metered(compact(result.model, result.keep))
    loads = pooled_loads(metered, lab.measured)
    pruned = lab._train_from_fork(arm(), fork.metered.model.state_dict(), lab.data)
    for site, units in enumerate(kept_units(pruned.model, pruned.keep)):
        squares = [
            model.power[site][units].sum() / model.stream[site] for model in (loads, fork.loads)
        ]
        expected = float((squares[0] / squares[1]).sqrt())
        assert float(plain.sites[site]["burden_dense_plus"]) == pytest.approx(expected, rel=1e-4)


def test_site_values_are_averaged_by_removed_macs(plain: Outcome) -> None:
    for name in ("burden", "burden_null", "burden_dense_plus", "selection"):
        pairs = [(float(row[name]), row["removed_macs"]) for row in plain.sites]
        mean = sum(v * w for v, w in pairs) / sum(w for _, w in pairs)
        assert float(plain.run[name]) == pytest.approx(mean, rel=1e-4)


def test_dense_plus_against_itself(lab: Laboratory) -> None:
    """All units are survivors and nothing was cut: B is the ratio itself and its null is one."""
    _, plus = references(0)
    row = lab.run(plus).run
    assert row["burden"] == row["burden_dense_plus"]
    assert float(row["burden_null"]) == pytest.approx(1)
    assert float(row["selection"]) == pytest.approx(1)
    assert row["takeover"] == ""
    assert lab.run(arm(DENSE_PLUS, "token_merging", 1.0)).run["burden_dense_plus"] == ""


@pytest.mark.parametrize("mitigation", sorted(NEEDS_REMOVAL))
def test_what_acts_on_removal_only_changes_no_bit_of_a_dense_training(
    lab: Laboratory, mitigation: str
) -> None:
    """So its dense control is that of `none` and is not run again."""
    _, plus = references(0)
    without, with_it = lab.run(plus).run, lab.run(arm(DENSE_PLUS, mitigation, 1.0)).run
    for name in ("top1", "loss", "val_top1", "val_loss", "burden", "residual", "macs_ratio"):
        assert with_it[name] == without[name]


def test_weights_are_measured_over_all_units_against_the_cut_model(lab: Laboratory) -> None:
    own = arm(WEIGHTS, ratio=0.3)
    outcome = lab.run(own)
    fork = lab.fork(0)
    state = fork.metered.model.state_dict()
    small = lab._train_from_fork(own, state, lab.data).model
    matrices = [p for p in small.vit.blocks.parameters() if p.ndim == 2]
    kept = sum(int((p != 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)
    assert kept == pytest.approx(0.3, abs=0.01)
    assert outcome.run["num_params"] == sum(int(p.count_nonzero()) for p in small.parameters())
    assert float(outcome.run["macs_ratio"]) == 1
    assert all(row["kept"] == row["total"] for row in outcome.sites)
    cut = _cut(fork.metered, small)
    for name, dense in fork.metered.model.vit.blocks.named_parameters():
        mine, pruned = (dict(m.vit.blocks.named_parameters())[name] for m in (cut.model, small))
        expected = torch.where(pruned != 0, dense, 0.0) if dense.ndim == 2 else dense
        assert torch.equal(mine, expected)
    ratio = pooled_site_loads(pooled_loads(cut, lab.measured)) / pooled_site_loads(fork.loads)
    found = [float(row["burden_null"]) for row in outcome.sites]
    assert found == pytest.approx(ratio.tolist(), rel=1e-4)


@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.45])
def test_a_twin_has_equal_blocks_and_keeps_its_budget(ratio: float) -> None:
    model = dense_model()
    macs = macs_of(model)
    heads, neurons = twin_widths(model, ratio)
    assert len(set(heads)) == 1
    assert max(neurons) - min(neurons) <= 8
    assert neurons == sorted(neurons, reverse=True)
    assert all(n % 8 == 0 for n in neurons)
    spent = macs.total([n for pair in zip(heads, neurons, strict=True) for n in pair])
    budget = ratio * macs.total([s.num_units for s in model.sites])
    assert budget - 8 * macs.per_unit[1] < spent <= budget
    twin = create_twin(model, ratio)
    assert whole_macs(twin) == spent
    # A fresh start, as timm makes it, with the stem's BatchNorm still to be trained.
    linear = torch.cat([p.detach().flatten() for p in twin.vit.blocks.parameters() if p.ndim == 2])
    assert float(linear.std()) == pytest.approx(0.02, rel=0.1)
    assert all(not b.mlp.fc1.bias.any() and not b.attn.qkv.bias.any() for b in twin.vit.blocks)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in twin.modules())


def test_a_twin_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot hold one head and 8 neurons in every block"):
        twin_widths(dense_model(), 0.05)


def test_a_twin_trains_from_scratch_for_the_whole_time(lab: Laboratory) -> None:
    outcome = lab.run(arm(TWIN))
    per_epoch = steps_per_epoch(len(lab.data.train.names), lab.study.dense.batch_size)
    epochs = lab.study.dense.total_epochs + lab.study.arm.total_epochs
    assert outcome.history[-1]["step"] == per_epoch * epochs
    assert float(outcome.history[0]["macs_ratio"]) == pytest.approx(
        float(outcome.run["macs_ratio"]), rel=1e-5
    )
    assert outcome.sites == []
    assert outcome.run["burden"] == outcome.run["base_top1"] == ""


def test_token_merging_counts_towards_the_budget(lab: Laboratory, plain: Outcome) -> None:
    """Fewer tokens cost less, so more units stay within the same MACs."""
    merged = lab.run(arm(mitigation="token_merging"))
    assert 0.4 < float(merged.run["macs_ratio"]) <= 0.5
    assert sum(row["kept"] for row in merged.sites) > sum(row["kept"] for row in plain.sites)


def test_a_rehearsal_changes_nothing(lab: Laboratory, plain: Outcome) -> None:
    files = {p: p.read_bytes() for p in lab.work.rglob("*") if p.is_file()}
    for other in (arm(DENSE, ratio=1.0), arm(TWIN), arm(), arm(mitigation="token_merging")):
        lab.rehearse(other)
    assert {p: p.read_bytes() for p in lab.work.rglob("*") if p.is_file()} == files
    assert result_of(lab.run(arm())) == result_of(plain)


def test_an_arm_without_its_fork_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fork .* cannot be read"):
        laboratory(tmp_path).run(arm())
